"""Weights that take few distinct values: codebooks, found for the weights or for what they do to outputs.

A matrix W, (G, outputs, n), is cut into runs of rows (outputs, of all groups in turn), each with a codebook of k
values, or of k vectors for d neighbouring weights of a row. Weights that an earlier pass made zero stay zero where
values are single: one of each codebook is zero then, and stays it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.kmeans import nearest_vectors, vector_kmeans, weighted_kmeans
from onnxcomp.linalg.sweeps import Rounder, by_input, coordinate_descent, nearest_plane

__all__ = ["Codebooks", "refitted", "share_for_outputs", "share_nearest"]

Array = np.ndarray[Any, Any]

_ROUNDS = 3  # of refitting the values and assigning weights to them anew
_SWEEPS = 3
_STEPS = 40  # of conjugate gradients; values are few
_TOLERANCE = 1e-4  # of the gradient, over the first one's


@dataclass(frozen=True, eq=False)
class Codebooks:
    """Values or vectors that rows of weights may take.

    Attributes:
        values: (books, k, d); ascending in each where d is 1.
        rows: that share a book; the last book may have fewer.
        zero: whether one value of each is zero, for weights that are to stay zero. Only where d is 1.
    """

    values: Array
    rows: int
    zero: bool = False

    @property
    def width(self) -> int:
        """Weights of a vector: d."""
        return int(self.values.shape[2])

    def book_of(self, rows: int) -> Array:
        """Which book each of so many rows has."""
        return np.arange(rows) // self.rows

    def codes(self, W: Array) -> Array:
        """The number of the nearest, for every d weights of a row; that of zero for those that are to stay zero.

        Args:
            W: (…, n): its last two axes, or its last but one of ``rows`` in turn, are rows and inputs.

        Returns:
            (…, n / d).
        """
        flat = W.reshape(-1, W.shape[-1] // self.width, self.width)
        codes = np.empty(flat.shape[:2], np.min_scalar_type(self.values.shape[1] - 1))  # as they may be many
        for book, values in enumerate(self.values):
            part = slice(book * self.rows, (book + 1) * self.rows)
            codes[part] = _numbers(flat[part], values)
            if self.zero:
                codes[part][flat[part, :, 0] == 0] = np.searchsorted(values[:, 0], 0.0)
        return codes.reshape(*W.shape[:-1], -1)

    def decode(self, codes: Array) -> Array:
        """The weights with these codes, (…, n)."""
        flat = codes.reshape(-1, codes.shape[-1])
        weights: Array = self.values[self.book_of(len(flat))[:, None], flat].reshape(*codes.shape[:-1], -1)
        return weights

    def cells(self, codes: Array) -> Array:
        """Where in the flat values each weight's is: (rows, n) of codes (…, n / d)."""
        flat = codes.reshape(-1, codes.shape[-1])
        number = flat + (self.book_of(len(flat)) * self.values.shape[1])[:, None]
        cells: Array = (number[:, :, None] * self.width + np.arange(self.width)).reshape(len(flat), -1)
        return cells

    def rounder(self, W: Array, order: Array | None) -> Rounder:
        """See ``onnxcomp.linalg.sweeps.Allowed``."""
        if self.width > 1:
            return self._rounder_of_vectors(W)
        book = self.book_of(W.shape[0] * W.shape[1])
        values = self.values[:, :, 0]
        middles = ((values[:, 1:] + values[:, :-1]) / 2)[book]
        zero = by_input(W == 0, order) if self.zero else None

        def rounded(j: int, wanted: Array, metric: Array) -> Array:  # noqa: ARG001
            flat = wanted.reshape(-1)
            nearest: Array = values[book, (middles < flat[:, None]).sum(axis=1)].reshape(wanted.shape)
            return nearest if zero is None else nearest * ~zero[:, j : j + 1]

        return rounded

    def _rounder_of_vectors(self, W: Array) -> Rounder:
        groups, outputs, _ = W.shape
        ends = {*range(0, groups * outputs, outputs), *range(0, groups * outputs, self.rows), groups * outputs}
        runs = [  # of outputs with a group and a book
            (first // outputs, self.values[first // self.rows], slice(first % outputs, first % outputs + last - first))
            for first, last in itertools.pairwise(sorted(ends))
        ]

        def rounded(j: int, wanted: Array, metric: Array) -> Array:  # noqa: ARG001
            nearest = np.empty_like(wanted)
            for group, vectors, part in runs:
                turned = vectors @ metric[group]
                scores = (turned * vectors).sum(axis=1) / 2 - wanted[group, :, part].T @ turned.T
                nearest[group, :, part] = vectors[np.argmin(scores, axis=1)].T
            return nearest

        return rounded


def share_nearest(W: Array, importance: Array, clusters: int, rows: int, zero: bool = False, dim: int = 1) -> Codebooks:
    """Codebooks of the least squared error of the weights.

    Args:
        W: (R, n).
        importance: of errors, broadcasts over W, not negative.
        clusters: k.
        rows: that share a codebook.
        zero: whether weights that are zero are to stay zero; only where ``dim`` is 1.
        dim: d, divides n.
    """
    weights = np.broadcast_to(importance, W.shape)
    books = []
    for start in range(0, len(W), rows):
        part = slice(start, start + rows)
        values, heavy = W[part].reshape(-1, dim), weights[part].reshape(-1, dim)
        if dim > 1:
            books.append(vector_kmeans(values, heavy, clusters))
        elif zero:
            some = values != 0
            books.append(np.sort(np.append(weighted_kmeans(values[some], heavy[some], clusters - 1), 0.0)))
        else:
            books.append(weighted_kmeans(values[:, 0], heavy[:, 0], clusters))
    return Codebooks(np.stack(books).reshape(len(books), clusters, dim), rows, zero)


def share_for_outputs(
    W: Array, H: Array, clusters: int, rows: int, zero: bool = False, dim: int = 1
) -> tuple[Codebooks, Array]:
    """Codebooks and codes whose outputs differ least from those of W, of inputs with second moment H.

    Values begin as those of the least error weighted by diag(H) (Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629);
    codes are found by GPTQ; then values in closed form and codes by coordinate descent follow in turn. So it is with
    vectors (Stock et al. 2020, "And the bit goes down", arXiv:1907.05686, cluster them by what they do to outputs;
    GPTVQ, van Baalen et al. 2024, arXiv:2402.15319, makes up for their errors).

    Args:
        W: (G, outputs, n).
        H: (G, n, n), positive definite.
        clusters: values or vectors of a codebook.
        rows: that share one.
        zero: whether weights that are zero are to stay zero; only where ``dim`` is 1.
        dim: weights of a vector, divides n.

    Returns:
        the codebooks, and codes, (G, outputs, n / dim).
    """
    flat = W.reshape(-1, W.shape[2])
    importance = np.repeat(np.diagonal(H, axis1=1, axis2=2), W.shape[1], axis=0)
    books = share_nearest(flat, importance, clusters, rows, zero, dim)
    codes = books.codes(nearest_plane(W, H, books))
    for _ in range(_ROUNDS):
        books, Q = refitted(W, H, books, codes)
        codes = books.codes(coordinate_descent(W, H, books, Q, _SWEEPS))
    books, Q = refitted(W, H, books, codes)
    return books, books.codes(Q)


def refitted(W: Array, H: Array, books: Codebooks, codes: Array) -> tuple[Codebooks, Array]:
    """The values that make the loss least with these codes, and the weights with them.

    With A the 0/1 matrix that says which value, or which component of a vector, each weight has, w = A c: the least is
    where (Σ AᵀHA) c = Σ AᵀHw, the sums over the rows of a book. Books are independent problems, solved side by side by
    conjugate gradients, whose steps are products with H. Values that no weight has stay as they are, and so does a zero
    for weights that are zero.

    Args:
        W, H: as for ``share_for_outputs``.
        books: the values to begin from.
        codes: (G, outputs, n / d).

    Returns:
        the codebooks; and the weights, in which ``Codebooks.codes`` finds the new values' numbers.
    """
    count, size, width = books.values.shape
    start, number = books.values.reshape(count, -1), books.cells(codes)

    def gathered(matrix: Array) -> Array:
        """Aᵀ of weights, (books, k d)."""
        sums: Array = np.bincount(number.reshape(-1), matrix.reshape(-1), start.size).reshape(start.shape)
        return sums

    def spread(values: Array) -> Array:
        """A of values, of W's shape."""
        matrix: Array = values.reshape(-1)[number].reshape(W.shape)
        return matrix

    diagonal = gathered(np.broadcast_to(np.diagonal(H, axis1=1, axis2=2)[:, None, :], W.shape))
    free = (diagonal > 0) & ~(books.zero & (start == 0))
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=free)
    residual = gathered((W - spread(start)) @ H) * free
    change = _solved(lambda values: gathered(spread(values) @ H) * free, residual, scale)
    values = start + change
    ordered = np.sort(values, axis=1) if width == 1 else values
    return replace(books, values=ordered.reshape(count, size, width)), spread(values)


def _numbers(W: Array, values: Array) -> Array:
    """Of the values or vectors, (k, d), that are nearest to weights, (rows, n / d, d)."""
    if values.shape[1] > 1:
        return nearest_vectors(W.reshape(-1, values.shape[1]), np.ones(1), values).reshape(W.shape[:2])
    found: Array = np.searchsorted((values[1:, 0] + values[:-1, 0]) / 2, W[:, :, 0], side="left")
    return found


def _solved(image: Callable[[Array], Array], residual: Array, scale: Array) -> Array:
    """Solutions of independent systems, a row each, by conjugate gradients (Hestenes and Stiefel 1952).

    Args:
        image: multiplies each row with its matrix, positive semidefinite.
        residual: the right sides.
        scale: preconditions; zero where a variable is to stay zero.
    """
    change = np.zeros_like(residual)
    direction = scale * residual
    power = (residual * direction).sum(axis=1, keepdims=True)
    enough = _TOLERANCE**2 * power
    for _ in range(_STEPS):
        active = power > enough
        if not active.any():
            break
        moved = image(direction)
        curvature = (direction * moved).sum(axis=1, keepdims=True)
        step = np.divide(power, curvature, out=np.zeros_like(power), where=active & (curvature > 0))
        change += step * direction
        residual = residual - step * moved
        scaled = scale * residual
        before, power = power, (residual * scaled).sum(axis=1, keepdims=True)
        direction = scaled + np.divide(power, before, out=np.zeros_like(power), where=active) * direction
    return change
