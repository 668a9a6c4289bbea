"""What quantization needs to know of a model's activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.linalg import ranges
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.statistics import Accumulator, Histogram, Moments, observe

__all__ = ["Calibration", "calibrate", "spread"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Calibration:
    """Statistics of activations by tensor name."""

    histograms: dict[str, Histogram]
    means: dict[str, Array]

    def grid(self, name: str, method: ranges.Method) -> tuple[float, int]:
        """Scale and zero point of an activation."""
        histogram = self.histograms[name]
        if not histogram.count:
            return ranges.grid(0.0, 0.0)
        low, high = ranges.choose(method, histogram.counts, histogram.edges)
        # Bins end beyond the values; a range need not.
        return ranges.grid(max(low, min(histogram.minimum, 0.0)), min(high, max(histogram.maximum, 0.0)))


def calibrate(
    model: Model,
    dataset: Dataset,
    tensors: Iterable[str],
    channel_axes: Mapping[str, int],
    progress: Progress = silent,
) -> Calibration:
    """Observe histograms of ``tensors``, and means per channel of the tensors in ``channel_axes``.

    Raises:
        InputError: the model does not run on the data.
    """
    histograms = {name: Histogram() for name in tensors}
    moments = {name: Moments(axis) for name, axis in channel_axes.items()}
    wanted: dict[str, list[Accumulator]] = {name: [histogram] for name, histogram in histograms.items()}
    for name, moment in moments.items():
        wanted.setdefault(name, []).append(moment)
    observe(model, dataset, wanted, progress)
    return Calibration(histograms, {name: moment.mean for name, moment in moments.items() if moment.count})


def spread(dataset: Dataset, samples: int) -> Dataset:
    """At most about ``samples`` samples, spread evenly over the order."""
    if len(dataset) <= samples:
        return dataset
    return dataset.split(1 - samples / len(dataset))[1]
