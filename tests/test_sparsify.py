"""Zeros among weights, against brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.allocate import equal_marginal_shares
from onnxcomp.linalg.gptq import Levels, damped, descend, gptq, output_error
from onnxcomp.linalg.masked import kept_weights, masked_least_squares
from onnxcomp.linalg.patterns import Blocks, Elements, NofM, largest
from onnxcomp.linalg.sparsify import Splitting, mask_by

Array = np.ndarray[Any, Any]


def problem(seed: int, outputs: int, size: int, groups: int = 1) -> tuple[Array, Array]:
    """Weights, and second moments of inputs that go up and down together."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((groups, size, 4 * size)) * rng.uniform(0.3, 3.0, (groups, size, 1))
    X += 2.0 * rng.standard_normal((groups, 1, 4 * size))
    return rng.standard_normal((groups, outputs, size)), damped(X @ X.swapaxes(1, 2) / (4 * size), 0.01)


def exact(w: Array, H: Array, kept: Array) -> Array:
    """The best weights of one row with such zeros, in closed form."""
    S = np.flatnonzero(kept)
    result = np.zeros_like(w)
    if len(S):
        result[S] = np.linalg.solve(H[np.ix_(S, S)], H[S] @ w)
    return result


def loss(W: Array, H: Array, kept: Array) -> float:
    return float(output_error(W, H, masked_least_squares(W, H, kept, steps=200)).sum())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(1, 12), groups=st.integers(1, 2))
def test_masked_least_squares_is_the_closed_form(seed: int, size: int, groups: int) -> None:
    W, H = problem(seed, 3, size, groups)
    kept = np.random.default_rng(seed).random(W.shape) < 0.5
    found = masked_least_squares(W, H, kept, steps=300)
    assert not found[~kept].any()
    for g, o in np.ndindex(*W.shape[:2]):
        best = exact(W[g, o], H[g], kept[g, o])
        np.testing.assert_allclose(found[g, o], best, atol=1e-2 * np.abs(W[g, o]).max())  # it stops at a small gradient
        losses = [float((X - W[g, o]) @ H[g] @ (X - W[g, o])) for X in (found[g, o], best, W[g, o] * kept[g, o])]
        assert losses[0] <= losses[1] + 1e-5 * losses[2]  # what it makes least


def test_a_few_steps_are_no_worse_than_the_start() -> None:
    W, H = problem(0, 4, 30)
    kept = Elements(0.5).kept(np.square(W))
    losses = [float(output_error(W, H, masked_least_squares(W, H, kept, steps=steps)).sum()) for steps in range(8)]
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.8 * losses[0]


def test_masks_by_outputs_come_near_the_best_of_all_masks() -> None:
    """Over many rows of eight inputs, of which four go."""
    best, found, by_size = 0.0, 0.0, 0.0
    for seed in range(40):
        W, H = problem(seed, 1, 8)
        masks = [np.isin(np.arange(8), S)[None, None] for S in itertools.combinations(range(8), 4)]
        best += min(loss(W, H, mask) for mask in masks)
        found += loss(W, H, mask_by("obs", W, H, Elements(0.5)))
        by_size += loss(W, H, mask_by("magnitude", W, H, Elements(0.5)))
    assert found <= 1.2 * best
    assert by_size > 1.5 * best


@pytest.mark.parametrize("pattern", [Elements(0.6), NofM(2, 4), Blocks(0.5, 2, 4)], ids=str)
def test_masks_by_outputs_lose_less_than_scores_of_single_weights(pattern: Any) -> None:
    W, H = problem(3, 16, 64)
    losses = {score: loss(W, H, mask_by(score, W, H, pattern)) for score in ("obs", "wanda", "magnitude")}
    assert losses["obs"] < 0.97 * min(losses["wanda"], losses["magnitude"])


def test_wanda_weighs_by_the_inputs() -> None:
    W, H = np.array([[[1.0, 2.0]]]), np.diag([16.0, 1.0])[None]
    assert mask_by("wanda", W, H, Elements(0.5)).tolist() == [[[True, False]]]
    assert mask_by("magnitude", W, H, Elements(0.5)).tolist() == [[[False, True]]]


def test_a_mask_never_brings_a_zero_back() -> None:
    W, H = problem(5, 8, 16)
    W[0, :, ::2] = 0.0
    assert not Splitting(W, H).mask(Elements(0.25))[0, :, ::2].any()


# -- patterns ----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**16),
    st.integers(1, 5),
    st.integers(1, 13),
    st.sampled_from([1, 4, 9]),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8)]),
)
def test_n_of_m_neighbouring_channels_are_left(
    seed: int, outputs: int, channels: int, kernel: int, form: tuple[int, int]
) -> None:
    n, m = form
    scores = np.random.default_rng(seed).random((2, outputs, channels * kernel))
    kept = NofM(n, m, kernel).kept(scores).reshape(2, outputs, channels, kernel)
    split = scores.reshape(kept.shape)
    for start in range(0, channels, m):
        part, chosen = split[:, :, start : start + m], kept[:, :, start : start + m]
        assert (chosen.sum(axis=2) == min(n, part.shape[2])).all()
        left = np.where(chosen, part, np.inf).min(axis=2)
        gone = np.where(chosen, -np.inf, part).max(axis=2)
        assert (left >= gone).all()


def test_blocks_go_whole() -> None:
    scores = np.random.default_rng(0).random((1, 10, 6 * 9))
    kept = Blocks(0.5, 4, 4, kernel=9).kept(scores)[0].reshape(10, 6, 9)
    tiles = [kept[top : top + 4, left : left + 4] for top in (0, 4, 8) for left in (0, 4)]
    assert all(tile.all() or not tile.any() for tile in tiles)
    assert sum(bool(tile.all()) for tile in tiles) == 3


def test_so_many_elements_are_left_whatever_is_equal() -> None:
    assert largest(np.ones(7), 3).tolist() == [True] * 3 + [False] * 4
    assert Elements(0.5).kept(np.zeros((1, 3, 5))).sum() == 8
    assert (Elements(0.5, by_output=True).kept(np.random.default_rng(0).random((1, 3, 4))).sum(axis=2) == 2).all()


def test_few_zeros_are_no_mask() -> None:
    W = np.ones((1, 2, 8))
    assert kept_weights(W) is None
    W[0, 0, 0] = 0.0
    assert kept_weights(W) is None
    W[0, 1, 0] = 0.0
    kept = kept_weights(W)
    assert kept is not None
    assert int(kept.sum()) == 14


# -- what else keeps or uses it ----------------------------------------------------------------------------


def test_rounding_by_outputs_leaves_zeros() -> None:
    W, H = problem(1, 6, 24)
    W = masked_least_squares(W, H, Elements(0.5).kept(np.square(W)))
    levels = Levels(np.abs(W).max(axis=2, keepdims=True) / 7, -8, 7)
    codes = gptq(W, H, levels)
    assert not codes[W == 0].any()
    assert not descend(W, H, levels, codes)[W == 0].any()


def test_shares_have_equal_marginal_losses() -> None:
    """Losses a·s² of equal layers: the best shares are as 1/a."""
    shares = np.linspace(0.0, 0.9, 901)
    losses = np.stack([np.square(shares) * a for a in (1.0, 2.0, 4.0)])
    sizes = np.full(3, 1000.0)
    found = equal_marginal_shares(losses, shares, sizes, 0.35 * 3000)
    np.testing.assert_allclose(found, [0.6, 0.3, 0.15], atol=2e-3)
    np.testing.assert_allclose(found @ sizes, 1050, rtol=1e-9)
    assert equal_marginal_shares(losses, shares, sizes, 3000).tolist() == [0.9] * 3


@pytest.mark.parametrize(("size", "block"), [(36, 32), (36, 8), (20, 8)])
def test_blocks_at_the_edges_count_as_the_weights_they_hold(size: int, block: int) -> None:
    scores = np.random.default_rng(1).random((1, size, size))
    zeros = 1.0 - Blocks(0.5, block, block).kept(scores).mean()
    assert abs(zeros - 0.5) <= block * block / size / size / 2 + 0.01 or block == 32
    assert zeros > 0.1
