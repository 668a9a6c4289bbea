"""Scales of channels that suit what a model does on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rescaling import CappedTensor, ScaleUnits
from onnxcomp.graph.scale_readers import Reading, Source, readings, sources
from onnxcomp.linalg.equalization import Activation, Reader, Solution, equalize, thinned
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.peaks import Peaks
from onnxcomp.runtime.statistics import observe

__all__ = ["find_scales"]

Array = np.ndarray[Any, Any]
_Shown: TypeAlias = Reading | Source | CappedTensor

# Values that were not seen will come: channels get the room that they would need on so many samples,
_FORESEEN = 1000
# and none is taken for much narrower than the widest; nor for narrower at all where a sample shows few of its values:
# what rarely fires may be as wide as the others.
_NARROWEST = 0.5
_FEW = 16
# Outputs of a weight that count for it: what is kept of all weights stays small.
_ROWS = 1024


def find_scales(
    model: Model,
    layers: Sequence[WeightedLayer],
    units: ScaleUnits,
    shapes: Mapping[str, tuple[int, ...]],
    data: Dataset,
    progress: Progress = silent,
) -> list[Solution]:
    """The scales with the least expected error of 8-bit activations and weights.

    Returns:
        one solution for each set of units that depend on each other; units that nothing which is rounded has to do
        with are in none.

    Raises:
        InputError: the model does not run on the data.
    """
    reading, rounded = _rounded(model, layers, units, shapes)
    shown: list[_Shown] = [*reading, *rounded, *units.caps]
    peaks = _observed(shown, model, data, progress)
    if empty := [item for item in shown if not peaks[_key(item)].samples]:
        for item in empty:
            units.pin(item.units, f"{item.tensor.name} is empty in all calibration samples")
        reading, rounded = _rounded(model, layers, units, shapes)
    pairs = [_reader(item, peaks[_key(item)]) for item in reading]
    readers, columns = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    limits = {_key(cap): cap for cap in units.caps}
    activations = []
    for item in rounded:
        low, high = peaks[_key(item)].reach(_FORESEEN)
        if (cap := limits.get(_key(item))) is not None:
            low, high = np.minimum(low, -cap.low), np.minimum(high, cap.high)
        floor = _NARROWEST if peaks[_key(item)].positions >= _FEW else 1.0
        low, high = (np.maximum(side, floor * side.max()) for side in (low, high))
        activations.append(_activation(item, low, high, reading, columns, units.count))
    room = _room(peaks, units)
    units.pin(np.flatnonzero(room <= 0), "it may reach the limit of a Clip")
    return equalize(activations, readers, units.free, room)


def _rounded(
    model: Model, layers: Sequence[WeightedLayer], units: ScaleUnits, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Reading], list[Source]]:
    """Weights and activations that are rounded, where scales may change."""
    reading = readings(layers, units)
    return reading, sources(model, layers, reading, units, shapes)


def _key(item: _Shown) -> tuple[str, int]:
    return item.tensor.name, item.axis


def _observed(items: Sequence[_Shown], model: Model, data: Dataset, progress: Progress) -> dict[tuple[str, int], Peaks]:
    """Statistics of these tensors."""
    found: dict[tuple[str, int], Peaks] = {}
    wanted: dict[str, list[Peaks]] = {}
    for item in items:
        if _key(item) not in found:
            found[_key(item)] = Peaks(item.axis)
            wanted.setdefault(item.tensor.name, []).append(found[_key(item)])
    observe(model, data, wanted, progress)
    return found


def _room(peaks: Mapping[tuple[str, int], Peaks], units: ScaleUnits) -> Array:
    """Logarithms of how much units may grow before they reach a limit; not above zero where they may reach it."""
    room = np.full(units.count, np.inf)
    for cap in units.caps:
        if not peaks[_key(cap)].samples:
            continue
        low, high = peaks[_key(cap)].reach(_FORESEEN)
        for reach, limit in ((low, -cap.low), (high, cap.high)):
            if np.isfinite(limit) and reach.any():
                np.minimum.at(room, cap.units, np.log(limit / np.maximum(reach, 1e-9 * limit)))
    return room


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
    reader = Reader(item.units, np.abs(entries).max(3), square * entries.shape[3], worth)
    return thinned(reader, _ROWS), columns * worth


def _activation(
    source: Source, low: Array, high: Array, reading: Sequence[Reading], columns: Sequence[Array], count: int
) -> Activation:
    """The tensor as it is rounded; a unit's worth is spread evenly over its channels."""
    worth = np.zeros(count)
    for index, gain in source.reached:
        np.add.at(worth, reading[index].units, gain * columns[index])
    channels = np.bincount(source.units, minlength=count)
    return Activation(source.units, low, high, worth[source.units] / channels[source.units])
