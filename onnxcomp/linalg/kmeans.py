"""Clusters of numbers and of vectors."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["nearest_vectors", "vector_kmeans", "weighted_kmeans"]

Array = np.ndarray[Any, Any]

_ATOMS = 192  # of a distribution whose best clusters are found exactly
_EXACT = 32  # clusters at most for that, whose time grows with their number
_LLOYD = 50
_SAMPLE = 2**16  # vectors at most that clusters are made of
_LLOYD_OF_VECTORS = 25  # each of which takes clusters times as long as one of numbers
_ROWS = 2**9  # vectors whose distances to all centres are found at a time, in the processor's cache


def weighted_kmeans(values: Array, weights: Array, clusters: int) -> Array:
    """Centres c, ascending, that make Σ weight (value - nearest c)² least.

    In one dimension clusters are intervals. Of a few hundred places to cut at, the best ones are found by dynamic
    programming (Bellman 1973; Wang and Song 2011, "Ckmeans.1d.dp"). Where clusters are many, the interval that gains
    most is cut in two at the best place, until there are enough (Wu 1991, "Efficient statistical computations for
    optimal color quantization"). Lloyd's iterations on all values follow. Where there are no more distinct values than
    clusters, the values themselves are the centres, the last one repeated.

    Args:
        values: (n,).
        weights: (n,), not negative.
        clusters: k.

    Returns:
        (k,).
    """
    order = np.argsort(values, kind="stable")
    v, w = values[order].astype(np.float64), np.maximum(weights[order].astype(np.float64), np.finfo(np.float64).tiny)
    distinct = np.unique(v)
    if len(distinct) <= clusters:
        return np.concatenate([distinct, np.full(clusters - len(distinct), distinct[-1] if len(distinct) else 0.0)])
    sums = _Sums.of(v, w)
    starts = _best_cuts(v, sums, clusters) if clusters <= _EXACT else _greedy_cuts(sums, clusters)
    centres = sums.means(np.append(starts, len(v)))
    for _ in range(_LLOYD):
        cuts = np.searchsorted(v, (centres[1:] + centres[:-1]) / 2, side="right")
        better = sums.means(np.concatenate([[0], cuts, [len(v)]]), centres)
        if np.array_equal(better, centres):
            break
        centres = better
    return np.sort(centres)


def vector_kmeans(vectors: Array, weights: Array, clusters: int) -> Array:
    """Centres c that make Σ weight · (vector - nearest c)² least, where every component has a weight of its own.

    The cluster and the axis that gain most are cut in two at the best place, until there are enough (Wu 1991, as for
    numbers; splitting, as in Gersho and Gray 1992, "Vector quantization and signal compression"). Lloyd's iterations
    follow. Of very many vectors a sample is taken. Where there are no more distinct vectors than clusters,
    these are the centres, the last one repeated.

    Args:
        vectors: (n, d).
        weights: (n, d), not negative.
        clusters: k.

    Returns:
        (k, d).
    """
    v, w = vectors.astype(np.float64), np.maximum(weights.astype(np.float64), np.finfo(np.float64).tiny)
    distinct = np.unique(v, axis=0)
    if len(distinct) <= clusters:
        return np.concatenate([distinct, np.repeat(distinct[-1:], clusters - len(distinct), axis=0)])
    if len(v) > _SAMPLE:
        some = np.sort(np.random.default_rng(0).choice(len(v), _SAMPLE, replace=False))
        v, w = v[some], w[some]
    centres = _means(v, w, _greedy_clusters(v, w, clusters), np.zeros((clusters, v.shape[1])))
    for _ in range(_LLOYD_OF_VECTORS):
        better = _means(v, w, nearest_vectors(v, w, centres), centres)
        if np.array_equal(better, centres):
            break
        centres = better
    return centres


def nearest_vectors(vectors: Array, weights: Array, centres: Array) -> Array:
    """The number of the centre with the least Σ weight · (vector - centre)², for each vector.

    Args:
        vectors: (n, d).
        weights: broadcast over them, not negative.
        centres: (k, d).
    """
    heavy = np.broadcast_to(weights, vectors.shape)
    terms = np.concatenate([heavy, heavy * vectors], axis=1)
    factors = np.ascontiguousarray(np.concatenate([np.square(centres), -2.0 * centres], axis=1).T)
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ROWS):
        found[start : start + _ROWS] = np.argmin(terms[start : start + _ROWS] @ factors, axis=1)
    return found


def _means(v: Array, w: Array, cluster: Array, otherwise: Array) -> Array:
    """Of the vectors of each cluster, (k, d); where there are none, what is given."""
    count = len(otherwise)
    total, heavy = (np.stack([np.bincount(cluster, each, count) for each in matrix.T], axis=1) for matrix in (w * v, w))
    return np.divide(total, heavy, out=otherwise.copy(), where=heavy > 0)


def _greedy_clusters(v: Array, w: Array, clusters: int) -> Array:
    """The cluster of each vector, when the one that gains most by it is cut across an axis again and again."""

    def candidate(members: Array) -> tuple[float, int, Array, Array]:
        gain, left, right = max((_cut(v, w, members, axis) for axis in range(v.shape[1])), key=lambda cut: cut[0])
        return -gain, int(members[0]), left, right

    whole = np.arange(len(v))
    cluster, heap = np.zeros(len(v), np.int64), [candidate(whole)]
    for number in range(1, clusters):
        gain, _, left, right = heapq.heappop(heap)
        if gain >= 0:  # what is left differs by rounding only
            break
        cluster[right] = number
        heapq.heappush(heap, candidate(left))
        heapq.heappush(heap, candidate(right))
    return cluster


def _cut(v: Array, w: Array, members: Array, axis: int) -> tuple[float, Array, Array]:
    """By how much the cost of an axis falls when these vectors are cut in two across it, and the parts."""
    order = members[np.argsort(v[members, axis], kind="stable")]
    gain, cut = _Sums.of(v[order, axis], w[order, axis]).best_cut(0, len(order))
    return gain, order[:cut], order[cut:]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of the first i values: weights, weighted values and their squares."""

    w: Array
    wv: Array
    wvv: Array

    @classmethod
    def of(cls, v: Array, w: Array) -> _Sums:
        sums = (np.concatenate([[0.0], np.cumsum(each)]) for each in (w, w * v, w * v * v))
        return cls(*sums)

    def means(self, cuts: Array, otherwise: Array | None = None) -> Array:
        """Of the values between cuts; where there are none, what is given."""
        w, wv = np.diff(self.w[cuts]), np.diff(self.wv[cuts])
        means: Array = np.where(w > 0, wv / np.where(w > 0, w, 1.0), 0.0 if otherwise is None else otherwise)
        return means

    def costs(self, cuts: Array, end: Array) -> Array:
        """Squared deviation of the values from each cut to each end; infinite where there are none."""
        w = self.w[end][None, :] - self.w[cuts][:, None]
        wv = self.wv[end][None, :] - self.wv[cuts][:, None]
        wvv = self.wvv[end][None, :] - self.wvv[cuts][:, None]
        some = w > 0
        return np.where(some, np.maximum(wvv - wv**2 / np.where(some, w, 1.0), 0.0), np.inf)

    def best_cut(self, start: int, end: int) -> tuple[float, int]:
        """By how much the cost of these values falls when they are cut in two, and where."""
        cuts = np.arange(start + 1, end)
        if not len(cuts):
            return 0.0, start
        left, right = self.w[cuts] - self.w[start], self.w[end] - self.w[cuts]
        some = (left > 0) & (right > 0)
        left, right = np.where(some, left, 1.0), np.where(some, right, 1.0)
        apart = (self.wv[cuts] - self.wv[start]) / left - (self.wv[end] - self.wv[cuts]) / right
        gains = np.where(some, left * right / (left + right) * np.square(apart), 0.0)
        best = int(np.argmax(gains))
        return float(gains[best]), int(cuts[best])


def _best_cuts(v: Array, sums: _Sums, clusters: int) -> Array:
    """Where the clusters of the least cost begin: (k,), the first is 0.

    Half of the cuts to choose from are at quantiles, half at equal distances of the values: few values far out cost
    much, and would share a quantile.
    """
    count = len(v)
    quantiles = np.linspace(0, count, min(count, _ATOMS // 2) + 1).round().astype(np.int64)
    distances = np.searchsorted(v, np.linspace(v[0], v[-1], _ATOMS // 2 + 1))
    cuts = np.arange(count + 1) if count <= _ATOMS else np.unique(np.append(quantiles, distances))
    costs = sums.costs(cuts, cuts)
    best = costs[0]
    starts = []
    for _ in range(clusters - 1):
        through = best[:, None] + costs
        starts.append(np.argmin(through, axis=0))
        best = np.take_along_axis(through, starts[-1][None], axis=0)[0]
    found = [len(cuts) - 1]
    for start in reversed(starts):
        found.append(int(start[found[-1]]))
    return np.append(0, cuts[np.array(found[:0:-1], np.int64)])


def _greedy_cuts(sums: _Sums, clusters: int) -> Array:
    """Where clusters begin, (k,), the first is 0: the interval that gains most is cut again and again."""

    def interval(start: int, end: int) -> tuple[float, int, int, int]:
        gain, cut = sums.best_cut(start, end)
        return -gain, start, end, cut

    intervals = [interval(0, len(sums.w) - 1)]
    for _ in range(clusters - 1):
        _, start, end, cut = heapq.heappop(intervals)
        heapq.heappush(intervals, interval(start, cut))
        heapq.heappush(intervals, interval(cut, end))
    return np.sort([start for _, start, _, _ in intervals])
