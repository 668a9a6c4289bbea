"""What a model's weights cost, as a function of how many units each dependency group has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from onnxcomp.graph.constants import shape_of
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model

__all__ = ["GroupCost", "macs"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
Unit = Literal["flops", "parameters"]


def macs(layer: WeightedLayer, shapes: Shapes) -> int:
    """Multiply-accumulates of a layer's weight for one run: its elements times the positions it is used at."""
    weights = math.prod(layer.shape)
    if layer.kind == "ConvTranspose":
        return weights * math.prod(shapes.get(layer.node.inputs[0].name, (0,))[2:])
    output = shapes.get(layer.node.outputs[0].name, (0,))
    if layer.kind == "Conv":
        return weights * output[0] * math.prod(output[2:])
    return weights * math.prod(output[:-1]) if layer.kind in ("Gemm", "MatMul") else 0


@dataclass
class _Term:
    """The cost of one constant, which falls with every axis that becomes shorter."""

    whole: float
    sizes: dict[int, int] = field(default_factory=dict)  # of its axes
    shares: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by axis: curve, positions of a unit

    def value(self, removed: Sequence[int]) -> float:
        value = self.whole
        for axis, size in self.sizes.items():
            gone = sum(removed[index] * positions for index, positions in self.shares[axis])
            value *= (size - gone) / size
        return value


class GroupCost:
    """The cost of the whole model while groups lose units in steps; see ``linalg.allocate``.

    Args:
        model: what is to be pruned.
        shapes: of its tensors in one run.
        groups: that may lose units.
        removed: for each group, how many units are gone after 0, 1, 2, … steps.
        unit: multiply-accumulates of weighted layers, or elements of weights, biases and per-channel constants.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        groups: Sequence[Group],
        removed: Sequence[Sequence[int]],
        unit: Unit,
    ) -> None:
        self._removed = removed
        self._terms: list[_Term] = []
        self._of_group: list[list[_Term]] = [[] for _ in groups]
        terms: dict[tuple[int, int], _Term] = {}
        for layer in weighted_layers(model):
            whole = macs(layer, shapes) if unit == "flops" else math.prod(layer.shape)
            terms[(id(layer.node), layer.weight_index)] = _Term(float(whole))
        for index, group in enumerate(groups):
            for slot in group.slots:
                key = (id(slot.node), slot.index)
                if key not in terms:
                    terms[key] = _Term(0.0 if unit == "flops" else float(math.prod(_shape(slot))))
                self._add(terms[key], index, slot)
        self._terms = list(terms.values())

    def total(self, steps: Sequence[int]) -> float:
        """The cost after so many steps of each group."""
        removed = self._units(steps)
        return sum(term.value(removed) for term in self._terms)

    def saving(self, steps: Sequence[int], index: int) -> float:
        """How much less it is after one more step of that group."""
        before = self._units(steps)
        after = list(before)
        after[index] = self._removed[index][steps[index] + 1]
        return sum(term.value(before) - term.value(after) for term in self._of_group[index])

    def _units(self, steps: Sequence[int]) -> list[int]:
        return [removed[step] for removed, step in zip(self._removed, steps, strict=True)]

    def _add(self, term: _Term, index: int, slot: Slot) -> None:
        term.sizes[slot.axis] = _shape(slot)[slot.axis]
        term.shares.setdefault(slot.axis, []).append((index, slot.positions.shape[1]))
        if all(term is not other for other in self._of_group[index]):
            self._of_group[index].append(term)


def _shape(slot: Slot) -> tuple[int, ...]:
    return tuple(int(dim) for dim in shape_of(slot.tensor) or ())  # type: ignore[arg-type]
