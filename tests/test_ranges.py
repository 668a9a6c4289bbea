"""Ranges from histograms, against brute force on the values themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.linalg.ranges import candidates, choose, entropy, grid, minmax, mse, percentile, quantization_noise

Array = np.ndarray[Any, Any]


def histogram(values: Array, bins: int = 2048) -> tuple[Array, Array]:
    return np.histogram(values, bins=bins)


def rounding_error(values: Array, low: float, high: float, levels: int) -> float:
    """Mean squared error on the values, written out."""
    scale, zero = grid(low, high, levels)
    codes = np.clip(np.rint(values / scale) + zero, 0, levels - 1)
    return float(np.mean(((codes - zero) * scale - values) ** 2))


def draw(kind: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.standard_normal(20000)
    if kind == "rectified":
        return np.maximum(rng.standard_normal(20000), 0)
    if kind == "heavy":
        return rng.standard_t(3, 20000)
    return np.concatenate([rng.standard_normal(20000), [60.0]])


@pytest.mark.parametrize("kind", ["normal", "rectified", "heavy", "outlier"])
@pytest.mark.parametrize("levels", [16, 256])
def test_mse_comes_close_to_the_best_range_of_a_full_search(kind: str, levels: int) -> None:
    values = draw(kind, 0)
    found = rounding_error(values, *mse(*histogram(values), levels), levels)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    factors = np.linspace(0.02, 1, 50)
    best = min(rounding_error(values, low * a, high * b, levels) for a in (factors if low else [1.0]) for b in factors)
    assert found <= 1.1 * best
    assert found <= rounding_error(values, low, high, levels)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    coverage=st.sampled_from([0.9, 0.99, 0.9999]),
    offset=st.sampled_from([0, -3, 4]),
)
def test_percentile_leaves_out_the_share_it_says(seed: int, coverage: float, offset: float) -> None:
    values = np.random.default_rng(seed).standard_normal(5000) + offset
    counts, edges = histogram(values)
    low, high = percentile(counts, edges, coverage)
    widest_bin = counts.max() / len(values)
    assert np.mean((values < low) | (values > high)) <= 1 - coverage + 2 * widest_bin
    exact = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    for found, wanted in ((low, min(0.0, exact[0])), (high, max(0.0, exact[1]))):
        between = (values > min(found, wanted)) & (values < max(found, wanted))
        assert between.mean() <= widest_bin + 1 / len(values)


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-1e4, 0, allow_subnormal=False),
    high=st.floats(0, 1e4, allow_subnormal=False),
    levels=st.sampled_from([16, 128, 256]),
)
def test_grid_has_zero_and_stays_inside(low: float, high: float, levels: int) -> None:
    scale, zero = grid(low, high, levels)
    assert scale > 0
    assert 0 <= zero < levels
    if high - low > 1e-30:
        assert (levels - 1 - zero) * scale <= high + 0.5 * scale + 1e-6 * high
        assert (0 - zero) * scale >= low - 0.5 * scale + 1e-6 * low
    if low == 0:
        assert zero == 0
        assert np.float32(levels - 1) * np.float32(scale) <= np.float32(high) or high < 1e-30


def test_noise_matches_the_values() -> None:
    values = draw("heavy", 3)
    signal, noise = quantization_noise(*histogram(values), -4.0, 5.0, 256)
    assert signal == pytest.approx(np.mean(values**2), rel=1e-3)
    assert noise == pytest.approx(rounding_error(values, -4.0, 5.0, 256), rel=0.05)


def test_empty_and_constant_histograms() -> None:
    empty = np.zeros(4, np.int64), np.linspace(0, 1, 5)
    assert minmax(*empty) == (0.0, 0.0)
    assert percentile(*empty) == (0.0, 0.0)
    assert mse(*empty) == (0.0, 0.0)
    assert grid(0.0, 0.0) == (1.0, 0)
    constant = np.array([7]), np.array([2.5, 2.5])
    for method in ("minmax", "percentile", "mse"):
        assert choose(method, *constant) == pytest.approx((0.0, 2.5), rel=0.02)  # type: ignore[arg-type]


def divergence_written_out(values: Array, low: float, high: float, edges: Array, levels: int) -> float:
    """Kullback-Leibler divergence of the values, clipped, from what is left of them on the levels."""
    inside = (values >= low) & (values <= high)
    centres = (edges[:-1] + edges[1:]) / 2
    kept = [index for index, centre in enumerate(centres) if low <= centre <= high]
    bins = np.histogram(values, edges)[0].astype(float)
    p = bins[kept]
    p[0] += bins[: kept[0]].sum()
    p[-1] += bins[kept[-1] + 1 :].sum()
    q = np.zeros(len(kept))
    for level in range(levels):
        members = [index for index in range(len(kept)) if index * levels // len(kept) == level]
        filled = [index for index in members if bins[kept[index]] > 0]
        for index in filled:
            q[index] = sum(bins[kept[member]] for member in members) / len(filled)
    assert inside.any()
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0))


@pytest.mark.parametrize("kind", ["normal", "rectified", "heavy", "outlier"])
def test_entropy_picks_the_candidate_of_least_divergence(kind: str) -> None:
    values = draw(kind, 3)
    counts, edges = histogram(values, 512)
    low, high = minmax(counts, edges)
    found = divergence_written_out(values, *entropy(counts, edges, 32), edges, 32)
    for factor in (1.0, 0.75, 0.5, 0.25, 0.125):
        if ((edges[:-1] >= factor * low) & (edges[1:] <= factor * high)).sum() > 32:
            assert found <= divergence_written_out(values, factor * low, factor * high, edges, 32) + 1e-9


def test_candidates_are_ranges_of_every_kind_the_widest_first() -> None:
    counts, edges = histogram(draw("heavy", 4))
    found = candidates(counts, edges)
    assert found[0] == minmax(counts, edges)
    assert {mse(counts, edges), percentile(counts, edges), entropy(counts, edges)} <= set(found)
    widths = [high - low for low, high in found]
    assert widths == sorted(widths, reverse=True)
