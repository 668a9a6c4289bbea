"""Tiles, assignment and tile matching against brute force, planted tiles and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from onnxcomp.linalg.assignment import assign, assign_nearly, balanced_prices, prices
from onnxcomp.linalg.coupling import Binding, Operand
from onnxcomp.linalg.matching import match, match_coupled
from onnxcomp.linalg.tiles import cheapest_tiles, fitted_block, masked_share, tile_sums

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)


def lines(count: int) -> Array:
    return np.arange(count)[:, None]


def planted(size: int, seed: int) -> tuple[Array, float]:
    """Half of the 8 x 8 tiles, drawn at random, are .0438 times as heavy; then rows and columns are shuffled.

    Returns the matrix and the share of all salience in the planted tiles.
    """
    rng = np.random.default_rng(seed)
    tiles = size // 8
    light = rng.permutation(np.arange(tiles * tiles) < tiles * tiles // 2).reshape(tiles, tiles)
    light = np.kron(light, np.ones((8, 8), dtype=bool))
    salience = np.abs(rng.normal(size=(size, size))) * np.where(light, 0.0438, 1.0)
    oracle = float(salience[light].sum() / salience.sum())
    return salience[rng.permutation(size)][:, rng.permutation(size)], oracle


# -- tiles -------------------------------------------------------------------------------------------------


def test_a_block_is_reduced_until_it_cuts_every_axis_that_can_be_cut() -> None:
    assert fitted_block((64, 64), (8, 8)) == (8, 8)
    assert fitted_block((10, 3), (8, 8)) == (5, 2)
    assert fitted_block((1, 16), (8, 8)) == (1, 8)


def test_ragged_tiles_sum_what_is_there() -> None:
    salience = np.arange(35.0).reshape(5, 7)
    expected = [[salience[i : i + 2, j : j + 3].sum() for j in (0, 3, 6)] for i in (0, 2, 4)]
    np.testing.assert_array_equal(tile_sums(salience, (2, 3)), expected)


@given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_the_mask_is_exactly_the_cheapest_tiles(seed: int, rows: int, columns: int, rate: float) -> None:
    sums = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(float)
    mask = cheapest_tiles(sums, rate)
    assert mask.sum() == int(rate * sums.size)
    assert sums[mask].sum() == np.sort(sums, axis=None)[: mask.sum()].sum()


def test_masked_share_of_nothing_is_nothing() -> None:
    assert masked_share(np.zeros((4, 4)), (2, 2), 0.5) == 0.0
    assert masked_share(np.eye(4), (2, 2), 0.5) == 0.0
    assert masked_share(np.ones((4, 4)), (2, 2), 0.5) == 0.5


# -- assignment --------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_assignment_is_the_best_of_all_whatever_prices_are_known(seed: int, capacities: list[int]) -> None:
    rng = np.random.default_rng(seed)
    slots = np.repeat(np.arange(len(capacities)), capacities)[:6]
    cost = rng.integers(0, 9, (len(slots), slots[-1] + 1)).astype(float)
    best = min(cost[list(order), slots].sum() for order in itertools.permutations(range(len(slots))))
    for known in (None, rng.integers(-9, 9, cost.shape[1]).astype(float)):
        found = assign(cost, slots, known)
        assert sorted(found) == list(slots)
        assert cost[np.arange(len(slots)), found].sum() == best


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.integers(60, 300), st.integers(1, 9))
def test_assignment_of_many_units_is_what_the_plain_solver_finds(seed: int, units: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    slots = rng.permutation(np.arange(units) // size)
    cost = rng.integers(0, 10**6, (units, slots.max() + 1)).astype(float)
    rows, columns = linear_sum_assignment(cost[:, slots])
    for known in (
        None,
        rng.integers(0, 10**6, cost.shape[1]).astype(float),
        prices(cost, assign(cost, slots)),
    ):
        found = assign(cost, slots, known)
        np.testing.assert_array_equal(np.bincount(found), np.bincount(slots))
        assert cost[np.arange(units), found].sum() == cost[rows, slots[columns]].sum()


@settings(deadline=None)
@given(SEEDS)
def test_at_the_prices_of_an_optimum_every_unit_prefers_its_own_class(seed: int) -> None:
    cost = np.random.default_rng(seed).integers(0, 1000, (12, 4)).astype(float)
    own = assign(cost, np.repeat(np.arange(4), 3))
    reduced = cost - prices(cost, own)
    np.testing.assert_array_equal(reduced[np.arange(12), own], reduced.min(axis=1))


def product_costs(units: int, size: int, seed: int) -> tuple[Array, Array]:
    """All units like the same classes, some more than others; and the class of each slot."""
    rng = np.random.default_rng(seed)
    slots = rng.permutation(np.arange(units) // min(size, units // 2))
    classes = slots.max() + 1
    return rng.gamma(4.0, size=(units, 1)) * rng.gamma(4.0, size=classes) + rng.random((units, classes)), slots


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(2, 300), st.integers(1, 9))
def test_the_near_assignment_fills_all_slots_at_any_prices(seed: int, units: int, size: int) -> None:
    cost, slots = product_costs(units, size, seed)
    best = cost[np.arange(units), assign(cost, slots)].sum()
    for price in (np.zeros(cost.shape[1]), np.random.default_rng(seed).random(cost.shape[1])):
        found = assign_nearly(cost, slots, price)
        np.testing.assert_array_equal(np.bincount(found), np.bincount(slots))
        assert cost[np.arange(units), found].sum() >= best - 1e-6


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("units", [64, 300, 1024])
def test_at_balanced_prices_the_near_assignment_costs_little_more_than_the_best(units: int, size: int) -> None:
    cost, slots = product_costs(units, size, seed=0)
    found = assign_nearly(cost, slots, balanced_prices(cost, slots))
    best = cost[np.arange(units), assign(cost, slots)].sum()
    assert cost[np.arange(units), found].sum() <= 1.01 * best


# -- one matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_match_finds_the_optimum_of_all_permutations(seed: int) -> None:
    salience = np.random.default_rng(seed).exponential(size=(4, 6))
    optimum = min(
        masked_share(salience[list(rows)][:, list(columns)], (2, 2), 0.5)
        for rows in [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)]  # every way to pair four rows
        for columns in itertools.permutations(range(6))
    )
    found = match(salience, (2, 2), 0.5, np.random.default_rng(0), starts=30)
    assert found.after == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize(("size", "seed"), [(64, 0), (64, 1), (128, 2), (256, 3)])
def test_match_finds_planted_tiles(size: int, seed: int) -> None:
    salience, oracle = planted(size, seed)
    found = match(salience, (8, 8), 0.5, np.random.default_rng(0))
    assert found.before > 0.4
    assert oracle - 1e-9 <= found.after <= 0.052
    assert found.after == pytest.approx(oracle, rel=0.02)


@pytest.mark.parametrize("number", range(3))
def test_every_kind_of_start_finds_planted_tiles(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.linalg import matching

    start = matching._Search.start
    monkeypatch.setattr(matching._Search, "start", lambda self, group, _, rng: start(self, group, number, rng))
    salience, _ = planted(128, 0)
    assert match(salience, (8, 8), 0.5, np.random.default_rng(0), starts=1).after <= 0.052


def test_many_lines_are_matched_as_well_by_near_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.linalg import matching

    rng = np.random.default_rng(0)
    uneven = rng.exponential(size=(192, 160)) * np.exp(rng.normal(size=(192, 1)) + rng.normal(size=160))
    for salience in (planted(128, 0)[0], uneven):
        exact = match(salience, (8, 8), 0.5, np.random.default_rng(0))
        monkeypatch.setattr(matching, "_MANY", 2)
        found = match(salience, (8, 8), 0.5, np.random.default_rng(0))
        assert all(later <= earlier for earlier, later in itertools.pairwise(found.history))
        assert found.after == pytest.approx(exact.after, rel=0.02)
        monkeypatch.undo()


def test_match_gains_little_where_there_is_nothing_to_find() -> None:
    found = match(np.abs(np.random.default_rng(0).normal(size=(256, 256))), (8, 8), 0.5, np.random.default_rng(0))
    assert found.before - 0.05 < found.after < found.before


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 21), st.integers(1, 21), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_a_match_is_what_it_says(seed: int, rows: int, columns: int, high: int, wide: int, rate: float) -> None:
    salience = np.random.default_rng(seed).exponential(size=(rows, columns))
    found = match(salience, (high, wide), rate, np.random.default_rng(0), starts=3)
    assert sorted(found.rows) == list(range(rows))
    assert sorted(found.columns) == list(range(columns))
    permuted = salience[found.rows][:, found.columns]
    assert found.before == pytest.approx(masked_share(salience, (high, wide), rate), abs=1e-9)
    assert found.after == pytest.approx(masked_share(permuted, (high, wide), rate), abs=1e-9)
    assert found.after <= found.before
    assert all(later <= earlier for earlier, later in itertools.pairwise(found.history))
    assert found.after == pytest.approx(tile_sums(permuted, (high, wide))[found.mask].sum() / salience.sum())


def test_the_same_seed_gives_the_same_orders() -> None:
    salience = np.random.default_rng(5).exponential(size=(64, 48))
    one, two = (match(salience, (8, 8), 0.5, np.random.default_rng(3), starts=4) for _ in range(2))
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.columns, two.columns)


# -- coupled matrices --------------------------------------------------------------------------------------


def chain(rng: np.random.Generator) -> list[Operand]:
    """Two layers of a chain: the rows of the first are the columns of the second; nothing else moves."""
    return [
        Operand(rng.exponential(size=(6, 4)), (Binding(0, lines(6)),), (), (2, 2)),
        Operand(rng.exponential(size=(5, 6)), (), (Binding(0, lines(6)),), (2, 3)),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_coupled_match_finds_the_optimum_over_all_its_matrices(seed: int) -> None:
    first, second = chain(np.random.default_rng(seed))

    def objective(order: Array) -> float:
        shares = (
            masked_share(first.salience[order], (2, 2), 0.5),
            masked_share(second.salience[:, order], (2, 3), 0.5),
        )
        return float(24 * shares[0] + 30 * shares[1])

    optimum = min(objective(np.array(order)) for order in itertools.permutations(range(6)))
    found = match_coupled([first, second], [6], 0.5, np.random.default_rng(0), starts=40)
    assert objective(found.orders[0]) == pytest.approx(optimum, abs=1e-9)
    assert found.history[-1] * 54 == pytest.approx(optimum, abs=1e-9)


def test_operands_count_by_size_not_by_scale() -> None:
    first, second = chain(np.random.default_rng(7))
    scaled = Operand(first.salience * 1e6, first.rows, first.columns, first.block)
    plain = match_coupled([first, second], [6], 0.5, np.random.default_rng(0))
    found = match_coupled([scaled, second], [6], 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(plain.orders[0], found.orders[0])


def test_units_of_several_lines_move_together() -> None:
    """Flatten: unit i owns columns 2 i and 2 i + 1. Planted: even units are light in even rows' blocks."""
    rng = np.random.default_rng(0)
    salience = rng.exponential(size=(4, 16))
    wide = np.arange(16).reshape(8, 2)
    found = match_coupled([Operand(salience, (), (Binding(0, wide),), (2, 4))], [8], 0.5, rng, starts=30)
    optimum = min(
        masked_share(salience[:, wide[list(order)].ravel()], (2, 4), 0.5)
        for order in itertools.permutations(range(8))
        if order[0] < order[1] and order[2] < order[3] and order[4] < order[5] and order[6] < order[7]
    )
    assert found.after[0] == pytest.approx(optimum, abs=1e-9)
    assert masked_share(salience[:, wide[found.orders[0]].ravel()], (2, 4), 0.5) == pytest.approx(found.after[0])


def test_lines_of_no_group_stay_and_two_groups_may_share_an_axis() -> None:
    rng = np.random.default_rng(1)
    columns = (Binding(0, lines(8)), Binding(1, 8 + lines(8)))  # Concat of two groups, then 4 fixed lines
    operand = Operand(rng.exponential(size=(12, 20)), (), columns, (3, 4))
    found = match_coupled([operand], [8, 8], 0.5, rng)
    permuted = operand.salience[:, np.concatenate([found.orders[0], 8 + found.orders[1], np.arange(16, 20)])]
    assert found.after[0] == pytest.approx(masked_share(permuted, (3, 4), 0.5), abs=1e-9)
    assert found.after[0] < found.before[0]


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_a_group_on_both_axes_of_a_matrix_never_makes_it_worse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    both = (Binding(0, lines(12)),)
    found = match_coupled([Operand(rng.exponential(size=(12, 12)), both, both, (3, 3))], [12], 0.5, rng)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found.history))
    assert found.after[0] <= found.before[0]


def test_a_group_that_no_block_can_tell_apart_keeps_its_order() -> None:
    operand = Operand(np.random.default_rng(0).exponential(size=(4, 4)), (Binding(0, lines(4)),), (), (4, 2))
    found = match_coupled([operand], [4, 3], 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(found.orders[0], np.arange(4))
    np.testing.assert_array_equal(found.orders[1], np.arange(3))


def test_no_salience_at_all_changes_nothing() -> None:
    found = match(np.zeros((8, 8)), (2, 2), 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(found.rows, np.arange(8))
    assert found.before == found.after == 0.0


def test_a_matrix_may_have_a_rate_of_its_own() -> None:
    rng = np.random.default_rng(5)
    salience = np.abs(rng.normal(size=(24, 32)))
    bindings = (Binding(0, np.arange(24)[:, None]),), (Binding(1, np.arange(32)[:, None]),)
    own = match_coupled([Operand(salience, *bindings, (4, 4), rate=0.25)], [24, 32], 0.6, np.random.default_rng(0))
    same = match_coupled([Operand(salience, *bindings, (4, 4))], [24, 32], 0.25, np.random.default_rng(0))
    assert own.after == same.after
    assert all(np.array_equal(a, b) for a, b in zip(own.orders, same.orders, strict=True))
