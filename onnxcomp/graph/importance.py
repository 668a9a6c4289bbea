"""Which units of a dependency group matter least, told from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.spatial.distance import cdist

from onnxcomp.graph.affine import input_columns
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.reconstruct import norm_order

__all__ = ["Removal", "WeightScore", "made_of_zeros", "readers", "weight_removals"]

Array = np.ndarray[Any, Any]
WeightScore: TypeAlias = Literal["magnitude", "median", "scale"]


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

    @classmethod
    def impossible(cls, most: int) -> Removal:
        """Of a group that must not lose any, whatever the first ``most`` would be."""
        return cls(np.arange(most), np.concatenate([[0.0], np.full(most, math.inf)]))

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


def made_of_zeros(group: Group) -> Array:
    """Whether every weight and constant on the way of each unit to its readers is zero: (units,), boolean."""
    zero = np.ones(group.size, dtype=bool)
    for slot in group.slots:
        if slot.role != "in":
            zero &= ~_lines(slot).any(axis=(1, 2))
    return zero


def weight_removals(groups: Sequence[Group], most: Sequence[int], score: WeightScore) -> list[Removal]:
    """The removal of each group's units by a score of the weights.

    - ``magnitude``: the smallest weights go first, those in front of a unit times those behind it.
    - ``median``: those go first whose filters are nearest to all others (geometric median, He et al., "Filter pruning
      via geometric median", CVPR 2019): what is left can stand in for them.
    - ``scale``: the smallest factors of a normalization behind the layer go first (Liu et al., "Learning efficient
      convolutional networks through network slimming", ICCV 2017); by magnitude where there is none.

    Args:
        groups: that may lose units.
        most: how many each may lose.
        score: which.
    """
    return [_SCORES[score](group, count) for group, count in zip(groups, most, strict=True)]


def _by_magnitude(group: Group, most: int) -> Removal:
    weights = [(layer.matrix(), columns) for layer, columns in readers(group)]
    return Removal(*norm_order(weights, _producer_norms(group), most))


def _by_median(group: Group, most: int) -> Removal:
    filters = [lines.reshape(group.size, -1) for slot in group.slots if (lines := _made_by(slot)) is not None]
    if not filters:
        return _by_magnitude(group, most)
    vectors = np.concatenate(filters, axis=1)
    return _smallest_first(cdist(vectors, vectors).sum(axis=1), most)


def _by_scale(group: Group, most: int) -> Removal:
    squares = np.zeros(group.size)
    for slot in group.slots:
        if slot.node.op in ("BatchNormalization", "InstanceNormalization") and slot.index == 1:
            factors = np.asarray(value_of(slot.tensor), dtype=np.float64)
            squares += np.square(factors)[slot.positions].mean(axis=1)
    return _smallest_first(squares, most) if squares.any() else _by_magnitude(group, most)


_SCORES: dict[WeightScore, Callable[[Group, int], Removal]] = {
    "magnitude": _by_magnitude,
    "median": _by_median,
    "scale": _by_scale,
}


def _smallest_first(scores: Array, most: int) -> Removal:
    order = np.argsort(scores, kind="stable")[:most]
    return Removal(order, np.concatenate([[0.0], np.cumsum(scores[order])]) / (float(scores.sum()) or 1.0))


def _producer_norms(group: Group) -> Array:
    """Mean square of each unit, were the inputs of the layers that make it white: Σ w² + b²."""
    squares = np.zeros(group.size)
    for slot in group.slots:
        if slot.role == "out" or slot.node.op == "Add":
            squares += np.square(_lines(slot)).sum(axis=2).mean(axis=1)
    return squares if squares.any() else np.ones(group.size)


def _made_by(slot: Slot) -> Array | None:
    """The weights that make each unit, where the slot is the weight of a layer that makes it."""
    is_weight = slot.layer is not None and slot.index == slot.layer.weight_index
    return _lines(slot) if slot.role == "out" and is_weight else None


def _lines(slot: Slot) -> Array:
    """The slices of the constant that belong to each unit: (units, multiplicity, rest)."""
    weight = np.moveaxis(np.asarray(value_of(slot.tensor), dtype=np.float64), slot.axis, 0)
    lines: Array = weight.reshape(len(weight), -1)[slot.positions]
    return lines
