"""What a model's weights cost, as a function of how many units each dependency group has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from onnxcomp.graph.constants import shape_of
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.model import Model

__all__ = ["GroupCost"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]
Unit = Literal["flops", "parameters"]


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
        unit: multiply-accumulates of one run, or parameters, as ``graph.cost`` counts them.
    """

    def __init__(
        self,
        model: Model,
        shapes: Shapes,
        groups: Sequence[Group],
        removed: Sequence[Sequence[int]],
        unit: Unit,
    ) -> None:
        whole = cost(model, shapes)
        self._removed = removed
        self._of_group: list[list[_Term]] = [[] for _ in groups]
        terms: dict[tuple[int, int], _Term] = {}
        for index, group in enumerate(groups):
            for slot in group.slots:
                term = terms.setdefault((id(slot.node), slot.index), _Term(_slot_cost(slot, whole, unit)))
                self._add(term, index, slot)
        self._terms = list(terms.values())
        every = whole.flops / 2 if unit == "flops" else whole.parameters
        self._fixed = every - sum(term.whole for term in self._terms)

    def total(self, steps: Sequence[int]) -> float:
        """The cost after so many steps of each group."""
        removed = self._units(steps)
        return self._fixed + sum(term.value(removed) for term in self._terms)

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


def _slot_cost(slot: Slot, whole: Cost, unit: Unit) -> float:
    """What the constant costs: of the layer's multiply-accumulates its weight has all."""
    if unit == "parameters":
        return float(math.prod(_shape(slot)))
    is_weight = slot.layer is not None and slot.index == slot.layer.weight_index
    found = whole.per_layer.get(slot.layer.name) if slot.layer is not None and is_weight else None
    return 0.0 if found is None else float(found.macs)


def _shape(slot: Slot) -> tuple[int, ...]:
    return tuple(int(dim) for dim in shape_of(slot.tensor) or ())  # type: ignore[arg-type]
