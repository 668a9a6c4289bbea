"""Removing inputs of linear layers at the least loss: which ones, and what the others must become.

A layer computes y = W x of inputs with covariance H; the loss of a change is E‖ΔW x‖² = tr(ΔW H ΔWᵀ), with
constants left out because a bias makes up for them. Removing the inputs g and letting all other weights make
up for it (Optimal Brain Surgeon, Hassibi and Stork 1993, for blocks) costs

    tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ)   and is done by   W ← W - W_g (H⁻¹_gg)⁻¹ H⁻¹_g:

after which H⁻¹ ← H⁻¹ - H⁻¹_:g (H⁻¹_gg)⁻¹ H⁻¹_g: is the inverse for the inputs that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from onnxcomp.linalg.moments import Moments

__all__ = [
    "Reader",
    "Removals",
    "damping_for",
    "fitted",
    "least_squares",
    "norm_order",
    "prediction_error",
    "removal_order",
    "scaled",
]

Array = np.ndarray[Any, Any]

DAMPING = 0.01
"""λ in units of the mean of diag(H) where samples abound."""

SAMPLES_PER_INPUT = 8  # with fewer, H promises more than new samples keep, and is damped more
LEAST_DAMPING = 1e-9  # where none was asked for and H is singular
DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NEGLIGIBLE = 1e-30  # weights; products with them may be subnormal numbers, which CPUs take a hundred times longer for
CANDIDATES = 4  # how many units are looked at for each that is removed before H⁻¹ is brought up to date
ROUNDS = 32


@dataclass
class Reader:
    """A layer that reads the units which may be removed.

    Attributes:
        W: (groups, outputs, d).
        H: covariance of its inputs, (groups, d, d).
        columns: which inputs each unit is, (units, b); the same in every group.
        damping: λ in units of the mean of diag(H); see ``damping_for``.
    """

    W: Array
    H: Array
    columns: Array
    damping: float = DAMPING

    @property
    def energy(self) -> float:
        """Variance of its outputs, all together: tr(W H Wᵀ)."""
        return float(np.einsum("goi,gij,goj->", self.W, self.H, self.W, optimize=True))


def damping_for(samples: int, inputs: int) -> float:
    """λ in units of the mean of diag(H), when H of so many inputs was estimated from so many samples."""
    return DAMPING * max(1.0, SAMPLES_PER_INPUT * inputs / max(1, samples))


@dataclass(frozen=True)
class Removals:
    """Units removed one after the other.

    Attributes:
        order: the units, first to last.
        losses: after 0, 1, 2, … of them, from 0 on.
        weights: after some numbers of them, what W of each reader has become.
    """

    order: Array
    losses: Array
    weights: dict[int, list[Array]]


def removal_order(readers: Sequence[Reader], most: int, shares: Sequence[float] = ()) -> Removals:
    """Remove units one after the other, each time the one that costs least in all its readers together.

    Losses are relative to the variance of each reader's outputs. To save time, H⁻¹ is brought up to date for
    whole batches of units, and for the best candidates of the batch meanwhile.

    Args:
        readers: all layers that read the units.
        most: how many are removed.
        shares: of these; weights are kept at the end of the batches that reach them.
    """
    states = [_State.of(reader) for reader in readers]
    units = len(readers[0].columns)
    batch = max(1, units // ROUNDS)
    left = np.arange(units)
    order: list[int] = []
    losses = [0.0]
    wanted = [share * most for share in sorted(shares)]
    weights: dict[int, list[Array]] = {}
    while len(order) < most:
        scores = sum(state.scores(left) for state in states)
        candidates = np.sort(left[np.argsort(scores, kind="stable")[: CANDIDATES * batch]])
        small = [state.restricted(candidates) for state in states]
        near = np.arange(len(candidates))
        removed: list[int] = []
        for _ in range(min(batch, most - len(order))):
            scores = np.asarray(sum(state.scores(near) for state in small))
            best = int(np.argmin(scores))
            losses.append(losses[-1] + max(0.0, float(scores[best])))
            removed.append(int(near[best]))
            for state in small:
                state.remove(near[best : best + 1])
            near = np.delete(near, best)
        order += candidates[removed].tolist()
        left = np.setdiff1d(left, candidates[removed])
        for state in states:
            state.remove(candidates[removed])
        if any(len(order) - len(removed) < count <= len(order) for count in wanted):
            weights[len(order)] = [state.W.copy() for state in states]
    return Removals(np.array(order, dtype=np.int64), np.array(losses), weights)


@dataclass
class _State:
    """W, H⁻¹ and the inputs of each unit, while units are being removed."""

    W: Array
    Hinv: Array
    columns: Array
    scale: float

    @classmethod
    def of(cls, reader: Reader) -> _State:
        energy = reader.energy
        inverse = np.stack([_inverse(H, reader.damping) for H in reader.H])
        variance = np.diagonal(reader.H, axis1=1, axis2=2)
        dead = variance <= 1e-12 * variance.mean(axis=1, keepdims=True)  # a bias can stand in for these
        W = np.where(dead[:, None, :], 0.0, reader.W)
        return cls(W, inverse, reader.columns, 1.0 / energy if energy > 0 else 0.0)

    def restricted(self, units: Array) -> _State:
        """The part that concerns these units alone; removals among them need no more."""
        inputs = self.columns[units].reshape(-1)
        columns = np.arange(len(inputs)).reshape(len(units), -1)
        return _State(self.W[:, :, inputs], self.Hinv[:, inputs[:, None], inputs], columns, self.scale)

    def scores(self, units: Array) -> Array:
        """tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ) of each unit, summed over the groups of the layer."""
        g = self.columns[units]
        blocks = self.Hinv[:, g[:, :, None], g[:, None, :]]  # (groups, units, b, b)
        W = np.moveaxis(self.W[:, :, g], 1, 3)  # (groups, units, b, outputs)
        scores: Array = self.scale * (W * np.linalg.solve(blocks, W)).sum(axis=(0, 2, 3))
        return scores

    def remove(self, units: Array) -> None:
        g = self.columns[units].reshape(-1)
        rows = self.Hinv[:, g]  # (groups, g, d)
        solved = np.linalg.solve(rows[:, :, g], rows)
        self.W -= self.W[:, :, g] @ solved
        self.Hinv -= rows.swapaxes(1, 2) @ solved
        # Zero but for rounding, which would come back with the next removal.
        self.Hinv[:, g], self.Hinv[:, :, g], self.W[:, :, g] = 0.0, 0.0, 0.0


def _inverse(H: Array, damping: float) -> Array:
    inverse: Array = cho_solve(_damped_cholesky(H, damping), np.eye(len(H), order="F"), overwrite_b=True)
    return inverse


def _damped_cholesky(H: Array, damping: float) -> tuple[Array, bool]:
    """Of H + λI with λ = damping · mean(diag(H)), or ten times that until it is positive definite.

    Where nothing varies, λ is the damping itself.
    """
    variances = np.diag(H)
    level = max(float(variances.mean()), 0.0) or 1.0
    while True:
        damped = np.array(H, order="F")
        np.fill_diagonal(damped, variances + damping * level)
        try:
            factor: tuple[Array, bool] = cho_factor(damped, overwrite_a=True)
            return factor
        except np.linalg.LinAlgError:
            damping = max(10.0 * damping, LEAST_DAMPING)


def scaled(losses: Array, counts: Sequence[int], measured: Sequence[float]) -> Array:
    """A curve of losses that goes through measured ones, and between them in proportion as before.

    The factor between the two is interpolated over the logarithm of the loss; outside of the measured it is that of
    the nearest. The result does not fall.

    Args:
        losses: after 0, 1, 2, … removals, rising from 0.
        counts: of removals, where the loss is above zero, rising.
        measured: at these, above zero.
    """
    known = losses[np.asarray(counts)]
    factors = np.log(np.asarray(measured) / known)
    tiny = np.finfo(np.float64).tiny
    factor = np.exp(np.interp(np.log(np.maximum(losses, tiny)), np.log(known), factors))
    result: Array = np.maximum.accumulate(np.where(losses > 0.0, losses * factor, 0.0))
    return result


def least_squares(prior: Array, cross: Array, H: Array, damping: float) -> Array:
    """The W nearest to ``prior`` that best predicts y from x: argmin E‖y - W x‖² + λ‖W - prior‖².

    Args:
        prior: (outputs, d), as well as without data.
        cross: covariance of y and x, (outputs, d).
        H: covariance of x, (d, d).
        damping: λ in units of the mean of diag(H).
    """
    change: Array = cho_solve(_damped_cholesky(H, damping), (cross - prior @ H).T).T
    return prior + change


def fitted(prior: Array, fitting: Moments, held_out: Moments) -> tuple[Array, Array, float]:
    """The W and b that best predict y = W x + b, with the damping that does best on samples it was not fitted to.

    Args:
        prior: (G, outputs, d).
        fitting: samples to fit on while the damping is chosen; then W is fitted to all.
        held_out: samples to choose it by; there may be none.

    Returns:
        W, b of shape (G, outputs), and the part of the variance of y that is missed (on the held-out samples, if
        any).
    """
    judged = held_out if held_out.count else fitting
    choices = DAMPINGS if held_out.count else (damping_for(fitting.count, prior.shape[2]),)
    errors = [prediction_error(*_solve(prior, fitting, damping), judged) for damping in choices]
    best = int(np.argmin(errors))
    W, b = _solve(prior, fitting + held_out, choices[best])
    W[np.abs(W) < NEGLIGIBLE] = 0.0
    return W, b, errors[best]


def _solve(prior: Array, moments: Moments, damping: float) -> tuple[Array, Array]:
    H, cross = moments.covariance, moments.cross_covariance
    W = np.stack([least_squares(prior[group], cross[group], H[group], damping) for group in range(len(H))])
    return W, moments.output_mean - (W @ moments.mean[:, :, None])[:, :, 0]


def prediction_error(W: Array, b: Array, moments: Moments) -> float:
    """E‖y - W x - b‖² over the variance of y, all outputs together."""
    total = float(moments.output_variance.sum())
    if total <= 0.0:
        return 0.0
    offset = moments.output_mean - (W @ moments.mean[:, :, None])[:, :, 0] - b
    explained = 2.0 * float((W * moments.cross_covariance).sum()) - float(((W @ moments.covariance) * W).sum())
    return max(0.0, total - explained + float(np.square(offset).sum())) / total


def norm_order(weights: Sequence[tuple[Array, Array]], scale: Array, most: int) -> tuple[Array, Array]:
    """As ``removal_order`` without data: inputs are taken for independent, with variances ``scale``.

    Args:
        weights: W and columns of each reader.
        scale: of each unit.
        most: units to order.
    """
    scores = np.zeros(len(scale))
    for W, columns in weights:
        squares = np.square(W[:, :, columns]).sum(axis=(0, 1, 3)) * scale
        scores += squares / (squares.sum() or 1.0)
    order = np.argsort(scores, kind="stable")[:most]
    return order, np.concatenate([[0.0], np.cumsum(scores[order])])
