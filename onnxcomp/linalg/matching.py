"""Tile matching: permutations that gather the unimportant weights of matrices into whole tiles.

After Ji, Liang, Deng, Zhang, Zhang and Xie, "TETRIS: TilE-matching the TRemendous Irregular Sparsity",
NeurIPS 2018. Two steps alternate, and neither can raise the masked salience:

* E-step: mask exactly ⌊rate · tiles⌋ tiles, those with the smallest sums.
* M-step, one axis at a time: with the mask M (row blocks x column blocks) and the columns held, let S be
  the salience summed over each column block; row i then costs (S Mᵀ)[i, k] in row block k. The paper swaps
  the best pair of rows until no swap gains; the optimum over all permutations is a linear assignment with as
  many slots of a block as it has rows.

Beyond the paper, ``match_coupled`` finds one permutation for axes of several matrices at once, because the
outputs of one layer are the inputs of the next: its costs are sums over all of them.

Salience is rounded to integers of 46 bits in total. Sums of them are exact in float64, in whatever order they
are added: the result depends neither on the number of threads nor on the BLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from onnxcomp.linalg.assignment import assign, assign_nearly, balanced_prices, prices
from onnxcomp.linalg.coupling import Binding, Matrix, Moves, Operand, Use
from onnxcomp.linalg.swaps import swapped
from onnxcomp.linalg.tiles import Block, cheapest_tiles, tile_sums
from onnxcomp.progress import Progress, silent

__all__ = ["Matching", "Method", "Tiling", "match", "match_coupled"]

Array = np.ndarray[Any, Any]
Method: TypeAlias = Literal["assignment", "swap"]

_TOTAL = float(2**46)
_LEAST_GAIN = 1e-3  # part of the masked salience, for one more sweep
_LEAST_SWAP = 1e-3  # of the mean salience of an entry, for one more swap
_MANY = 1024  # units; the exact assignment of so many is left for when a near one gains nothing
_LEVELS = 2**12  # of salience where lines are compared: their products must stay exact too


@dataclass(frozen=True, eq=False)
class Tiling:
    """Permutations of one matrix; ``mask`` is of the tiles of ``salience[rows][:, columns]``.

    Attributes:
        rows, columns: orders; position k holds line order[k].
        mask: (row blocks, column blocks), True where a tile is among the cheapest.
        before, after: masked share of the salience in the given and in the found order.
        history: masked share after each step of the best descent; it never rises.
    """

    rows: Array
    columns: Array
    mask: Array
    before: float
    after: float
    history: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Matching:
    """One order per group.

    Attributes:
        orders: of each group; slot k holds unit order[k]. Ascending where nothing is to be gained.
        before, after: of each operand, the masked share in the given and in the found orders.
        history: masked part of all salience after each step of the best descent; it never rises.
    """

    orders: tuple[Array, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    history: tuple[float, ...]


def match(
    salience: Array,
    block: Block,
    rate: float,
    rng: np.random.Generator,
    starts: int = 2,
    sweeps: int = 20,
    *,
    panels: int = 1,
    method: Method = "assignment",
) -> Tiling:
    """Permute rows and, independently, columns of one matrix so that little salience is masked (the paper).

    Args:
        salience: (rows, columns), non-negative importance of every weight.
        block: rows and columns of a tile; the last ones may be ragged.
        rate: part of the tiles to mask, 0 to 1.
        rng: draws the random starts.
        starts: descents from different orders: sorted, clustered, then random ones; the best is returned.
        sweeps: at most so many alternations of both axes in one descent.
        panels: equal runs of row blocks that mask the same number of tiles each; with the block of
            ``panel_block`` the tiles are whole panels of rows by bands of columns.
        method: of the M-step: the best assignment, or the paper's swaps of pairs.
    """
    rows, columns = (np.arange(size)[:, None] for size in salience.shape)
    operand = Operand(salience, (Binding(0, rows),), (Binding(1, columns),), block, panels=panels)
    found = match_coupled([operand], salience.shape, rate, rng, starts, sweeps, method=method)
    order = found.orders
    mask = cheapest_tiles(tile_sums(salience[order[0]][:, order[1]], block), rate, panels)
    return Tiling(order[0], order[1], mask, found.before[0], found.after[0], found.history)


def match_coupled(
    operands: Sequence[Operand],
    units: Sequence[int],
    rate: float,
    rng: np.random.Generator,
    starts: int = 2,
    sweeps: int = 20,
    least_gain: float = 0.0,
    progress: Progress = silent,
    *,
    method: Method = "assignment",
) -> Matching:
    """One permutation per group of lines, so that over all operands together little salience is masked.

    Args:
        operands: the matrices.
        units: of each group, how many units it has.
        rate: part of the tiles to mask, 0 to 1, of every operand that has no rate of its own.
        rng: draws the random starts.
        starts: descents from different orders: sorted, clustered, then random ones; the best is returned,
            and the given orders when none is better.
        sweeps: at most so many rounds over all groups in one descent.
        least_gain: a group keeps its given order where another gains no more than this part of what is masked
            in its operands.
        progress: shows the sweeps.
        method: of the M-step: the best assignment, or the paper's swaps of pairs.
    """
    search = _Search(operands, units, rate, method)
    given = _State(search, [np.arange(count) for count in units])
    best, history = given, [given.masked]
    for number in range(starts):
        state = _State(search, [search.start(group, number, rng) for group in range(len(units))])
        trace = search.descend(state, progress(range(sweeps), "matching tiles", sweeps))
        if state.masked < best.masked:
            best, history = state, trace
    best.revert(least_gain)
    if best.masked >= given.masked:
        best, history = given, history[:1]
    return Matching(
        tuple(best.orders),
        tuple(given.shares()),
        tuple(best.shares()),
        tuple(masked / max(sum(search.totals), 1.0) for masked in history),
    )


# -- a search ----------------------------------------------------------------------------------------------


class _Search:
    """Matrices and moves of a problem, and its descents."""

    def __init__(self, operands: Sequence[Operand], units: Sequence[int], rate: float, method: Method) -> None:
        scale = _TOTAL / max(sum(operand.importance for operand in operands), 1.0)
        self.rate = rate
        self.method = method
        self.least_swap = _LEAST_SWAP * scale
        self.matrices = [Matrix.of(operand, scale) for operand in operands]
        self.totals = [float(matrix.lines[0].sum()) for matrix in self.matrices]
        self.moves = [Moves.of(tuple(self._uses(group)), self.matrices, count) for group, count in enumerate(units)]

    def _uses(self, group: int) -> list[Use]:
        return [
            Use(index, axis, binding.lines)
            for index, matrix in enumerate(self.matrices)
            for axis in (0, 1)
            for binding in matrix.axes[axis].bindings
            if binding.group == group
        ]

    def start(self, group: int, number: int, rng: np.random.Generator) -> Array:
        """The order in which descent ``number`` begins: sorted, clustered, then random."""
        moves = self.moves[group]
        if not moves.matter:
            return np.arange(len(moves.class_of_slot))
        if number == 0:
            return moves.fill(np.argsort(-_unit_salience(self._parts(moves)), kind="stable"))
        if number == 1:
            return moves.fill(_clustered(self._parts(moves), np.bincount(moves.class_of_slot)))
        return moves.fill(rng.permutation(len(moves.class_of_slot)))

    def _parts(self, moves: Moves) -> list[Array]:
        """The lines of all units, part by part: (units, lines of the other axis)."""
        return [self.matrices[use.matrix].lines[use.axis][part] for use in moves.uses for part in use.lines.T]

    def descend(self, state: _State, sweeps: Iterable[int]) -> list[float]:
        """Alternate both steps over all groups until a sweep gains too little; what is masked after each."""
        trace = [state.masked]
        for _ in sweeps:
            before = state.masked
            for group, moves in enumerate(self.moves):
                if moves.matter:
                    state.improve(group)
                    trace.append(state.masked)
            if before - state.masked <= _LEAST_GAIN * before:
                break
        return trace


def _unit_salience(parts: Sequence[Array]) -> Array:
    salience: Array = np.sum([part.sum(axis=1) for part in parts], axis=0)
    return salience


def _clustered(parts: Sequence[Array], sizes: Array) -> Array:
    """Units in an order where each class gets the heaviest unit left and those that resemble it most.

    Resemblance is the correlation of their lines, which no order of the other axes changes.
    """
    salience = _unit_salience(parts)
    G = np.zeros((len(salience), len(salience)))
    for part in parts:
        lines = np.rint(part * (_LEVELS / max(float(part.max()), 1.0)))
        sums = lines.sum(axis=1)
        G += part.shape[1] * (lines @ lines.T) - np.outer(sums, sums)
    norm = np.sqrt(np.maximum(np.diag(G), 1.0))
    likeness = G / norm[:, None] / norm
    free, sequence = np.ones(len(salience), dtype=bool), []
    for size in sizes:
        seed = int(np.argmax(np.where(free, salience, -1.0)))
        closest = np.where(free, likeness[seed], -np.inf)
        closest[seed] = np.inf
        taken = np.argsort(-closest, kind="stable")[:size]
        free[taken] = False
        sequence.append(taken)
    return np.concatenate(sequence)


# -- one point of a descent --------------------------------------------------------------------------------


@dataclass(eq=False)
class _State:
    """Orders, and what follows from them: lines in place, masks and masked salience of every matrix."""

    search: _Search
    orders: list[Array]
    standing: list[list[Array]] = field(init=False)  # of each matrix and axis
    masks: list[Array] = field(init=False)
    costs: list[float] = field(init=False)
    prices: list[Array | None] = field(init=False)

    def __post_init__(self) -> None:
        matrices = self.search.matrices
        self.standing = [[axis.standing(self.orders) for axis in matrix.axes] for matrix in matrices]
        steps = [self._mask(index, self.standing[index]) for index in range(len(matrices))]
        self.masks, self.costs = [mask for mask, _ in steps], [cost for _, cost in steps]
        self.prices = [None] * len(self.orders)

    @property
    def masked(self) -> float:
        return sum(self.costs)

    def shares(self) -> list[float]:
        return [cost / max(total, 1.0) for cost, total in zip(self.costs, self.search.totals, strict=True)]

    def _mask(self, index: int, standing: Sequence[Array]) -> tuple[Array, float]:
        """E-step of one matrix: its mask as 0 and 1, and the salience under it."""
        matrix = self.search.matrices[index]
        sums = np.add.reduceat(matrix.by_block(0, standing[1])[standing[0]], matrix.axes[0].cuts, axis=0)
        rate = self.search.rate if matrix.rate is None else matrix.rate
        mask = cheapest_tiles(sums, rate, matrix.panels).astype(np.float64)
        return mask, float((sums * mask).sum())

    def improve(self, group: int) -> None:
        """M-step of one group, then the E-step of the matrices that it moves; kept only if that masks less.

        The assignment is the optimum for the masks at hand, except where a group moves both axes of one matrix
        (there it is a linear estimate): hence the check.
        """
        moves, C, before = self.search.moves[group], self._move_costs(group), self.masked
        if self.search.method == "swap":
            own = np.empty_like(moves.class_of_slot)
            own[self.orders[group]] = moves.class_of_slot
            self._assign(group, swapped(C, own, self.search.least_swap))
            return
        price = balanced_prices(C, moves.class_of_slot, self.prices[group])
        if len(C) >= _MANY:
            self.prices[group] = price
            self._assign(group, assign_nearly(C, moves.class_of_slot, price))
            if self.masked < before:
                return
        class_of_unit = assign(C, moves.class_of_slot, price)
        self.prices[group] = prices(C, class_of_unit)
        self._assign(group, class_of_unit)

    def _assign(self, group: int, class_of_unit: Array) -> None:
        self._replace(group, self.search.moves[group].settle(class_of_unit), lambda new, old: new < old)

    def revert(self, least_gain: float) -> None:
        """Give the groups that gain too little their old orders again."""
        for group, moves in enumerate(self.search.moves):
            if moves.matter:
                given = np.arange(len(moves.class_of_slot))
                self._replace(group, given, lambda new, old: new - old <= least_gain * new)

    def _replace(self, group: int, order: Array, better: Callable[[float, float], bool]) -> None:
        """Give a group another order, if that is better by what is masked in its matrices then and now."""
        orders = [*self.orders[:group], order, *self.orders[group + 1 :]]
        standing = {
            index: [axis.standing(orders) for axis in self.search.matrices[index].axes]
            for index in dict.fromkeys(use.matrix for use in self.search.moves[group].uses)
        }
        steps = {index: self._mask(index, lines) for index, lines in standing.items()}
        new = sum(cost for _, cost in steps.values())
        if better(new, sum(self.costs[index] for index in steps)):
            self.orders = orders
            for index, (mask, cost) in steps.items():
                self.standing[index], self.masks[index], self.costs[index] = standing[index], mask, cost

    def _move_costs(self, group: int) -> Array:
        """C (units x classes): salience masked of a unit in a slot of that class, everything else held."""
        moves = self.search.moves[group]
        C = np.zeros((len(moves.class_of_slot), len(moves.first_slot)))
        for use in moves.uses:
            matrix, M = self.search.matrices[use.matrix], self.masks[use.matrix]
            by_block = matrix.by_block(use.axis, self.standing[use.matrix][1 - use.axis])
            costs = by_block @ (M if use.axis else M.T)
            for part in use.lines.T:
                C += costs[part][:, part[moves.first_slot] // matrix.axes[use.axis].size]
        return C
