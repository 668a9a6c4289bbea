"""What it costs to remove channels: in which order they go, and what that does to the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import fidelity, outputs
from onnxcomp.graph.affine import input_columns, shift_outputs
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import Reader, damping_for, least_squares, norm_order, removal_order
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import InputMoments
from onnxcomp.runtime.statistics import observe

__all__ = ["Removal", "measured_removals", "norm_removals", "readers"]

Array = np.ndarray[Any, Any]

MAX_BYTES = 256 * 2**20  # of covariances that are held at once
NOTHING = 1e-7  # relative losses below this are rounding errors


@dataclass(frozen=True)
class Removal:
    """The removal of a group's units, one after the other.

    Attributes:
        order: the units that go, first to last.
        losses: after 0, 1, 2, … of them; comparable between the groups of a model. Infinite from 1 on where none
            may go.
    """

    order: Array
    losses: Array

    @property
    def measurable(self) -> bool:
        """Whether the losses are known."""
        return bool(np.isfinite(self.losses).all())


def readers(group: Group) -> list[tuple[WeightedLayer, Array]]:
    """The layers that read the group's units, with the columns of their matrix that each unit is (units, b)."""
    return [
        (slot.layer, input_columns(slot.layer, slot.positions))
        for slot in group.slots
        if slot.role == "in" and slot.layer is not None
    ]


def norm_removals(groups: Sequence[Group], most: Sequence[int]) -> list[Removal]:
    """Without data: the units with the smallest weights go first, those in front times those behind them."""
    removals = []
    for group, count in zip(groups, most, strict=True):
        weights = [(layer.matrix(), columns) for layer, columns in readers(group)]
        removals.append(Removal(*norm_order(weights, _producer_norms(group), count)))
    return removals


def _producer_norms(group: Group) -> Array:
    """Mean square of each unit, were the inputs of the layers that make it white: Σ w² + b²."""
    squares = np.zeros(group.size)
    for slot in group.slots:
        if slot.role == "out" or slot.node.op == "Add":
            weight = np.moveaxis(np.asarray(value_of(slot.tensor), dtype=np.float64), slot.axis, 0)
            lines = np.square(weight).reshape(len(weight), -1).sum(axis=1)
            squares += lines[slot.positions].mean(axis=1)
    return squares if squares.any() else np.ones(group.size)


def measured_removals(
    model: Model,
    groups: Sequence[Group],
    most: Sequence[int],
    dataset: Dataset,
    probe: Dataset,
    progress: Progress = silent,
) -> list[Removal]:
    """With data: the loss that is left when the layers that read the units make up for them.

    The loss in a group's readers is found for every unit; how much of it reaches the model's outputs is measured
    once for each group, by removing half of its units.

    Args:
        model: is left as it is.
        groups: that may lose units.
        most: how many each may lose.
        dataset: samples to observe.
        probe: samples to measure the outputs on.
        progress: shows the batches.

    Raises:
        InputError: the model does not run on the data.
    """
    reference = list(outputs(model, probe)) if groups else []
    found: list[tuple[Removal, float]] = []
    for chunk in _chunks(groups):
        moments = _observe(model, [groups[index] for index in chunk], dataset, progress)
        for index in chunk:
            group = groups[index]
            seen = [moments[layer.name].moments for layer, _ in readers(group)]
            removal = _order(group, seen, most[index])
            found.append((removal, _transfer(model, group, seen, removal, probe, reference)))
    known = [transfer for _, transfer in found if 0.0 < transfer < math.inf]
    usual = float(np.median(known)) if known else 1.0
    least = min(known, default=1.0)  # for what is too small to be seen in the outputs
    result = []
    for removal, transfer in found:
        factor = max(transfer, least) if math.isfinite(transfer) else usual
        result.append(Removal(removal.order, removal.losses * factor))
    return result


def _chunks(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Indices of consecutive groups whose readers' covariances fit in memory together."""
    chunk: list[int] = []
    size = 0
    for index, group in enumerate(groups):
        needed = sum(8 * layer.groups * layout_of(layer).size ** 2 for layer, _ in readers(group))
        if chunk and size + needed > MAX_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += needed
    if chunk:
        yield chunk


def _observe(model: Model, groups: Sequence[Group], dataset: Dataset, progress: Progress) -> dict[str, InputMoments]:
    """Covariances of the inputs of all readers, by layer."""
    moments: dict[str, InputMoments] = {}
    wanted: dict[str, list[InputMoments]] = {}
    for group in groups:
        for layer, _ in readers(group):
            if layer.name not in moments:
                moments[layer.name] = InputMoments(layout_of(layer))
                wanted.setdefault(layer.node.inputs[0].name, []).append(moments[layer.name])
    observe(model, dataset, wanted, progress)
    return moments


def _order(group: Group, seen: Sequence[Moments], most: int) -> Removal:
    if not all(moments.finite for moments in seen):
        return Removal(np.arange(most), np.concatenate([[0.0], np.full(most, math.inf)]))
    layers = [
        Reader(layer.matrix(), moments.covariance, columns, damping_for(moments.count, moments.mean.shape[1]))
        for (layer, columns), moments in zip(readers(group), seen, strict=True)
    ]
    order, losses = removal_order(layers, most)
    return Removal(order, np.where(losses < NOTHING, 0.0, losses))


def _transfer(
    model: Model,
    group: Group,
    seen: Sequence[Moments],
    removal: Removal,
    probe: Dataset,
    reference: Sequence[dict[str, Any]],
) -> float:
    """Relative error of the model's outputs for each unit of loss; NaN where it cannot be told."""
    half = max(1, len(removal.order) // 2)
    if removal.losses[half] <= 0.0 or not removal.measurable:
        return math.nan
    state = model.checkpoint()
    try:
        for (layer, columns), moments in zip(readers(group), seen, strict=True):
            _disconnect(model, layer, columns[removal.order[:half]].reshape(-1), moments)
        sqnr = fidelity(reference, outputs(model, probe)).sqnr_db
    finally:
        state.restore()
    error: float = 10.0 ** (-sqnr / 10.0)
    return error / float(removal.losses[half])


def _disconnect(model: Model, layer: WeightedLayer, columns: Array, moments: Moments) -> None:
    """Make the layer do without these inputs, as well as it can."""
    W, H = layer.matrix(), moments.covariance
    left = np.setdiff1d(np.arange(W.shape[2]), columns)
    fitted = np.zeros_like(W)
    for group in range(len(W)):
        cross = W[group] @ H[group][:, left]
        prior, inner = W[group][:, left], H[group][np.ix_(left, left)]
        fitted[group][:, left] = least_squares(prior, cross, inner, damping_for(moments.count, len(inner)))
    layer.set_matrix(fitted)
    shift_outputs(model, layer, ((W - fitted) @ moments.mean[:, :, None])[:, :, 0])
