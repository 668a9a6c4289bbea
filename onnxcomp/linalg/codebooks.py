"""Weights that take few distinct values: codebooks, found for the weights or for what they do to outputs.

A matrix W, (G, outputs, d), is cut into runs of rows (outputs, of all groups in turn), each with a codebook of k
values. Weights that an earlier pass made zero stay zero: one value of each codebook is zero then, and stays it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.kmeans import weighted_kmeans
from onnxcomp.linalg.sweeps import Rounder, by_input, coordinate_descent, nearest_plane

__all__ = ["Codebooks", "refitted", "share_for_outputs", "share_nearest"]

Array = np.ndarray[Any, Any]

_ROUNDS = 3  # of refitting the values and assigning weights to them anew
_SWEEPS = 3
_STEPS = 40  # of conjugate gradients; values are few
_TOLERANCE = 1e-4  # of the gradient, over the first one's


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
        codes = np.empty(flat.shape, np.min_scalar_type(self.values.shape[1] - 1))  # as they may be many
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

    With A the 0/1 matrix of codes, w = A c: the least is where (Σ AᵀHA) c = Σ AᵀHw, the sums over the rows of a book.
    Books are independent problems, solved side by side by conjugate gradients, whose steps are products with H. Values
    that no weight has stay as they are, and so does a zero for weights that are zero.

    Args:
        W, H: as for ``share_for_outputs``.
        books: the values to begin from.
        codes: of W's shape.

    Returns:
        the codebooks, ascending; and the weights, in which ``Codebooks.codes`` finds the new values' numbers.
    """
    count, size = books.values.shape
    number = codes.reshape(-1, codes.shape[2]) + (books.book_of(W.shape[0] * W.shape[1]) * size)[:, None]

    def gathered(matrix: Array) -> Array:
        """Aᵀ of weights, (books, k)."""
        sums: Array = np.bincount(number.reshape(-1), matrix.reshape(-1), count * size).reshape(count, size)
        return sums

    def spread(values: Array) -> Array:
        """A of values, of W's shape."""
        matrix: Array = values.reshape(-1)[number].reshape(W.shape)
        return matrix

    diagonal = gathered(np.broadcast_to(np.diagonal(H, axis1=1, axis2=2)[:, None, :], W.shape))
    free = (diagonal > 0) & ~(books.zero & (books.values == 0))
    scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=free)
    residual = gathered((W - spread(books.values)) @ H) * free
    change = _solved(lambda values: gathered(spread(values) @ H) * free, residual, scale)
    values = books.values + change
    return replace(books, values=np.sort(values, axis=1)), spread(values)


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
