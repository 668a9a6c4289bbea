"""Weights as products of smaller ones, so that the outputs of a layer change least.

A layer computes y = W x of inputs with second moment H; factors that give Ŵ instead cost E‖(W - Ŵ) x‖² =
tr((W - Ŵ) H (W - Ŵ)ᵀ). With H = L Lᵀ that is the distance of W L and Ŵ L, so the best Ŵ of rank r is a truncated
singular value decomposition of W L (whitening; Wang et al., "SVD-LLM", ICLR 2025, arXiv:2403.07378).

The inputs of a convolution are patches, and its factors are convolutions over parts of them. Each of T *taps* of the
second factor reads its own q of the inputs through the same first factor, whatever the form:

    Ŵ = K (I_T ⊗ P)      P: (r, q), K: (outputs, T·r), columns of W and H in the order (taps, q).

With one tap that is the product of two matrices. With a tap for each position of the kernel, P is a 1x1 convolution and
K has the kernel; with a tap for each column of the kernel, P is a k x 1 convolution and K a 1 x k one (Jaderberg,
Vedaldi and Zisserman, BMVC 2014, arXiv:1405.3866). K of low rank besides gives three factors (Tucker-2; Kim et al.,
ICLR 2016, arXiv:1511.06530).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular

from onnxcomp.linalg.gptq import damped

__all__ = [
    "Factors",
    "Truncation",
    "first_factors",
    "last_factor",
    "output_loss",
    "refined",
    "tapped_moment",
    "with_middle",
]

Array = np.ndarray[Any, Any]

_NEGLIGIBLE = 1e-9  # of the largest singular value: what is less is rounding
_RIDGE = 1e-9  # in units of the mean variance, where moments of what the first factor gives are singular
_LEAST_STEP = 1e-4  # of the loss, that another sweep must gain
_CG_STEPS = 8


@dataclass(frozen=True)
class Factors:
    """Ŵ = last · middle · (I_T ⊗ first).

    Attributes:
        first: P, (r, q).
        last: (outputs, T·r), or (outputs, s) behind a middle factor.
        middle: (s, T·r), or None.
    """

    first: Array
    last: Array
    middle: Array | None = None

    @property
    def second(self) -> Array:
        """K: all behind the first factor, (outputs, T·r)."""
        return self.last if self.middle is None else self.last @ self.middle

    def product(self) -> Array:
        """Ŵ, (outputs, T·q)."""
        second = self.second
        rank = len(self.first)
        whole: Array = second.reshape(len(second), -1, rank) @ self.first
        return whole.reshape(len(second), -1)

    def normalized(self, H: Array) -> Factors:
        """The same product, in which everything between factors has variance 1.

        So all of it takes part in a grid of few steps alike.

        Args:
            H: of the layer's inputs, (T·q, T·q).
        """
        taps = len(H) // self.first.shape[1]
        moment = np.diag(tapped_moment(H, self.first)).reshape(taps, -1).mean(axis=0)
        deviation = _not_tiny(np.sqrt(np.maximum(moment, 0.0)))
        first, scale = self.first / deviation[:, None], np.tile(deviation, taps)
        if self.middle is None:
            return Factors(first, self.last * scale)
        middle = self.middle * scale
        moments = np.einsum("sd,de,se->s", middle, tapped_moment(H, first), middle, optimize=True)
        deviation = _not_tiny(np.sqrt(np.maximum(moments, 0.0)))
        return Factors(first, self.last * deviation, middle / deviation[:, None])


@dataclass(frozen=True)
class Truncation:
    """All best approximations of one matrix by products of two, for every rank.

    Attributes:
        values: what the loss falls by with each rank, falling, (most,); their sum is the loss of rank 0.
        first: (most, d); the first r rows are the first factor of rank r.
        last: (outputs, most).
    """

    values: Array
    first: Array
    last: Array

    @classmethod
    def of(cls, W: Array, H: Array) -> Truncation:
        """Of W, (outputs, d), for inputs with second moment H, (d, d), positive definite.

        Where outputs are fewer, the eigenvectors E of W H Wᵀ say the same: Ŵ = E_r E_rᵀ W (Zhang, Zou, He and
        Sun, "Accelerating very deep convolutional networks", TPAMI 2015, arXiv:1505.06798).
        """
        if len(W) <= W.shape[1]:
            values, vectors = _falling(W @ H @ W.T)
            return cls(values, vectors.T @ W, vectors)
        lower = np.linalg.cholesky(H)
        values, vectors = _falling(lower.T @ (W.T @ W) @ lower)
        return cls(values, solve_triangular(lower, vectors, lower=True, trans="T").T, W @ (lower @ vectors))

    def losses(self) -> Array:
        """tr((W - Ŵ) H (W - Ŵ)ᵀ) of ranks 0, 1, 2, …, most."""
        tails: Array = np.append(np.cumsum(self.values[::-1])[::-1], 0.0)
        return tails

    def factors(self, rank: int) -> Factors:
        """The best of this rank."""
        return Factors(self.first[:rank], self.last[:, :rank])


def first_factors(W: Array, H: Array, taps: int) -> Array:
    """First factors of all ranks, to begin with: the first r rows, of (q, q), are that of rank r.

    The best for inputs whose taps are as alike as their average and do not depend on each other.

    Args:
        W: (outputs, T·q), columns in the order (taps, q).
        H: (T·q, T·q), positive definite.
        taps: T.
    """
    if taps == 1:
        return Truncation.of(W, H).first
    kernels = W.reshape(-1, W.shape[1] // taps)
    blocks = H.reshape(taps, kernels.shape[1], taps, kernels.shape[1])
    lower = np.linalg.cholesky(np.einsum("tptq->pq", blocks) / taps)
    _, vectors = _falling(lower.T @ (kernels.T @ kernels) @ lower)
    first: Array = solve_triangular(lower, vectors, lower=True, trans="T").T
    return first


def last_factor(W: Array, H: Array, first: Array) -> Array:
    """The second factor K that does best behind a first one: least squares, (outputs, T·r)."""
    crossed = W @ _tapped(H, first)
    second: Array = cho_solve(cho_factor(tapped_moment(H, first)), crossed.T).T
    return second


def nested_fits(W: Array, H: Array, first: Array, ranks: Sequence[int]) -> Iterator[tuple[float, Truncation]]:
    """For each rank r, with the first r rows as first factor: the loss, and what a middle factor would add to it.

    All are parts of the products with the whole of ``first``.

    Args:
        W, H: as of ``first_factors``.
        first: as that returns it.
        ranks: of the first factor.
    """
    if not len(ranks):
        return
    first = first[: max(ranks)]
    taps = W.shape[1] // first.shape[1]
    energy = float(((W @ H) * W).sum())
    crossed = (W @ _tapped(H, first)).reshape(len(W), taps, -1)
    moments = tapped_moment(H, first).reshape(taps, len(first), taps, len(first))
    for rank in ranks:
        moment = moments[:, :rank, :, :rank].reshape(taps * rank, -1)
        cross = crossed[:, :, :rank].reshape(len(W), -1)
        second = cho_solve(cho_factor(moment), cross.T).T
        loss = energy - 2.0 * float((second * cross).sum()) + float(((second @ moment) * second).sum())
        yield max(loss, 0.0), Truncation.of(second, moment)


def refined(W: Array, H: Array, first: Array, sweeps: int = 4) -> Factors:
    """Two factors brought nearer to the best: each is fitted to the other in turn, and the loss never rises.

    K by least squares, P by preconditioned conjugate gradients.

    Args:
        W, H: as of ``first_factors``.
        first: to begin with, (r, q).
        sweeps: at most.
    """
    second = last_factor(W, H, first)
    best = Factors(first, second)
    if W.shape[1] == first.shape[1]:
        return best
    loss = output_loss(W, H, best.product())
    for _ in range(sweeps):
        first = _descended(W, H, Factors(first, second))
        second = last_factor(W, H, first)
        found = Factors(first, second)
        new = output_loss(W, H, found.product())
        if not new < loss:
            break
        best, gained, loss = found, loss - new, new
        if gained < _LEAST_STEP * loss:
            break
    return best


def with_middle(factors: Factors, H: Array, rank: int) -> Factors:
    """Three factors of two: the second becomes a product of this rank, as it is best behind the first."""
    parts = Truncation.of(factors.second, tapped_moment(H, factors.first)).factors(rank)
    return replace(factors, last=parts.last, middle=parts.first)


def output_loss(W: Array, H: Array, product: Array) -> float:
    """tr((W - Ŵ) H (W - Ŵ)ᵀ)."""
    change = product - W
    return float(((change @ H) * change).sum())


def tapped_moment(H: Array, first: Array) -> Array:
    """Second moment of what the first factor gives at all taps, (T·r, T·r), not quite singular."""
    half = _tapped(H, first)
    moment: Array = (first @ half.reshape(-1, first.shape[1], half.shape[1])).reshape(-1, half.shape[1])
    moment = damped(((moment + moment.T) / 2)[None], _RIDGE)[0]
    return moment


def _tapped(H: Array, first: Array) -> Array:
    """H (I_T ⊗ P)ᵀ, (T·q, T·r)."""
    product: Array = H.reshape(len(H), -1, first.shape[1]) @ first.T
    return product.reshape(len(H), -1)


def _descended(W: Array, H: Array, factors: Factors) -> Array:
    """A better P for this K, by conjugate gradients on the normal equations Σ_tu (KᵀK)_tu P H_ut = Σ_t K_tᵀ (W H)_t."""
    first, second = factors.first, factors.last
    rank, q = first.shape
    taps = len(H) // q
    gram = (second.T @ second).reshape(taps, rank, taps, rank).transpose(0, 2, 1, 3).reshape(taps * taps, rank, rank)
    blocks = H.reshape(taps, q, taps, q).transpose(2, 0, 1, 3).reshape(taps * taps, q, q)

    def applied(P: Array) -> Array:
        result: Array = np.einsum("brs,bsq->rq", gram, P @ blocks, optimize=True)
        return result

    pull = np.einsum("trp,tpq->rq", *_by_tap(second, W @ H, taps), optimize=True)
    left = damped(np.einsum("ttrs->rs", gram.reshape(taps, taps, rank, rank))[None], _RIDGE)[0]
    right = damped(np.einsum("ttpq->pq", blocks.reshape(taps, taps, q, q))[None] / taps, _RIDGE)[0]
    factored = cho_factor(left), cho_factor(right)

    def preconditioned(residual: Array) -> Array:
        result: Array = cho_solve(factored[1], cho_solve(factored[0], residual).T).T
        return result

    residual = pull - applied(first)
    direction = ready = preconditioned(residual)
    size = float((residual * ready).sum())
    for _ in range(_CG_STEPS):
        along = applied(direction)
        curvature = float((direction * along).sum())
        if not (size > 0.0 and curvature > 0.0):
            break
        first = first + size / curvature * direction
        residual = residual - size / curvature * along
        ready = preconditioned(residual)
        size, last = float((residual * ready).sum()), size
        direction = ready + size / last * direction
    return first


def _by_tap(second: Array, crossed: Array, taps: int) -> tuple[Array, Array]:
    """Kᵀ as (T, r, outputs) and W H as (T, outputs, q)."""
    outputs = len(second)
    K = second.reshape(outputs, taps, -1).transpose(1, 2, 0)
    return K, crossed.reshape(outputs, taps, -1).swapaxes(0, 1)


def _falling(symmetric: Array) -> tuple[Array, Array]:
    """Eigenvalues, none below zero, from the largest on, and eigenvectors in columns."""
    values, vectors = eigh((symmetric + symmetric.T) / 2)
    signs = np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
    return np.maximum(values[::-1], 0.0), (vectors * signs)[:, ::-1]


def _not_tiny(deviations: Array) -> Array:
    least = _NEGLIGIBLE * float(deviations.max(initial=0.0))
    floored: Array = np.maximum(deviations, least if least > 0.0 else 1.0)
    return floored
