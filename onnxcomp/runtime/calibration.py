"""What quantization needs to know of a model's activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.data import Dataset
from onnxcomp.graph.integer_plan import IntegerPlan
from onnxcomp.linalg import ranges
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.statistics import Accumulator, Histogram, Means, observe_anywhere

__all__ = ["Calibration", "calibrate", "spread"]

Array = np.ndarray[Any, Any]

_COUNTED = 2**16  # values of a tensor that a batch adds to its histogram


@dataclass(frozen=True)
class _Limited:
    """Lets an accumulator see values within limits."""

    accumulator: Accumulator
    low: float
    high: float

    def expect(self, updates: int) -> None:
        self.accumulator.expect(updates)

    def update(self, array: Array) -> None:
        self.accumulator.update(np.clip(array, self.low, self.high))


@dataclass(frozen=True)
class Calibration:
    """Statistics of activations.

    Attributes:
        histograms: by ``id`` of the tensor.
        means: in each channel, by ``id`` of the tensor; those that were never computed have none.
        tensors: all of them, so that nothing else takes their ids.
    """

    histograms: dict[int, Histogram] = field(default_factory=dict)
    means: dict[int, Array] = field(default_factory=dict)
    tensors: tuple[gs.Tensor, ...] = ()

    def seen(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor was computed while samples ran: not in a branch that was never taken."""
        return id(tensor) in self.histograms and self.histograms[id(tensor)].count > 0

    def unseen(self, plans: Iterable[IntegerPlan]) -> set[str]:
        """Names of the planned layers that lack the range of an activation: no sample showed values of it."""
        return {
            site.layer.name
            for plan in plans
            for site in plan.sites
            if not all(self.seen(root) for root in plan.roots_around(site))
        }

    def grid(self, tensor: gs.Tensor, method: ranges.Method) -> ranges.Grid:
        """Scale and zero point of an activation."""
        histogram = self.histograms[id(tensor)]
        if not histogram.count:
            return ranges.grid(0.0, 0.0)
        return self._grid(histogram, *ranges.choose(method, histogram.counts, histogram.edges))

    def candidates(self, tensor: gs.Tensor) -> list[ranges.Grid]:
        """Scales and zero points that may suit an activation, the widest first."""
        histogram = self.histograms[id(tensor)]
        if not histogram.count:
            return [ranges.grid(0.0, 0.0)]
        found = ranges.candidates(histogram.counts, histogram.edges)
        return list(dict.fromkeys(self._grid(histogram, low, high) for low, high in found))

    @staticmethod
    def _grid(histogram: Histogram, low: float, high: float) -> ranges.Grid:
        # Bins end beyond the values; a range need not.
        return ranges.grid(max(low, min(histogram.minimum, 0.0)), min(high, max(histogram.maximum, 0.0)))

    def noise(self, tensor: gs.Tensor, grid: ranges.Grid) -> float:
        """The part of an activation's energy that rounding it takes."""
        histogram = self.histograms[id(tensor)]
        scale, zero = grid
        bounds = -zero * scale, (255 - zero) * scale
        signal, noise = ranges.quantization_noise(histogram.counts, histogram.edges, *bounds)
        return noise / signal if signal else 0.0


def calibrate(
    model: Model,
    dataset: Dataset,
    tensors: Iterable[gs.Tensor],
    channels: Iterable[tuple[gs.Tensor, int]],
    progress: Progress = silent,
    limits: Mapping[int, tuple[float, float]] | None = None,
) -> Calibration:
    """Observe histograms of ``tensors``, and means per channel of tensors that are given with their channel axis.

    The tensors are those of the model's graph or of the body of an If, Loop or Scan. ``limits`` gives, by ``id``
    of a tensor, the range beyond which its values make no difference; the histogram counts them at its ends.

    Of large tensors a part of the values is counted in the histograms.

    Raises:
        InputError: the model does not run on the data.
    """
    known: dict[int, gs.Tensor] = {}
    histograms: dict[int, Histogram] = {}
    means: dict[int, Means] = {}
    wanted: dict[int, list[Accumulator]] = {}
    for tensor in tensors:
        known[id(tensor)] = tensor
        histograms[id(tensor)] = Histogram(most=_COUNTED)
        low, high = (limits or {}).get(id(tensor), (-math.inf, math.inf))
        wanted[id(tensor)] = [_Limited(histograms[id(tensor)], low, high)]
    for tensor, axis in channels:
        if id(tensor) not in means:
            known[id(tensor)] = tensor
            means[id(tensor)] = Means(axis)
            wanted.setdefault(id(tensor), []).append(means[id(tensor)])
    observe_anywhere(model, dataset, wanted, progress)
    # A sample that overflows tells no mean; a bias that is corrected by it would be NaN for all samples.
    found = {key: mean.mean for key, mean in means.items() if mean.count and np.isfinite(mean.mean).all()}
    return Calibration(histograms, found, tuple(known.values()))


def spread(dataset: Dataset, samples: int) -> Dataset:
    """At most about ``samples`` samples, spread evenly over the order."""
    if len(dataset) <= samples:
        return dataset
    return dataset.split(1 - samples / len(dataset))[1]
