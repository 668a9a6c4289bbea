"""Factors with the least expected error, against brute force and real rounding; ranges that are foreseen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcomp.linalg.equalization import Activation, Reader, _Objective, equalize, expected_error
from onnxcomp.linalg.smoothing import rounding_error
from onnxcomp.runtime.peaks import Peaks


def test_activations_alone_fill_their_range() -> None:
    """With weights that cost nothing, every channel is best as wide as the widest."""
    high, worth = np.array([1.0, 4.0, 0.5, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    activation = Activation(np.arange(4), np.zeros(4), high, worth)
    (solution,) = equalize([activation], [], np.ones(4, bool))
    widths = high * np.exp(solution.logs)
    np.testing.assert_allclose(widths, widths.mean(), rtol=0.06)
    assert solution.after / solution.before == pytest.approx((worth * high**2).sum() / (16 * worth.sum()), rel=0.02)


def test_weights_alone_become_alike() -> None:
    """With activations that cost nothing, all weights of the one output are best alike."""
    weight = np.array([[[1.0, 8.0, 0.25]]])
    (solution,) = equalize([], [Reader(np.arange(3), weight, np.ones(3), 1.0)], np.ones(3, bool))
    columns = weight[0, 0] / np.exp(solution.logs)
    np.testing.assert_allclose(columns, columns.mean(), rtol=0.06)


def problem(rng: np.random.Generator) -> tuple[list[Activation], list[Reader]]:
    """Three units, read by two layers in different order, one of them depthwise."""
    low, high = np.exp(rng.standard_normal((2, 3)))
    activation = Activation(np.arange(3), low, high, np.exp(rng.standard_normal(3)))
    plain = Reader(np.array([2, 0, 1]), np.exp(rng.standard_normal((1, 4, 3))), np.exp(rng.standard_normal(3)), 1.0)
    depthwise = Reader(np.arange(3), np.exp(rng.standard_normal((3, 1, 1))), np.ones(3), 2.0)
    return [activation], [plain, depthwise]


@pytest.mark.parametrize("seed", range(5))
def test_factors_are_as_good_as_those_of_brute_force(seed: int) -> None:
    activations, readers = problem(np.random.default_rng(seed))
    (solution,) = equalize(activations, readers, np.ones(3, bool))
    grid = np.linspace(-4, 4, 65)
    # One factor for all changes nothing, so one of them can be fixed.
    best = min(expected_error(np.array([0.0, a, b]), activations, readers) for a, b in itertools.product(grid, grid))
    assert solution.after == pytest.approx(expected_error(solution.logs, activations, readers))
    assert solution.after <= 1.02 * best
    assert solution.before == expected_error(np.zeros(3), activations, readers)


def test_gradients_are_those_of_the_smooth_error() -> None:
    activations, readers = problem(np.random.default_rng(9))
    objective, logs = _Objective(activations, readers, 3), np.array([0.3, -0.2, 0.5])
    for index in range(3):
        step = 1e-6 * np.eye(3)[index]
        difference = objective(logs + step, 8.0)[0] - objective(logs - step, 8.0)[0]
        assert objective(logs, 8.0)[1][index] == pytest.approx(difference / 2e-6, rel=1e-4)


def test_pinned_units_stay_and_bounds_hold() -> None:
    activations, readers = problem(np.random.default_rng(3))
    (solution,) = equalize(activations, readers, np.array([True, False, True]), np.array([0.1, 0.0, np.inf]))
    assert solution.logs[1] == 0
    assert 0 < solution.logs[0] <= 0.1 or solution.logs[0] < 0
    assert equalize(activations, readers, np.zeros(3, bool)) == []


def test_expected_error_is_that_of_rounding() -> None:
    """Against real rounding of both sides, per tensor and per output."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (20000, 32)) * np.exp2(np.linspace(-3, 0, 32))
    weight = rng.standard_normal((16, 32))
    logs = rng.normal(0, 0.5, 32)
    activation = Activation(np.arange(32), -x.min(0), x.max(0), np.square(weight).sum(0))
    reader = Reader(np.arange(32), np.abs(weight)[None], np.square(x).mean(0), 1.0)
    scaled, columns = x * np.exp(logs), weight / np.exp(logs)
    step = (scaled.max() - scaled.min()) / 255
    steps = np.abs(columns).max(1, keepdims=True) / 127
    rounded = np.round(scaled / step) * step @ (np.round(columns / steps) * steps).T
    error = np.square(rounded - x @ weight.T).mean(0).sum()
    assert expected_error(logs, [activation], [reader]) == pytest.approx(error, rel=0.3)


def test_expected_error_is_that_of_smoothing() -> None:
    """For one layer, where the same is done by dividing the activation."""
    rng = np.random.default_rng(1)
    weight, logs = rng.standard_normal((5, 7)), rng.normal(0, 0.5, 7)
    low, high, square = -rng.uniform(0, 2, 7), rng.uniform(0, 2, 7), rng.uniform(0, 1, 7)
    activation = Activation(np.arange(7), -low, high, np.square(weight).sum(0))
    reader = Reader(np.arange(7), np.abs(weight)[None], square, 1.0)
    expected = rounding_error(weight, low, high, square, np.exp(-logs))
    assert expected_error(logs, [activation], [reader]) == pytest.approx(expected)


def test_peaks_do_not_depend_on_batches() -> None:
    values = np.random.default_rng(0).standard_normal((12, 5, 4, 4)).astype(np.float32)
    whole, parts = Peaks(1), Peaks(1)
    whole.update(values)
    for part in np.split(values, 4):
        parts.update(part)
    np.testing.assert_allclose(np.stack(whole.reach(100)), np.stack(parts.reach(100)), rtol=1e-6)
    np.testing.assert_allclose(whole.square, np.square(values).mean((0, 2, 3)), rtol=1e-5)


def test_peaks_foresee_the_largest_of_more_samples() -> None:
    rng = np.random.default_rng(0)
    peaks, more = Peaks(1), rng.gumbel(5, 1, (1000, 40))
    peaks.update(rng.gumbel(5, 1, (128, 40)).astype(np.float32))
    low, high = peaks.reach(1000)
    assert not low.any()
    assert high.mean() == pytest.approx(more.max(0).mean(), rel=0.1)
