"""Weights that take few distinct values: codebooks, found for the weights or for what they do to outputs.

A matrix W, (G, outputs, d), is cut into runs of rows (outputs, of all groups in turn), each with a codebook of k
values. Weights that an earlier pass made zero stay zero: one value of each codebook is zero then, and stays it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.sweeps import Rounder, by_input, coordinate_descent, nearest_plane

__all__ = ["Codebooks", "refitted", "share_for_outputs", "share_nearest", "weighted_kmeans"]

Array = np.ndarray[Any, Any]

_ATOMS = 256  # of a distribution whose best clusters are found exactly
_EXACT = 32  # clusters at most for that; more are close to what the density says
_LLOYD = 50
_ROUNDS = 3  # of refitting the values and assigning weights to them anew
_SWEEPS = 3
_STEPS = 40  # of conjugate gradients; values are few
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Values that rows of weights may take.

    Attributes:
        values: (books, k), ascending in each.
        rows: that share a book; the last book may have fewer.
        zero: whether one value of each is zero, for weights that are to stay zero.
    """

    values: Array
    rows: int
    zero: bool = False

    def book_of(self, rows: int) -> Array:
        """Which book each of so many rows has."""
        return np.arange(rows) // self.rows

    def codes(self, W: Array) -> Array:
        """The nearest value's number for each weight, of W's shape; weights that are zero get zero where there is one.

        Args:
            W: its last two axes, or its last but one of ``rows`` in turn, are rows and inputs.
        """
        flat = W.reshape(-1, W.shape[-1])
        codes = np.empty(flat.shape, np.int64)
        for book, values in enumerate(self.values):
            part = slice(book * self.rows, (book + 1) * self.rows)
            codes[part] = np.searchsorted((values[1:] + values[:-1]) / 2, flat[part], side="left")
            if self.zero:
                codes[part][flat[part] == 0] = np.searchsorted(values, 0.0)
        return codes.reshape(W.shape)

    def decode(self, codes: Array) -> Array:
        """The weights with these codes."""
        flat = codes.reshape(-1, codes.shape[-1])
        weights: Array = self.values[self.book_of(len(flat))[:, None], flat].reshape(codes.shape)
        return weights

    def rounder(self, W: Array, order: Array | None) -> Rounder:
        """See ``onnxcomp.linalg.sweeps.Allowed``."""
        book = self.book_of(W.shape[0] * W.shape[1])
        middles = ((self.values[:, 1:] + self.values[:, :-1]) / 2)[book]
        zero = by_input(W == 0, order) if self.zero else None

        def rounded(j: int, wanted: Array) -> Array:
            flat = wanted.reshape(-1)
            values: Array = self.values[book, (middles < flat[:, None]).sum(axis=1)].reshape(wanted.shape)
            return values if zero is None else values * ~zero[:, j]

        return rounded


def weighted_kmeans(values: Array, weights: Array, clusters: int) -> Array:
    """Centres c, ascending, that make Σ weight (value - nearest c)² least.

    In one dimension clusters are intervals. Among so many quantiles the best ones are found by dynamic programming
    (Bellman 1973; Wang and Song 2011, "Ckmeans.1d.dp"); many clusters begin where centres are as dense as the cube root
    of the values' density (Panter and Dite 1951). Lloyd's iterations on all values follow. Where there are no more
    distinct values than clusters, the values themselves are the centres, the last one repeated.

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
    if clusters <= _EXACT:
        centres = sums.means(np.append(_best_cuts(sums, clusters), len(v)))
    else:
        centres = _companded(v, w, clusters)
    for _ in range(_LLOYD):
        cuts = np.searchsorted(v, (centres[1:] + centres[:-1]) / 2, side="right")
        better = sums.means(np.concatenate([[0], cuts, [len(v)]]), centres)
        if np.array_equal(better, centres):
            break
        centres = better
    return np.sort(centres)


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


def _best_cuts(sums: _Sums, clusters: int) -> Array:
    """Where the clusters of the least cost begin, of cuts at quantiles: (k,), the first is 0."""
    count = len(sums.w) - 1
    cuts = np.unique(np.linspace(0, count, min(count, _ATOMS) + 1).round().astype(np.int64))
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


def _companded(v: Array, w: Array, clusters: int) -> Array:
    """So many centres, as dense as the cube root of the density, within the range of the values."""
    density, edges = np.histogram(v, bins=4 * clusters, weights=w)
    grown = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    wanted = (np.arange(clusters) + 0.5) / clusters * grown[-1]
    centres: Array = np.interp(wanted, grown, edges)
    return centres


def share_nearest(W: Array, importance: Array, clusters: int, rows: int, zero: bool = False) -> Codebooks:
    """Codebooks of the least squared error of the weights.

    Args:
        W: (R, d).
        importance: of errors, broadcasts over W, not negative.
        clusters: k.
        rows: that share a codebook.
        zero: whether weights that are zero are to stay zero.
    """
    weights = np.broadcast_to(importance, W.shape)
    books = []
    for start in range(0, len(W), rows):
        part = slice(start, start + rows)
        values, heavy = W[part].reshape(-1), weights[part].reshape(-1)
        if zero:
            some = values != 0
            books.append(np.sort(np.append(weighted_kmeans(values[some], heavy[some], clusters - 1), 0.0)))
        else:
            books.append(weighted_kmeans(values, heavy, clusters))
    return Codebooks(np.stack(books), rows, zero)


def share_for_outputs(W: Array, H: Array, clusters: int, rows: int, zero: bool = False) -> tuple[Codebooks, Array]:
    """Codebooks and codes whose outputs differ least from those of W, of inputs with second moment H.

    Values begin as those of the least error weighted by diag(H) (Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629);
    codes are found by GPTQ; then values in closed form and codes by coordinate descent follow in turn.

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        clusters: values of a codebook.
        rows: that share one.
        zero: whether weights that are zero are to stay zero.

    Returns:
        the codebooks, and codes of W's shape.
    """
    flat = W.reshape(-1, W.shape[2])
    importance = np.repeat(np.diagonal(H, axis1=1, axis2=2), W.shape[1], axis=0)
    books = share_nearest(flat, importance, clusters, rows, zero)
    codes = books.codes(nearest_plane(W, H, books))
    for _ in range(_ROUNDS):
        books, Q = refitted(W, H, books, codes)
        codes = books.codes(coordinate_descent(W, H, books, Q, _SWEEPS))
    books, Q = refitted(W, H, books, codes)
    return books, books.codes(Q)


def refitted(W: Array, H: Array, books: Codebooks, codes: Array) -> tuple[Codebooks, Array]:
    """The values that make the loss least with these codes, and the weights with them.

    With A the 0/1 matrix of codes, w = A c: the least is where (Σ AᵀHA) c = Σ AᵀHw, solved by conjugate gradients,
    whose steps are products with H. Values that no weight has stay as they are, and so does a zero for weights that
    are zero.
    """
    number = (
        codes.reshape(-1, codes.shape[2]) + (books.book_of(W.shape[0] * W.shape[1]) * books.values.shape[1])[:, None]
    )
    cells = books.values.size

    def gathered(matrix: Array) -> Array:
        """Aᵀ of weights, for each value."""
        sums: Array = np.bincount(number.reshape(-1), matrix.reshape(-1), cells)
        return sums

    def spread(values: Array) -> Array:
        matrix: Array = values[number].reshape(W.shape)
        return matrix

    c = books.values.reshape(-1).astype(np.float64)
    diagonal = gathered(np.broadcast_to(np.diagonal(H, axis1=1, axis2=2)[:, None, :], W.shape))
    free = diagonal > 0
    if books.zero:
        free &= c != 0
    scale = np.where(free, 1.0 / np.where(free, diagonal, 1.0), 0.0)
    r = gathered((W - spread(c)) @ H) * free
    z = scale * r
    p, rz = z, float(r @ z)
    least = _TOLERANCE**2 * rz
    for _ in range(_STEPS):
        if rz <= least or rz == 0.0:
            break
        Hp = gathered(spread(p) @ H) * free
        power = float(p @ Hp)
        if power <= 0.0:
            break
        step = rz / power
        c, r = c + step * p, r - step * Hp
        z = scale * r
        rz, before = float(r @ z), rz
        p = z + rz / before * p
    Q = spread(c)
    return replace(books, values=np.sort(c.reshape(books.values.shape), axis=1)), Q
