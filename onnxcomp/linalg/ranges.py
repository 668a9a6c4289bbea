"""Where to cut a tensor's values off before they are rounded to a few levels, decided on its histogram.

A histogram is ``counts`` (bins,) and ``edges`` (bins + 1,), ascending. A range is (low, high), the real
values that the lowest and the highest level stand for.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

__all__ = [
    "Grid",
    "Method",
    "candidates",
    "choose",
    "entropy",
    "grid",
    "minmax",
    "mse",
    "percentile",
    "quantization_noise",
]

Array = np.ndarray[Any, Any]
Method = Literal["mse", "percentile", "entropy", "minmax"]
Grid = tuple[float, int]
"""Scale and zero point."""

# Share of the values that the percentile range covers, as in Wu et al. 2020, "Integer quantization for deep
# learning inference" (arXiv:2004.09602), which found 99.99 % to suit most networks.
COVERAGE = 0.9999
# Other shares worth trying: how many of the outliers matter depends on what reads them.
_COVERAGES = (0.99999, 0.9999, 0.999, 0.99)
_STEPS = 48
_SWEEPS = 3


def choose(method: Method, counts: Array, edges: Array, levels: int = 256) -> tuple[float, float]:
    """The range by a method's name."""
    if method == "minmax":
        return minmax(counts, edges)
    if method == "percentile":
        return percentile(counts, edges)
    if method == "entropy":
        return entropy(counts, edges, levels)
    return mse(counts, edges, levels)


def candidates(counts: Array, edges: Array, levels: int = 256) -> list[tuple[float, float]]:
    """Ranges that may serve best, each once, the widest first: all values, and what the methods cut off."""
    found = {minmax(counts, edges), mse(counts, edges, levels), entropy(counts, edges, levels)}
    found |= {percentile(counts, edges, coverage) for coverage in _COVERAGES}
    return sorted(found, key=lambda item: (item[0] - item[1], item))


def minmax(counts: Array, edges: Array) -> tuple[float, float]:
    """All values, and zero, which padding and rectifiers need to be exact."""
    filled = np.flatnonzero(counts)
    if not filled.size:
        return 0.0, 0.0
    return min(0.0, float(edges[filled[0]])), max(0.0, float(edges[filled[-1] + 1]))


def percentile(counts: Array, edges: Array, coverage: float = COVERAGE) -> tuple[float, float]:
    """The smallest range, both tails cut alike, that leaves out at most 1 - ``coverage`` of the values.

    Values are taken to be spread evenly within their bin.
    """
    total = counts.sum()
    if total == 0:
        return 0.0, 0.0
    below = np.concatenate([[0.0], np.cumsum(counts) / total])
    tail = (1 - coverage) / 2
    # Between two bins with nothing between them any value is a quantile: the outermost one loses nothing.
    first = max(int(np.searchsorted(below, tail, side="right")) - 1, 0)
    last = min(int(np.searchsorted(below, 1 - tail, side="left")), len(below) - 1)
    low = _interpolate(tail, below, edges, first, first + 1)
    high = _interpolate(1 - tail, below, edges, last - 1, last)
    return min(0.0, low), max(0.0, high)


def mse(counts: Array, edges: Array, levels: int = 256) -> tuple[float, float]:
    """The range with the least mean squared error of rounding inside and clipping outside.

    Both ends are shrunk together first, then in turn (coordinate descent on a grid of factors of the full
    range), as in Banner et al. 2019, "Post training 4-bit quantization of convolutional networks"
    (arXiv:1810.05723), which solves it for fixed distributions.
    """
    low, high = minmax(counts, edges)
    if low == high:
        return low, high
    factors = np.linspace(1.0, 1.0 / _STEPS, _STEPS)
    filled = counts > 0
    values, weights = ((edges[:-1] + edges[1:]) / 2)[filled], counts[filled].astype(np.float64)
    a, b = _best(values, weights, low * factors, high * factors, levels)
    for _ in range(_SWEEPS):
        before = (a, b)
        if low < 0:
            a, b = _best(values, weights, low * factors, np.full(_STEPS, b), levels, (a, b))
        if high > 0:
            a, b = _best(values, weights, np.full(_STEPS, a), high * factors, levels, (a, b))
        if (a, b) == before:
            break
    return a, b


def entropy(counts: Array, edges: Array, levels: int = 256) -> tuple[float, float]:
    """The range whose levels keep most of the distribution: least Kullback-Leibler divergence from it.

    Values outside are counted in the outermost bins inside. Of the candidates, 48 fractions of the full range on
    both sides alike, those with fewer bins than levels are left out (Migacz 2017, "8-bit inference with
    TensorRT").
    """
    low, high = minmax(counts, edges)
    centres = (edges[:-1] + edges[1:]) / 2
    best, least = (low, high), np.inf
    for factor in np.linspace(1.0, 1.0 / _STEPS, _STEPS):
        inside = np.flatnonzero((centres >= factor * low) & (centres <= factor * high))
        if len(inside) < levels:
            break
        first, last = inside[0], inside[-1] + 1
        divergence = _divergence(counts, first, last, levels)
        if divergence < least:
            best, least = (factor * low, factor * high), divergence
    return best


def _divergence(counts: Array, first: int, last: int, levels: int) -> float:
    """Of the bins first … last - 1, holding everything, from the same bins evened out within each level."""
    bins = counts[first:last].astype(np.float64)
    clipped = bins.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(bins)) * levels // len(bins)
    filled = bins > 0
    total = np.bincount(level, bins, levels)
    share = np.bincount(level, filled, levels)
    even = np.where(filled, (total / np.maximum(share, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), even / max(even.sum(), 1.0)
    missed = clipped > 0
    floor = 1e-9  # where outliers fall on an empty bin
    return float(np.sum(p[missed] * np.log(p[missed] / np.maximum(q[missed], floor))))


def grid(low: float, high: float, levels: int = 256) -> Grid:
    """Scale (float32) and zero point, 0 … levels - 1, of the evenly spaced levels that cover the range.

    Zero is a level. The scale is rounded down, so that the highest level does not exceed ``high`` (a runtime
    drops a Clip whose limits no level exceeds); one level at most is moved to make room for zero.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not high - low > 0 or not np.isfinite(high - low):
        return 1.0, 0
    scale = np.float32((high - low) / (levels - 1))
    if scale * np.float32(levels - 1) > np.float32(high - low):
        scale = np.nextafter(scale, np.float32(0))
    scale = max(scale, np.finfo(np.float32).tiny)
    return float(scale), int(np.clip(np.rint(-low / float(scale)), 0, levels - 1))


def quantization_noise(counts: Array, edges: Array, low: float, high: float, levels: int = 256) -> tuple[float, float]:
    """Mean square of the values, and of the error that the range's levels make on them."""
    total = float(counts.sum())
    if total == 0:
        return 0.0, 0.0
    values = (edges[:-1] + edges[1:]) / 2
    noise = _noise(values, counts.astype(np.float64), np.array([low]), np.array([high]), levels)
    return float((values**2) @ counts) / total, float(noise[0]) / total


def _interpolate(share: float, below: Array, edges: Array, left: int, right: int) -> float:
    span = below[right] - below[left]
    part = (share - below[left]) / span if span > 0 else 0.0
    return float(edges[left] + part * (edges[right] - edges[left]))


def _best(
    values: Array,
    weights: Array,
    lows: Array,
    highs: Array,
    levels: int,
    current: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """The pair with the least error; the current one keeps its place on a tie."""
    if current is not None:
        lows, highs = np.append(current[0], lows), np.append(current[1], highs)
    index = int(np.argmin(_noise(values, weights, lows, highs, levels)))
    return float(lows[index]), float(highs[index])


def _noise(values: Array, weights: Array, lows: Array, highs: Array, levels: int) -> Array:
    """Sum of squared errors for each candidate range, shape (candidates,)."""
    scales = np.maximum((highs - lows) / (levels - 1), np.finfo(np.float32).tiny)[:, None]
    zeros = np.clip(np.rint(-lows[:, None] / scales), 0, levels - 1)
    codes = np.clip(np.rint(values[None] / scales) + zeros, 0, levels - 1)
    error: Array = (codes - zeros) * scales - values[None]
    result: Array = np.square(error) @ weights
    return result
