"""Rounding weights for their outputs, against brute force and closed forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.gptq import Levels, damped, descend, gptq, output_error, rescaling
from onnxcomp.linalg.int8 import can_saturate
from onnxcomp.linalg.rounding import Precision, divisor, round_for_outputs, round_nearest
from onnxcomp.linalg.weights import best_steps, grid_of_few_bits

Array = np.ndarray[Any, Any]


def correlated(rng: np.random.Generator, groups: int, size: int) -> Array:
    """Second moments of inputs that go up and down together."""
    X = rng.standard_normal((groups, size, 4 * size)) + 2.0 * rng.standard_normal((groups, 1, 4 * size))
    return damped(X @ X.swapaxes(1, 2) / (4 * size), 0.01)


def problem(seed: int, groups: int, outputs: int, size: int) -> tuple[Array, Array, Levels]:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((groups, outputs, size))
    steps = np.abs(W).max(axis=2, keepdims=True) / 7
    return W, correlated(rng, groups, size), Levels(steps, -8, 7)


def loss(W: Array, H: Array, levels: Levels, codes: Array) -> float:
    return float(output_error(W, H, codes * levels.steps).sum())


def least_loss(w: Array, H: Array, step: float, low: int, high: int) -> float:
    """Of all roundings of each weight up or down."""
    floors = np.floor(w / step)
    choices = itertools.product((0, 1), repeat=len(w))
    candidates = np.clip([floors + choice for choice in choices], low, high) * step - w
    return float(np.einsum("ki,ij,kj->k", candidates, H, candidates).min())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.integers(2, 6))
def test_descent_never_does_worse_than_where_it_starts_and_comes_near_the_optimum(seed: int, size: int) -> None:
    W, H, levels = problem(seed, 2, 3, size)
    nearest = levels.nearest(W)
    found = descend(W, H, levels, gptq(W, H, levels))
    best = sum(
        least_loss(W[g, o], H[g], float(levels.steps[g, o, 0]), levels.low, levels.high)
        for g in range(2)
        for o in range(3)
    )
    assert loss(W, H, levels, descend(W, H, levels, nearest)) <= loss(W, H, levels, nearest) * (1 + 1e-9)
    assert loss(W, H, levels, found) <= loss(W, H, levels, gptq(W, H, levels)) * (1 + 1e-9)
    # Over all rows together; a single row of six inputs may be twice as bad.
    assert loss(W, H, levels, found) <= 2.0 * best + 1e-12


def test_on_average_it_is_close_to_the_optimum_and_far_better_than_the_nearest_levels() -> None:
    W, H, levels = problem(3, 20, 10, 6)
    best = sum(
        least_loss(W[g, o], H[g], float(levels.steps[g, o, 0]), levels.low, levels.high)
        for g in range(20)
        for o in range(10)
    )
    found = loss(W, H, levels, descend(W, H, levels, gptq(W, H, levels)))
    assert best * 0.9 <= found <= 1.15 * best
    assert found <= 0.5 * loss(W, H, levels, levels.nearest(W))


@pytest.mark.parametrize("size", [5, 200])  # one block of columns, and two
def test_uncorrelated_inputs_are_rounded_to_the_nearest_level(size: int) -> None:
    rng = np.random.default_rng(0)
    W, _, levels = problem(1, 2, 4, size)
    H = np.stack([np.diag(rng.uniform(0.1, 3.0, size)) for _ in range(2)])
    codes = gptq(W, H, levels)
    np.testing.assert_array_equal(codes, levels.nearest(W))
    np.testing.assert_array_equal(descend(W, H, levels, codes), codes)


def test_gptq_is_what_the_paper_computes_with_the_inverse_of_h() -> None:
    """Rounds one input after the other and updates those to come by the Cholesky factor of the inverse of H."""
    W, H, levels = problem(5, 1, 4, 150)
    order = np.argsort(-np.diag(H[0]), kind="stable")
    w, h = W[0][:, order].copy(), H[0][np.ix_(order, order)]
    U = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.empty_like(w)
    for j in range(150):
        step = levels.steps[0, :, 0]
        codes[:, j] = np.clip(np.rint(w[:, j] / step), levels.low, levels.high)
        w[:, j:] -= np.outer((w[:, j] - codes[:, j] * step) / U[j, j], U[j, j:])
    expected = np.empty_like(codes)
    expected[:, order] = codes
    agreement = np.mean(gptq(W, H, levels)[0] == expected)
    assert agreement > 0.99, "all but ties of rounding"


def test_the_factor_of_scales_is_the_minimum_of_a_parabola() -> None:
    W, H, levels = problem(7, 2, 3, 8)
    codes = levels.nearest(0.8 * W)
    factors = rescaling(W, H, levels, codes)[:, :, None]
    errors = [output_error(W, H, codes * levels.steps * factors * change).sum() for change in (0.99, 1.0, 1.01)]
    assert errors[1] < errors[0]
    assert errors[1] < errors[2]


def test_damping_makes_a_singular_matrix_positive_definite() -> None:
    x = np.array([[1.0, 2.0, 0.0]])
    for matrix in (x.T @ x, np.zeros((3, 3))):
        np.linalg.cholesky(damped(matrix[None], 0.0)[0])


# -- grids of few bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (2, -2, 1)])
def test_steps_are_the_best_of_a_fine_search(bits: int, low: int, high: int) -> None:
    rng = np.random.default_rng(0)
    rows, importance = rng.standard_t(3, (6, 64)), rng.uniform(0.1, 1.0, (6, 64))
    steps = best_steps(rows, importance, bits)

    def error(step: Array) -> Array:
        return ((Levels(step[:, None], low, high).nearest(rows) * step[:, None] - rows) ** 2 * importance).sum(axis=1)

    finest = np.min(
        [error(fraction * np.abs(rows).max(axis=1) / high) for fraction in np.linspace(0.05, 1.1, 400)], axis=0
    )
    assert np.all(error(steps) <= 1.1 * finest)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), blocks=st.integers(1, 4), most=st.sampled_from([7, 15]))
def test_blocks_have_factors_that_fit_and_integers_that_fit_8_bits(seed: int, blocks: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((3, 16 * blocks)) * np.exp(rng.standard_normal((3, 1)))
    grid = grid_of_few_bits(rows, np.ones(1), 4, 16, most)
    weights = grid.nearest(rows)
    assert grid.factors is not None
    assert grid.factors.shape == (3, blocks)
    assert 1 <= grid.factors.min() <= grid.factors.max() <= most
    assert weights.codes.min() >= -8
    assert weights.codes.max() <= 7
    exact = weights.codes.astype(int) * grid.multiples(rows.shape[1]).astype(int)
    np.testing.assert_array_equal(weights.integers, exact)
    np.testing.assert_allclose(weights.restored, exact * grid.scales[:, None].astype(np.float64))


def test_blocks_divide_the_inputs_evenly() -> None:
    assert [divisor(inputs, 32) for inputs in (64, 96, 100, 17, 32, 33)] == [32, 32, 25, 0, 0, 0]
    assert divisor(64, 0) == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [0, 16])
def test_rounding_for_outputs_halves_the_error_and_never_saturates(bits: int, block: int) -> None:
    rng = np.random.default_rng(1)
    W, H = rng.standard_normal((1, 24, 64)), correlated(rng, 1, 64)
    precision = Precision(bits, block, avoid_saturation=True)
    found, plain = round_for_outputs(W, H, precision), round_nearest(W[0], precision)
    errors = [output_error(W, H, weights.restored[None]).sum() for weights in (found, plain)]
    assert errors[0] < 0.6 * errors[1]
    assert not can_saturate(found.integers).any()
    np.testing.assert_array_equal(found.codes, round_for_outputs(W, H, precision).codes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        damped(np.full((1, 2, 2), value), 0.01)
