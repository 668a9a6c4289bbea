"""Panel masks, orders of bands, swaps and second-order salience against brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.assignment import assign
from onnxcomp.linalg.bands import band_order, runs
from onnxcomp.linalg.coupling import Binding, Operand
from onnxcomp.linalg.gptq import damped
from onnxcomp.linalg.masked import masked_least_squares
from onnxcomp.linalg.matching import Method, match, match_coupled
from onnxcomp.linalg.sparsify import removal_losses
from onnxcomp.linalg.swaps import swapped
from onnxcomp.linalg.tiles import cheapest_tiles, masked_share, panel_block, tile_sums

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)
METHODS = pytest.mark.parametrize("method", ["assignment", "swap"])


# -- masks -------------------------------------------------------------------------------------------------


@given(SEEDS, st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 6), st.floats(0, 1))
def test_every_panel_masks_as_many_tiles_and_its_cheapest(
    seed: int, panels: int, high: int, columns: int, rate: float
) -> None:
    sums = np.random.default_rng(seed).integers(0, 5, (panels * high, columns)).astype(float)
    mask = cheapest_tiles(sums, rate, panels)
    count = int(rate * high * columns)
    for part, chosen in zip(np.split(sums, panels), np.split(mask, panels), strict=True):
        assert chosen.sum() == count
        assert part[chosen].sum() == np.sort(part, axis=None)[:count].sum()


def test_what_cannot_be_divided_among_panels_is_refused() -> None:
    with pytest.raises(ValueError, match="3 row blocks cannot be divided among 2 panels"):
        cheapest_tiles(np.ones((3, 4)), 0.5, 2)
    with pytest.raises(ValueError, match="10 rows cannot be divided among 4 panels"):
        panel_block((10, 8), 4, 2)
    assert panel_block((12, 8), 4, 2) == (3, 2)


@METHODS
@settings(deadline=None, max_examples=25)
@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 20), st.integers(1, 4), st.floats(0, 1))
def test_a_match_of_panels_is_what_it_says(
    method: Method, seed: int, panels: int, high: int, columns: int, wide: int, rate: float
) -> None:
    salience = np.random.default_rng(seed).exponential(size=(4 * high, columns))
    block = panel_block(salience.shape, panels, wide)
    found = match(salience, block, rate, np.random.default_rng(0), starts=3, panels=panels, method=method)
    assert sorted(found.rows) == list(range(4 * high))
    assert sorted(found.columns) == list(range(columns))
    permuted = salience[found.rows][:, found.columns]
    np.testing.assert_array_equal(found.mask, cheapest_tiles(tile_sums(permuted, block), rate, panels))
    assert found.mask.shape == (panels, -(-columns // wide))
    assert set(found.mask.sum(axis=1)) == {int(rate * found.mask.shape[1])}
    assert found.before == pytest.approx(masked_share(salience, block, rate, panels), abs=1e-9)
    assert found.after == pytest.approx(masked_share(permuted, block, rate, panels), abs=1e-9)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found.history))


@METHODS
@pytest.mark.parametrize("seed", range(4))
def test_match_finds_the_best_panels_of_all_permutations(method: Method, seed: int) -> None:
    salience = np.random.default_rng(seed).exponential(size=(4, 6))
    optimum = min(
        masked_share(salience[list(rows)][:, list(columns)], (2, 2), 0.67, 2)
        for rows in [(0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)]
        for columns in itertools.permutations(range(6))
    )
    found = match(salience, (2, 2), 0.67, np.random.default_rng(0), starts=40, panels=2, method=method)
    assert found.after == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize("panels", [2, 4])
def test_planted_panels_are_found(panels: int) -> None:
    """Each panel of rows has a light half of the bands of its own."""
    rng = np.random.default_rng(panels)
    light = np.stack([rng.permutation(np.arange(8) < 4) for _ in range(panels)])
    light = light.repeat(64 // panels, axis=0).repeat(8, axis=1)
    salience = np.abs(rng.normal(size=(64, 64))) * np.where(light, 0.05, 1.0)
    oracle = salience[light].sum() / salience.sum()
    shuffled = salience[rng.permutation(64)][:, rng.permutation(64)]
    found = match(shuffled, panel_block((64, 64), panels, 8), 0.5, np.random.default_rng(0), starts=4, panels=panels)
    assert found.after == pytest.approx(oracle, rel=0.01)


def test_operands_may_differ_in_their_panels() -> None:
    rng = np.random.default_rng(0)
    moves = (Binding(0, np.arange(16)[:, None]),)
    operands = [
        Operand(rng.exponential(size=(16, 8)), moves, (), (4, 2), panels=2),
        Operand(rng.exponential(size=(12, 16)), (), moves, (3, 4), panels=4),
    ]
    found = match_coupled(operands, [16], 0.5, rng, starts=4)
    (order,) = found.orders
    shares = (
        masked_share(operands[0].salience[order], (4, 2), 0.5, 2),
        masked_share(operands[1].salience[:, order], (3, 4), 0.5, 4),
    )
    np.testing.assert_allclose(found.after, shares, atol=1e-9)
    assert sum(found.after) < sum(found.before)


# -- swaps -------------------------------------------------------------------------------------------------


def swapped_naively(cost: Array, own: Array, least: float) -> Array:
    own = own.copy()
    while True:
        pairs = [
            (cost[i, own[i]] + cost[j, own[j]] - cost[i, own[j]] - cost[j, own[i]], i, j)
            for i, j in itertools.combinations(range(len(own)), 2)
        ]
        gain, i, j = max(pairs)
        if gain < least:
            return own
        own[[i, j]] = own[[j, i]]


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 14), st.integers(1, 4))
def test_swaps_are_those_of_the_largest_gain(seed: int, units: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    own = rng.permutation(np.arange(units) // size)
    cost = rng.normal(size=(units, own.max() + 1))  # no ties
    found = swapped(cost, own, 1e-3)
    np.testing.assert_array_equal(found, swapped_naively(cost, own, 1e-3))
    np.testing.assert_array_equal(np.bincount(found), np.bincount(own))
    best = cost[np.arange(units), assign(cost, np.sort(own))].sum()
    assert best - 1e-9 <= cost[np.arange(units), found].sum() <= cost[np.arange(units), own].sum() + 1e-9


# -- orders of bands ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 4), st.integers(1, 6))
def test_bands_are_ordered_for_the_fewest_runs(seed: int, panels: int, bands: int) -> None:
    kept = np.random.default_rng(seed).random((panels, bands)) < 0.5
    order = band_order(kept)
    assert sorted(order) == list(range(bands))
    assert runs(kept[:, order]) == min(runs(kept[:, list(other)]) for other in itertools.permutations(range(bands)))


@given(SEEDS, st.integers(0, 20))
def test_two_panels_read_a_slice_each_and_unread_bands_come_last(seed: int, bands: int) -> None:
    kept = np.random.default_rng(seed).random((2, bands)) < 0.5
    ordered = kept[:, band_order(kept)]
    assert runs(ordered) == np.count_nonzero(kept.any(axis=1))
    read = int(np.count_nonzero(kept.any(axis=0)))
    assert ordered[:, :read].any(axis=0).all()


def test_all_kinds_of_bands_of_four_panels() -> None:
    """A Gray code visits them all, each a step from the last: sixteen edges, eight runs."""
    kept = np.array(list(itertools.product([False, True], repeat=4))).T
    assert runs(kept[:, band_order(kept)]) == 8


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_many_panels_get_no_more_runs_than_the_given_order(seed: int) -> None:
    kept = np.random.default_rng(seed).random((8, 40)) < 0.5
    order = band_order(kept)
    assert sorted(order) == list(range(40))
    assert runs(kept[:, order]) <= runs(kept)


# -- second-order salience ---------------------------------------------------------------------------------


def test_losses_of_removal_are_those_of_least_squares_without_the_weight() -> None:
    rng = np.random.default_rng(0)
    W = rng.normal(size=(2, 3, 8))
    X = rng.normal(size=(2, 8, 30)) * rng.exponential(size=(2, 8, 1))
    H = X @ X.swapaxes(1, 2)
    found = removal_losses(W, H, kernel=2)
    assert found.shape == (2, 3, 4)
    expected, full = np.zeros((2, 3, 8)), damped(H, 0.01)
    for j in range(8):
        kept = np.broadcast_to(np.arange(8) != j, W.shape)
        change = masked_least_squares(W, full, kept, steps=200) - W
        expected[:, :, j] = ((change @ full) * change).sum(axis=2)
    np.testing.assert_allclose(found, expected.reshape(2, 3, 4, 2).sum(axis=3), rtol=1e-6)


def test_tiles_of_the_least_losses_are_matched() -> None:
    rng = np.random.default_rng(1)
    W, X = rng.normal(size=(1, 32, 64)), rng.normal(size=(64, 500)) * rng.exponential(size=(64, 1)) ** 2
    losses = removal_losses(W, (X @ X.T)[None])[0]
    found = match(losses, (8, 8), 0.5, np.random.default_rng(0))
    assert found.after < 0.5 * found.before
