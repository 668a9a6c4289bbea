"""Scales of channels that suit what a model does on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rescaling import ScaleUnits
from onnxcomp.graph.scale_readers import Reading, Source, readings, sources
from onnxcomp.linalg.equalization import Activation, Reader, Solution, equalize
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.peaks import Peaks
from onnxcomp.runtime.statistics import observe

__all__ = ["Equalization", "find_scales"]

Array = np.ndarray[Any, Any]

# Values that were not seen will come: channels get the room that they would need on so many samples,
_FORESEEN = 1000
# and none is taken for so much narrower than the widest that it is scaled up without end.
_NARROWEST = 0.25


@dataclass(frozen=True)
class Equalization:
    """What could be done.

    Attributes:
        readings: layers concerned.
        solutions: scales, for each set of units that depend on each other; they name readings by position.
    """

    readers: list[Reading]
    solutions: list[Solution]


def find_scales(
    model: Model,
    layers: Sequence[WeightedLayer],
    units: ScaleUnits,
    shapes: Mapping[str, tuple[int, ...]],
    data: Dataset,
    progress: Progress = silent,
) -> Equalization:
    """The scales with the least expected error of 8-bit activations and weights.

    Raises:
        InputError: the model does not run on the data.
    """
    reading = readings(layers, units)
    rounded = sources(model, layers, reading, units, shapes)
    peaks: dict[tuple[str, int], Peaks] = {}
    for item in (*reading, *rounded):
        peaks.setdefault((item.tensor.name, item.axis), Peaks(item.axis))
    wanted: dict[str, list[Peaks]] = {}
    for (name, _), accumulator in peaks.items():
        wanted.setdefault(name, []).append(accumulator)
    observe(model, data, wanted, progress)
    pairs = [_reader(item, peaks[item.tensor.name, item.axis]) for item in reading]
    readers, columns = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    activations = [
        _activation(item, peaks[item.tensor.name, item.axis], reading, columns, units.count) for item in rounded
    ]
    return Equalization(reading, equalize(activations, readers, units.free))


def _reader(item: Reading, peaks: Peaks) -> tuple[Reader, Array]:
    """The layer's weight, and what noise of variance 1 in each input makes of its outputs."""
    matrix = item.layer.matrix()
    groups, outputs, _ = matrix.shape
    entries = matrix.reshape(groups, outputs, len(item.units) // groups, -1)
    # Few samples know little of channels that are rarely active: one more is assumed, that is as the average channel.
    square = (peaks.samples * peaks.square + peaks.square.mean()) / (peaks.samples + 1)
    columns = np.einsum("goik,goik->gi", entries, entries).reshape(-1)
    energy = float(columns @ square)
    worth = 1 / energy if energy > 0 else 0.0
    return Reader(item.units, np.abs(entries).max(3), square * entries.shape[3], worth), columns * worth


def _activation(
    source: Source, peaks: Peaks, reading: Sequence[Reading], columns: Sequence[Array], count: int
) -> Activation:
    """The tensor as it is rounded; a unit's worth is spread evenly over its channels."""
    worth = np.zeros(count)
    for index, gain in source.reached:
        np.add.at(worth, reading[index].units, gain * columns[index])
    channels = np.bincount(source.units, minlength=count)
    low, high = (np.maximum(side, _NARROWEST * side.max()) for side in peaks.reach(_FORESEEN))
    return Activation(source.units, low, high, worth[source.units] / channels[source.units])
