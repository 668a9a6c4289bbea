"""What a model's weights cost, as a function of how many units each dependency group has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.graph.constants import shape_of
from onnxcomp.graph.cost import cost
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.model import Model

__all__ = ["GroupCost", "Price", "Prices", "operations", "parameters"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Price:
    """What a constant costs.

    Attributes:
        whole: as it is.
        fixed: the part of it that stays however small the constant becomes.
    """

    whole: float
    fixed: float = 0.0


@dataclass(frozen=True)
class Prices:
    """What a model costs in some unit.

    Attributes:
        total: of the model as it is.
        layers: of whole layers by name, where only these cost anything; None where every constant costs its elements.
    """

    total: float
    layers: Mapping[str, Price] | None = None

    def of(self, slot: Slot) -> Price:
        """The part of it that falls as the constant in a slot becomes smaller: a layer's weight has all of it."""
        if self.layers is None:
            return Price(float(math.prod(_shape(slot))))
        is_weight = slot.layer is not None and slot.index == slot.layer.weight_index
        return self.layers.get(slot.layer.name, Price(0.0)) if slot.layer is not None and is_weight else Price(0.0)

    def of_layer(self, layer: WeightedLayer) -> float:
        """What is saved without the layer."""
        if self.layers is None:
            return 0.0 if layer.shared else float(math.prod(layer.shape))
        return self.layers.get(layer.name, Price(0.0)).whole


def operations(model: Model, shapes: Shapes) -> Prices:
    """Multiply-accumulates of one run, as ``graph.cost`` counts them."""
    whole = cost(model, shapes)
    return Prices(whole.flops / 2, {name: Price(float(found.macs)) for name, found in whole.per_layer.items()})


def parameters(model: Model, shapes: Shapes) -> Prices:
    """Elements of the weights, as ``graph.cost`` counts them."""
    return Prices(cost(model, shapes).parameters)


@dataclass
class _Term:
    """The cost of one constant, which falls with every axis that becomes shorter."""

    price: Price
    sizes: dict[int, int] = field(default_factory=dict)  # of its axes
    shares: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by axis: curve, positions of a unit

    def value(self, removed: Sequence[int]) -> float:
        share = 1.0
        for axis, size in self.sizes.items():
            gone = sum(removed[index] * positions for index, positions in self.shares[axis])
            share *= (size - gone) / size
        return self.price.fixed + (self.price.whole - self.price.fixed) * share


class GroupCost:
    """The cost of the whole model while groups lose units in steps; see ``linalg.allocate``.

    Args:
        prices: of the model as it is.
        groups: that may lose units.
        removed: for each group, how many units are gone after 0, 1, 2, … steps.
    """

    def __init__(self, prices: Prices, groups: Sequence[Group], removed: Sequence[Sequence[int]]) -> None:
        self._removed = removed
        self._of_group: list[list[_Term]] = [[] for _ in groups]
        terms: dict[tuple[int, int], _Term] = {}
        for index, group in enumerate(groups):
            for slot in group.slots:
                term = terms.setdefault((id(slot.node), slot.index), _Term(prices.of(slot)))
                self._add(term, index, slot)
        self._terms = list(terms.values())
        self._fixed = prices.total - sum(term.price.whole for term in self._terms)

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


def _shape(slot: Slot) -> tuple[int, ...]:
    return tuple(int(dim) for dim in shape_of(slot.tensor) or ())  # type: ignore[arg-type]
