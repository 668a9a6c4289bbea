"""Scales of channels, put into the constants of a graph: what ``scaling`` found, solved and applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxcomp.graph.constants import replace_input, value_of
from onnxcomp.graph.scaling import FIXED, Factor, ScaleFlow

__all__ = ["NOT_FOLLOWED", "CappedTensor", "ScaleUnits"]

Array = np.ndarray[Any, Any]

NOT_FOLLOWED = "its channels cannot be followed"
"""Why channels keep their scale that no rule says more about."""


@dataclass(frozen=True, eq=False)
class CappedTensor:
    """The result of a Clip: the axis of its channels, their units, its limits; exact where no value reaches them."""

    tensor: gs.Tensor
    axis: int
    units: Array
    low: float
    high: float


class ScaleUnits:
    """Sets of channels that have one scale.

    Attributes:
        count: of the units.
        free: (units,), whether its scale may change.
        reasons: by unit that may not, why.
        caps: where scales pass through a Clip that they change.
    """

    def __init__(self, flow: ScaleFlow) -> None:
        self._flow = flow
        first, second = (
            np.concatenate([pair[side].reshape(-1) for pair in flow.ties] or [np.zeros(0, int)]) for side in (0, 1)
        )
        moving = (first != FIXED) & (second != FIXED)
        edges = (np.ones(int(moving.sum())), (first[moving], second[moving]))
        self.count, self._unit = connected_components(coo_matrix(edges, (flow.count, flow.count)), directed=False)
        self.reasons: dict[int, str] = {}
        for ids, reason in flow.pins:
            for unit in np.unique(self._unit[ids]):
                self.reasons.setdefault(int(unit), reason)
        for unit in np.unique(self._unit[np.maximum(first, second)[~moving]]):
            self.reasons.setdefault(int(unit), "it is added to what keeps its scale")
        self.reasons[int(self._unit[FIXED])] = NOT_FOLLOWED
        self.free = np.ones(self.count, bool)
        self.free[list(self.reasons)] = False
        self.caps = self._caps()

    def of(self, tensor: gs.Tensor) -> Array:
        """Units of the tensor's channels, of its rank, broadcasting to its shape."""
        units: Array = self._unit[self._flow.labels(tensor)]
        return units

    def rank(self, tensor: gs.Tensor) -> int:
        """How many axes the tensor has."""
        return self.of(tensor).ndim

    def along(self, tensor: gs.Tensor, axis: int) -> Array | None:
        """Units along an axis, (size,); None where they differ along another one, or the shape is not known."""
        shape, units = self._flow.shape(tensor), self.of(tensor)
        if not shape or any(size > 1 for position, size in enumerate(units.shape) if position != axis % len(shape)):
            return None
        return np.broadcast_to(units.reshape(-1), (shape[axis],))

    def pin(self, units: Array, reason: str) -> None:
        """These keep their scale."""
        self.free[units] = False
        for unit in np.unique(units):
            self.reasons.setdefault(int(unit), reason)

    def _caps(self) -> list[CappedTensor]:
        """See the attribute; a Clip without an axis of channels pins what it reads."""
        found = []
        for cap in self._flow.caps:
            units = self.of(cap.tensor)
            wide = [axis for axis, size in enumerate(units.shape) if size > 1]
            along = self.along(cap.tensor, wide[0]) if len(wide) == 1 else None
            if along is None:
                self.pin(units, "a Clip limits it")
            elif self.free[along].any():
                found.append(CappedTensor(cap.tensor, wide[0], along, cap.low, cap.high))
        return found

    def refusal(self, node: gs.Node) -> str:
        """Why no scale passes the node, or nothing."""
        return self._flow.refusals.get(id(node), "")

    def factors_at(self, node: gs.Node, index: int) -> list[tuple[Factor, Array]]:
        """Factors of a node's constant, each with its units."""
        own = [factor for factor in self._flow.factors if factor.node is node and factor.index == index]
        return [(factor, self._unit[factor.ids]) for factor in own]

    def rescale(self, scales: Array) -> None:
        """Multiply the channels of every unit by its scale, (units,), computed in float64 and rounded once."""
        by_place: dict[tuple[int, int], list[Factor]] = {}
        for factor in self._flow.factors:
            if np.any(scales[self._unit[factor.ids]] != 1):
                by_place.setdefault((id(factor.node), factor.index), []).append(factor)
        for factors in by_place.values():
            node, index = factors[0].node, factors[0].index
            old = value_of(node.inputs[index])
            assert old is not None
            value = np.asarray(old, np.float64)
            for factor in factors:
                value = value * scales[self._unit[factor.ids]] ** factor.power
            replace_input(node, index, value.astype(old.dtype))
