"""Least squares behind pruning, against NumPy's own and against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.allocate import allocate
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import (
    DAMPING,
    Reader,
    damping_for,
    fitted,
    least_squares,
    norm_order,
    prediction_error,
    removal_order,
    scaled,
)

Array = np.ndarray[Any, Any]


def samples(rng: np.random.Generator, count: int, inputs: int, rank: int | None = None) -> Array:
    """Correlated, with means that are not zero."""
    mixing = rng.standard_normal((rank or inputs, inputs))
    return rng.standard_normal((count, len(mixing))) @ mixing + 3 * rng.standard_normal(inputs)


def moments_of(x: Array, y: Array | None = None) -> Moments:
    moments = Moments.none(1, x.shape[1], 0 if y is None else y.shape[1])
    moments.add(x[None], None if y is None else y[None])
    return moments


def residual(x: Array, y: Array) -> float:
    """What is left of y when the best affine function of x is taken off: mean over the samples."""
    design = np.column_stack([x, np.ones(len(x))])
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.square(y - design @ solution).sum() / len(x))


# -- moments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [40, 41], [0, 50, 50]])
def test_moments_in_batches_are_those_of_all_samples(cuts: list[int]) -> None:
    rng = np.random.default_rng(0)
    x, y = (np.stack([samples(rng, 60, size) for _ in range(2)]) for size in (5, 3))
    moments = Moments.none(2, 5, 3)
    for x_part, y_part in zip(np.split(x, cuts, 1), np.split(y, cuts, 1), strict=True):
        moments.add(x_part, y_part)
    assert moments.count == 60
    for group in range(2):
        expected = np.cov(y[group], x[group], rowvar=False, bias=True)
        np.testing.assert_allclose(moments.covariance[group], expected[3:, 3:])
        np.testing.assert_allclose(moments.cross_covariance[group], expected[:3, 3:])
        np.testing.assert_allclose(moments.output_variance[group], np.diag(expected)[:3])
    np.testing.assert_allclose(moments.mean, x.mean(axis=1))
    np.testing.assert_allclose(moments.output_mean, y.mean(axis=1))


def test_moments_of_two_sets_add_up() -> None:
    rng = np.random.default_rng(1)
    x, y = samples(rng, 50, 4), samples(rng, 50, 2)
    both, whole = moments_of(x[:13], y[:13]) + moments_of(x[13:], y[13:]), moments_of(x, y)
    for name in ("count", "mean", "output_mean", "xx", "yx", "yy"):
        np.testing.assert_allclose(getattr(both, name), getattr(whole, name), err_msg=name)
    for sum_ in (whole + Moments.none(1, 4, 2), Moments.none(1, 4, 2) + whole):
        np.testing.assert_allclose(sum_.xx, whole.xx)
    assert (Moments.none(1, 4, 2) + Moments.none(1, 4, 2)).count == 0


def test_large_means_do_not_drown_small_deviations() -> None:
    rng = np.random.default_rng(2)
    deviations = rng.integers(-8, 9, (1000, 3)) / 8
    moments = Moments.none(1, 3)
    for part in np.split((deviations + 20_000).astype(np.float32), 10):  # exact in float32, their squares are not
        moments.add(part[None])
    np.testing.assert_allclose(moments.covariance[0], np.cov(deviations, rowvar=False, bias=True), rtol=1e-4, atol=1e-4)


def test_values_that_are_not_finite_are_noticed() -> None:
    x = np.ones((4, 2))
    assert moments_of(x, x).finite
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[1, 1] = bad
        with np.errstate(invalid="ignore"):
            assert not moments_of(spoilt).finite
            assert not moments_of(x, spoilt).finite


# -- removal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
def test_loss_of_a_unit_is_what_a_refit_leaves(width: int) -> None:
    """tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ) against a regression on the other inputs, for every unit."""
    rng = np.random.default_rng(3)
    x, W = samples(rng, 400, 12), rng.standard_normal((5, 12))
    columns = np.arange(12).reshape(-1, width)
    H = moments_of(x).covariance
    reader = Reader(W[None], H, columns, damping=0.0)
    energy = np.trace(W @ H[0] @ W.T)
    assert reader.energy == pytest.approx(energy)
    expected = [residual(np.delete(x, unit, axis=1), x @ W.T) / energy for unit in columns]
    found = removal_order([reader], 1)
    order, losses = found.order, found.losses
    assert order[0] == np.argmin(expected)
    assert losses[1] == pytest.approx(min(expected), rel=1e-6)


@pytest.mark.parametrize("width", [1, 2])
def test_losses_of_a_sequence_add_up_to_what_a_refit_leaves(width: int) -> None:
    rng = np.random.default_rng(4)
    x, W = samples(rng, 400, 12), rng.standard_normal((5, 12))
    columns = np.arange(12).reshape(-1, width)
    reader = Reader(W[None], moments_of(x).covariance, columns, damping=0.0)
    found = removal_order([reader], len(columns) - 1)
    order, losses = found.order, found.losses
    assert len(set(order.tolist())) == len(columns) - 1
    for count in range(len(columns)):
        gone = columns[order[:count]].reshape(-1)
        left = residual(np.delete(x, gone, axis=1), x @ W.T) / reader.energy
        assert losses[count] == pytest.approx(left, rel=1e-6, abs=1e-9)


def test_weights_along_a_sequence_are_what_a_refit_gives() -> None:
    rng = np.random.default_rng(14)
    x, W = samples(rng, 400, 12), rng.standard_normal((5, 12))
    H = moments_of(x).covariance
    found = removal_order([Reader(W[None], H, np.arange(12)[:, None], damping=0.02)], 8, (0.25, 1.0))
    assert sorted(found.weights) == [2, 8]
    for count, (fitted_W,) in found.weights.items():
        left = np.setdiff1d(np.arange(12), found.order[:count])
        assert not fitted_W[0][:, found.order[:count]].any()
        # damped towards the original: the regression of the whole output, the original as its prior
        cross, inner = W @ H[0][:, left], H[0][np.ix_(left, left)]
        level = 0.02 * np.diag(H[0]).mean() / np.diag(inner).mean()
        np.testing.assert_allclose(
            fitted_W[0][:, left], least_squares(W[:, left], cross, inner, level), rtol=1e-7, atol=1e-9
        )


def test_a_curve_goes_through_what_was_measured() -> None:
    losses = np.array([0.0, 0.01, 0.1, 1.0, 10.0])
    np.testing.assert_allclose(scaled(losses, [1], [0.05]), 5 * losses)
    np.testing.assert_allclose(scaled(losses, [1, 3], [0.01, 4.0]), [0.0, 0.01, 0.2, 4.0, 40.0])
    np.testing.assert_allclose(scaled(losses, [2, 3], [0.5, 0.2]), [0.0, 0.05, 0.5, 0.5, 2.0])
    np.testing.assert_allclose(scaled(np.array([0.0, 0.0, 2.0]), [2], [1.0]), [0.0, 0.0, 1.0])


def test_batches_of_removals_lose_hardly_more_than_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    x, W = samples(rng, 2000, 64, rank=40) + 0.1 * rng.standard_normal((2000, 64)), rng.standard_normal((8, 64))
    reader = Reader(W[None], moments_of(x).covariance, np.arange(64)[:, None])
    exact = removal_order([reader], 48).losses
    monkeypatch.setattr("onnxcomp.linalg.reconstruct.ROUNDS", 8)
    batched = removal_order([reader], 48).losses
    assert not np.array_equal(exact, batched)
    assert batched[-1] <= 1.1 * exact[-1]


def test_readers_are_summed_relative_to_their_outputs() -> None:
    """The scale of a reader does not count; a unit goes that neither reader needs."""
    H = np.eye(3)[None]
    first = Reader(np.array([[[3.0, 1.0, 1.0]]]), H, np.arange(3)[:, None], damping=0.0)
    second = Reader(1e3 * np.array([[[0.1, 3.0, 0.2]]]), H, np.arange(3)[:, None], damping=0.0)
    found = removal_order([first, second], 2)
    order, losses = found.order, found.losses
    assert order.tolist() == [2, 0]
    assert losses[1] == pytest.approx(1 / 11 + 0.04 / (9 + 0.05))


def test_inputs_that_never_vary_are_free_and_go_first() -> None:
    rng = np.random.default_rng(6)
    x = samples(rng, 200, 6)
    x[:, [1, 4]] = 7.0
    reader = Reader(10 * rng.standard_normal((1, 3, 6)), moments_of(x).covariance, np.arange(6)[:, None])
    found = removal_order([reader], 3)
    order, losses = found.order, found.losses
    assert sorted(order[:2].tolist()) == [1, 4]
    assert losses[2] == 0.0
    assert losses[3] > 0.0


@pytest.mark.parametrize("H", [np.zeros((4, 4)), np.ones((4, 4)), np.diag([1.0, 0.0, 0.0, 1e-30])])
@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_singular_covariances_are_damped_until_they_can_be_solved(H: Array, damping: float) -> None:
    W = np.ones((2, 4))
    found = removal_order([Reader(W[None], H[None], np.arange(4)[:, None], damping)], 3)
    order, losses = found.order, found.losses
    assert len(set(order.tolist())) == 3
    assert np.isfinite(losses).all()
    assert np.isfinite(least_squares(W, W @ H, H, damping)).all()


def test_damping_grows_where_samples_are_few() -> None:
    assert damping_for(10_000, 100) == DAMPING
    assert damping_for(80, 100) == pytest.approx(10 * DAMPING)
    assert damping_for(0, 100) > 1.0


def test_without_data_small_weights_of_small_units_go_first() -> None:
    W = np.array([[[1.0, 2.0, 3.0, 0.0]]])
    order, losses = norm_order([(W, np.arange(4)[:, None])], np.array([1.0, 9.0, 1.0, 5.0]), 3)
    assert order.tolist() == [3, 0, 2]
    np.testing.assert_allclose(losses, np.array([0, 0, 1, 10]) / (1 + 36 + 9))


# -- reconstruction ----------------------------------------------------------------------------------------


def test_without_damping_the_fit_is_that_of_lstsq() -> None:
    rng = np.random.default_rng(7)
    x, y = samples(rng, 300, 6), samples(rng, 300, 4)
    moments = moments_of(x, y)
    W = least_squares(rng.standard_normal((4, 6)), moments.cross_covariance[0], moments.covariance[0], 0.0)
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(300)]), y, rcond=None)[0].T
    np.testing.assert_allclose(W, expected[:, :6], rtol=1e-6, atol=1e-8)
    b = moments.output_mean - W @ moments.mean[0]
    np.testing.assert_allclose(b[0], expected[:, 6], rtol=1e-6, atol=1e-6)
    error = prediction_error(W[None], b, moments)
    assert error == pytest.approx(residual(x, y) / float(y.var(axis=0).sum()), rel=1e-6)


def test_damping_pulls_towards_the_prior() -> None:
    rng = np.random.default_rng(8)
    x, y, prior = samples(rng, 100, 5), samples(rng, 100, 3), rng.standard_normal((3, 5))
    moments = moments_of(x, y)
    cross, H = moments.cross_covariance[0], moments.covariance[0]
    lam = 0.1 * np.diag(H).mean()
    expected = (cross + lam * prior) @ np.linalg.inv(H + lam * np.eye(5))
    np.testing.assert_allclose(least_squares(prior, cross, H, 0.1), expected)
    np.testing.assert_allclose(least_squares(prior, cross, H, 1e9), prior, atol=1e-6)


def test_what_a_duplicate_gave_its_twin_takes_over() -> None:
    rng = np.random.default_rng(9)
    x, W = samples(rng, 500, 6), rng.standard_normal((4, 6))
    x[:, 5] = x[:, 0]
    y = x @ W.T
    left = x[:, :5]
    fit, b, error = fitted(W[None, :, :5], moments_of(left[:400], y[:400]), moments_of(left[400:], y[400:]))
    assert error < 1e-4
    np.testing.assert_allclose(fit[0, :, 0], W[:, 0] + W[:, 5], atol=0.1)
    kept, plain = moments_of(left, y), W[None, :, :5]
    assert prediction_error(plain, kept.output_mean - plain[0] @ kept.mean[0], kept) > 100 * error
    assert np.isfinite(b).all()


def test_the_damping_is_the_one_that_held_out_samples_like() -> None:
    """Few samples of many inputs, the prior right: an undamped fit would learn the noise."""
    rng = np.random.default_rng(10)
    truth = rng.standard_normal((3, 40))
    x = rng.standard_normal((140, 40))
    y = x @ truth.T + rng.standard_normal((140, 3))
    fitting, held_out = moments_of(x[:50], y[:50]), moments_of(x[50:], y[50:])
    W, _, error = fitted(truth[None], fitting, held_out)
    loose = least_squares(truth, fitting.cross_covariance[0], fitting.covariance[0], 0.003)
    b = fitting.output_mean - loose @ fitting.mean[0]
    assert error < 0.8 * prediction_error(loose[None], b, held_out)
    assert np.square(W[0] - truth).mean() < np.square(loose - truth).mean()


def test_a_single_sample_changes_the_bias_alone() -> None:
    rng = np.random.default_rng(11)
    x, y, prior = rng.standard_normal((1, 4)), rng.standard_normal((1, 2)), rng.standard_normal((1, 2, 4))
    W, b, error = fitted(prior, moments_of(x, y), Moments.none(1, 4, 2))
    np.testing.assert_allclose(W, prior)
    np.testing.assert_allclose(prior[0] @ x[0] + b[0], y[0])
    assert error == 0.0


def test_few_samples_damp_a_fit_that_nothing_was_held_out_from() -> None:
    rng = np.random.default_rng(12)
    x, prior = rng.standard_normal((10, 40)), rng.standard_normal((1, 1, 40))
    y = rng.standard_normal((10, 1))
    W, _, _ = fitted(prior, moments_of(x, y), Moments.none(1, 40, 1))
    moments = moments_of(x, y)
    expected = least_squares(prior[0], moments.cross_covariance[0], moments.covariance[0], damping_for(10, 40))
    np.testing.assert_allclose(W[0], expected)


# -- allocation --------------------------------------------------------------------------------------------


class Separable:
    """Each curve saves the same with every step."""

    def __init__(self, saved: Sequence[float]) -> None:
        self.saved = saved

    def total(self, steps: Sequence[int]) -> float:
        return 100.0 - sum(step * each for step, each in zip(steps, self.saved, strict=True))

    def saving(self, steps: Sequence[int], index: int) -> float:  # noqa: ARG002
        return self.saved[index]


def exhaustive(losses: Sequence[Array], cost: Separable, limit: float) -> float:
    """The least total loss of all ways to stay within the limit."""
    ways = itertools.product(*[range(len(curve)) for curve in losses])
    return min(total_loss(losses, steps) for steps in ways if cost.total(steps) <= limit)


def total_loss(losses: Sequence[Array], steps: Sequence[int]) -> float:
    return float(sum(curve[step] for curve, step in zip(losses, steps, strict=True)))


CURVES = st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), min_size=1, max_size=4)


def convex(increments: Sequence[Sequence[float]]) -> list[Array]:
    return [np.concatenate([[0.0], np.cumsum(sorted(curve))]) for curve in increments]


@settings(max_examples=60, deadline=None)
@given(CURVES, st.floats(0, 1))
def test_equal_savings_are_allocated_at_the_least_loss(increments: list[list[float]], part: float) -> None:
    losses = convex(increments)
    cost = Separable([1.0] * len(losses))
    limit = 100.0 - part * sum(len(curve) - 1 for curve in losses)
    steps = allocate(losses, cost, limit)
    assert cost.total(steps) <= limit
    assert total_loss(losses, steps) == pytest.approx(exhaustive(losses, cost, limit))


@settings(max_examples=60, deadline=None)
@given(CURVES, st.data())
def test_unequal_savings_lose_at_most_a_step_more_than_the_best(increments: list[list[float]], data: Any) -> None:
    losses = convex(increments)
    saved = [data.draw(st.floats(0.5, 5)) for _ in losses]
    cost = Separable(saved)
    reach = sum(each * (len(curve) - 1) for each, curve in zip(saved, losses, strict=True))
    limit = 100.0 - data.draw(st.floats(0, 1)) * reach
    steps = allocate(losses, cost, limit)
    assert cost.total(steps) <= limit + 1e-6
    step = max(float(np.diff(curve).max()) for curve in losses)
    assert total_loss(losses, steps) <= exhaustive(losses, cost, limit + 1e-6) + step + 1e-9


def test_what_costs_nothing_is_taken_and_what_costs_all_is_not() -> None:
    curves = [np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, np.inf, np.inf]), np.array([0.0, 5.0])]
    cost = Separable([1.0, 1.0, 1.0])
    assert allocate(curves, cost, 100.0) == [2, 0, 0]
    assert allocate(curves, cost, 97.0) == [3, 0, 0]
    assert allocate(curves, cost, 0.0) == [3, 0, 1]  # out of reach
    assert allocate([], Separable([]), 0.0) == []


def test_steps_that_turn_out_needless_are_taken_back() -> None:
    curves = [np.array([0.0, 1.0]), np.array([0.0, 4.0])]  # the first is cheaper for what it saves, and too little
    assert allocate(curves, Separable([1.0, 3.0]), 97.5) == [0, 1]
