"""Products that come nearest to a matrix: against the closed form, brute force, and products drawn at random."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.low_rank import (
    Factors,
    Truncation,
    first_factors,
    last_factor,
    output_loss,
    refined,
    with_middle,
)

Array = np.ndarray[Any, Any]
seeds = st.integers(0, 2**16)


def problem(seed: int, outputs: int = 6, inputs: int = 8) -> tuple[Array, Array]:
    """A weight, and the moment of inputs some of which hardly vary while others go together."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((inputs, inputs)) * np.exp(-np.arange(inputs))
    return rng.standard_normal((outputs, inputs)), mixed @ mixed.T + 0.01 * np.eye(inputs)


def moment_root(H: Array) -> Array:
    values, vectors = np.linalg.eigh(H)
    root: Array = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    return root


@settings(max_examples=20)
@given(seed=seeds, outputs=st.integers(2, 12), rank=st.integers(1, 8))
def test_one_tap_is_the_svd_of_the_whitened_weight(seed: int, outputs: int, rank: int) -> None:
    W, H = problem(seed, outputs)
    rank = min(rank, outputs)
    root = moment_root(H)
    U, s, V = np.linalg.svd(W @ root, full_matrices=False)
    best = (U[:, :rank] * s[:rank]) @ V[:rank] @ np.linalg.inv(root)
    found = Truncation.of(W, H)
    product = found.factors(rank).product()
    assert output_loss(W, H, product) == pytest.approx(output_loss(W, H, best), rel=1e-6, abs=1e-9 * s[0] ** 2)
    assert output_loss(W, H, product) == pytest.approx(found.losses()[rank], rel=1e-6, abs=1e-9 * s[0] ** 2)
    assert found.factors(rank).first.shape == (rank, 8)


@settings(max_examples=20)
@given(seed=seeds)
def test_whitening_beats_the_svd_of_the_weight_alone(seed: int) -> None:
    W, H = problem(seed)
    plain = Truncation.of(W, np.eye(8))
    white = Truncation.of(W, H)
    for rank in range(1, 6):
        assert (
            output_loss(W, H, white.factors(rank).product())
            <= output_loss(W, H, plain.factors(rank).product()) * (1 + 1e-9) + 1e-12
        )
    np.testing.assert_allclose(np.sqrt(plain.values), np.linalg.svd(W)[1], atol=1e-6)


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([1, 2, 3]))
def test_full_rank_is_exact(seed: int, taps: int) -> None:
    W, H = problem(seed, 5, 4 * taps)
    factors = refined(W, H, first_factors(W, H, taps))
    np.testing.assert_allclose(factors.product(), W, atol=1e-5)
    np.testing.assert_allclose(with_middle(factors, H, min(5, 4 * taps)).product(), W, atol=1e-5)


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([2, 3]), rank=st.integers(1, 3))
def test_taps_do_better_than_random_first_factors_and_refining_never_worse(seed: int, taps: int, rank: int) -> None:
    W, H = problem(seed, 5, 4 * taps)
    first = first_factors(W, H, taps)[:rank]
    started = output_loss(W, H, Factors(first, last_factor(W, H, first)).product())
    found = output_loss(W, H, refined(W, H, first, 20).product())
    assert found <= started * (1 + 1e-9)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(20):
        other = rng.standard_normal((rank, 4))
        drawn.append(output_loss(W, H, Factors(other, last_factor(W, H, other)).product()))
    assert found <= np.median(drawn) * (1 + 1e-9)


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([2, 3]))
def test_losses_fall_with_the_rank(seed: int, taps: int) -> None:
    W, H = problem(seed, 5, 4 * taps)
    whole = first_factors(W, H, taps)
    two = [output_loss(W, H, Factors(whole[:r], last_factor(W, H, whole[:r])).product()) for r in range(1, 5)]
    assert all(after <= before * (1 + 1e-6) + 1e-9 for before, after in itertools.pairwise(two))
    three = [output_loss(W, H, with_middle(refined(W, H, whole[:2]), H, s).product()) for s in range(1, 6)]
    assert all(after <= before * (1 + 1e-6) + 1e-9 for before, after in itertools.pairwise(three))


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([1, 2, 3]), rank=st.integers(1, 3))
def test_the_last_factor_is_least_squares(seed: int, taps: int, rank: int) -> None:
    W, H = problem(seed, 5, 4 * taps)
    first = np.random.default_rng(seed).standard_normal((rank, 4))
    spread = np.kron(np.eye(taps), first)
    root = moment_root(H)
    best = np.linalg.lstsq((spread @ root).T, (W @ root).T, rcond=None)[0].T
    factors = Factors(first, last_factor(W, H, first))
    np.testing.assert_allclose(factors.product(), factors.last @ spread, atol=1e-9)
    assert output_loss(W, H, factors.product()) == pytest.approx(output_loss(W, H, best @ spread), rel=1e-4, abs=1e-7)


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([1, 3]))
def test_a_planted_product_is_found(seed: int, taps: int) -> None:
    rng = np.random.default_rng(seed)
    _, H = problem(seed, 5, 4 * taps)
    planted = Factors(rng.standard_normal((2, 4)), rng.standard_normal((5, 2 * taps)))
    W = planted.product()
    found = refined(W, H, first_factors(W, H, taps)[:2])
    assert output_loss(W, H, found.product()) <= 1e-8 * output_loss(W, H, 0 * W)


@settings(max_examples=20)
@given(seed=seeds, taps=st.sampled_from([1, 2]), middle=st.booleans())
def test_normalized_factors_give_the_same_with_variances_of_one(seed: int, taps: int, middle: bool) -> None:
    W, H = problem(seed, 5, 4 * taps)
    factors = refined(W, H, first_factors(W, H, taps)[:2])
    factors = with_middle(factors, H, 2) if middle else factors
    same = factors.normalized(H)
    np.testing.assert_allclose(same.product(), factors.product(), rtol=1e-6, atol=1e-9)
    spread = np.kron(np.eye(taps), same.first)
    variances = np.diag(spread @ H @ spread.T).reshape(taps, -1).mean(axis=0)
    np.testing.assert_allclose(variances, 1.0, rtol=1e-4)
    if same.middle is not None:
        through = same.middle @ spread
        np.testing.assert_allclose(np.diag(through @ H @ through.T), 1.0, rtol=1e-4)


def test_for_one_tap_no_alternating_does_better() -> None:
    W, H = problem(3)
    best = Truncation.of(W, H).losses()[2]
    rng = np.random.default_rng(0)
    for _ in range(5):
        first = rng.standard_normal((2, 8))
        for _ in range(50):  # alternating least squares from anywhere
            second = last_factor(W, H, first)
            first = np.linalg.lstsq(second, W, rcond=None)[0]
        assert output_loss(W, H, second @ first) >= best * (1 - 1e-9)
