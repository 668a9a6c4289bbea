"""Matrices that share what moves their lines: the outputs of one layer are the inputs of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.linalg.tiles import Block

__all__ = ["Binding", "Matrix", "Moves", "Operand", "Use"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Binding:
    """Lines of an axis that move when the units of a group move.

    Attributes:
        group: which group.
        lines: (units, width); when unit i is put into slot k, line lines[i, t] goes to position lines[k, t].
            The lines of all bindings of an axis are disjoint.
    """

    group: int
    lines: Array


@dataclass(frozen=True, eq=False)
class Operand:
    """A matrix to be tiled, and what moves its axes. An axis without bindings keeps its order.

    Attributes:
        salience: (rows, columns), non-negative; only its proportions count.
        rows, columns: of each axis, the groups that move its lines.
        block: rows and columns of a tile.
        weight: of each entry, against those of other operands (the weights of a kernel, say).
        panels: equal runs of row blocks that mask the same number of tiles each, see ``cheapest_tiles``.
        rate: part of its tiles to mask, where that is not the search's.
    """

    salience: Array
    rows: tuple[Binding, ...]
    columns: tuple[Binding, ...]
    block: Block
    weight: float = 1.0
    panels: int = 1
    rate: float | None = None

    @property
    def importance(self) -> float:
        """Weight of the whole operand."""
        return self.weight * self.salience.size


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of an operand: what moves its lines, and how its positions are cut into blocks."""

    bindings: tuple[Binding, ...]
    lines: int
    size: int

    @property
    def cuts(self) -> Array:
        """First position of each block."""
        return np.arange(0, self.lines, self.size)

    def standing(self, orders: Sequence[Array]) -> Array:
        """Which line stands at each position."""
        standing = np.arange(self.lines)
        for binding in self.bindings:
            standing[binding.lines] = binding.lines[orders[binding.group]]
        return standing


@dataclass(frozen=True, eq=False)
class Matrix:
    """An operand in integers. An axis that nothing moves is summed to its blocks once and for all."""

    lines: tuple[Array, Array]  # the salience by rows, and by columns (its transpose), both contiguous
    axes: tuple[Axis, Axis]
    panels: int
    rate: float | None

    @classmethod
    def of(cls, operand: Operand, scale: float) -> Matrix:
        salience = np.asarray(operand.salience, dtype=np.float64)
        total = float(salience.sum())
        salience = np.round(salience * (scale * operand.importance / total if total > 0 else 0.0))
        axes = []
        for axis, (bindings, size) in enumerate(zip((operand.rows, operand.columns), operand.block, strict=True)):
            if not bindings:
                salience = np.add.reduceat(salience, np.arange(0, salience.shape[axis], size), axis=axis)
                size = 1
            axes.append(Axis(bindings, salience.shape[axis], size))
        lines = np.ascontiguousarray(salience), np.ascontiguousarray(salience.T)
        return cls(lines, (axes[0], axes[1]), operand.panels, operand.rate)

    def by_block(self, axis: int, standing: Array) -> Array:
        """The lines of one axis, summed over the blocks of the other axis: (lines, blocks)."""
        sums: Array = np.add.reduceat(np.take(self.lines[axis], standing, axis=1), self.axes[1 - axis].cuts, axis=1)
        return sums


@dataclass(frozen=True, eq=False)
class Use:
    """A place where a group moves lines."""

    matrix: int
    axis: int
    lines: Array


@dataclass(frozen=True, eq=False)
class Moves:
    """What is the same in every M-step of a group.

    Slots that lie in the same blocks of every matrix cost the same: they form one class.
    """

    uses: tuple[Use, ...]
    class_of_slot: Array
    first_slot: Array  # of each class

    @classmethod
    def of(cls, uses: tuple[Use, ...], matrices: Sequence[Matrix], units: int) -> Moves:
        blocks = [np.zeros((units, 1), dtype=np.intp)]
        blocks += [use.lines // matrices[use.matrix].axes[use.axis].size for use in uses]
        _, first, classes = np.unique(np.hstack(blocks), axis=0, return_index=True, return_inverse=True)
        return cls(uses, classes.reshape(-1), first)

    @property
    def matter(self) -> bool:
        """Whether any order differs from another."""
        return len(self.first_slot) > 1

    def settle(self, class_of_unit: Array) -> Array:
        """The order that puts units into slots of their classes, the lower unit into the lower slot."""
        order = np.empty(len(class_of_unit), dtype=np.intp)
        order[np.argsort(self.class_of_slot, kind="stable")] = np.argsort(class_of_unit, kind="stable")
        return order

    def fill(self, sequence: Array) -> Array:
        """The order that fills the classes with units one after another, in this sequence."""
        class_of_unit = np.empty_like(self.class_of_slot)
        class_of_unit[sequence] = np.sort(self.class_of_slot)
        return self.settle(class_of_unit)
