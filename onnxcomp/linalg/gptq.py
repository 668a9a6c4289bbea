"""Rounding the weights of linear layers so that their outputs, not the weights, change least.

A layer computes y = W x of inputs with second moment H; weights Q instead of W cost E‖(Q - W) x‖² =
tr((Q - W) H (Q - W)ᵀ). Each weight may be a step of its own times a code of a few bits. A weight that is zero stays
zero. G independent problems (the groups of a convolution) are solved side by side: W is (G, outputs, d), H is (G, d,
d), steps broadcast over W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Levels", "damped", "descend", "gptq", "output_error", "rescaling"]

Array = np.ndarray[Any, Any]

BLOCK = 128  # columns whose changes reach the others in one product of matrices


@dataclass(frozen=True)
class Levels:
    """What each weight may be: ``steps`` times a whole number.

    Attributes:
        steps: above zero, broadcasts to W's shape, float64.
        low, high: the least and the largest number.
    """

    steps: Array
    low: int
    high: int

    def nearest(self, W: Array) -> Array:
        """The codes nearest to weights, float64."""
        codes: Array = np.clip(np.rint(W / self.steps), self.low, self.high)
        return codes


def damped(H: Array, damping: float) -> Array:
    """H + λI, λ in units of the mean of diag(H), or ten times that until it is positive definite, for each group.

    Where nothing varies, λ is the damping itself.

    Raises:
        ValueError: H is not finite.
    """
    result = np.array(H, np.float64)
    if not np.isfinite(result).all():
        raise ValueError("the second moment of the inputs is not finite")
    for matrix in result:
        variances = np.diag(matrix).copy()
        level, share = max(float(variances.mean()), 0.0) or 1.0, damping
        while True:
            np.fill_diagonal(matrix, variances + share * level)
            try:
                np.linalg.cholesky(matrix)
                break
            except np.linalg.LinAlgError:
                share = max(10.0 * share, 1e-9)
    return result


def gptq(W: Array, H: Array, levels: Levels) -> Array:
    """Codes by GPTQ: weights are rounded one input after the other, and those to come make up for the error.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers", ICLR 2023 (arXiv:2210.17323), inputs in the order of falling H_jj. Computed as Babai's nearest
    plane algorithm, which gives the same codes (Chen et al. 2025, "The geometry of LLM quantization: GPTQ as
    Babai's nearest plane algorithm", arXiv:2507.18553): with H = L Lᵀ and the errors δ of inputs k > j known, input
    j adds (L_jj δ_j + Σ L_kj δ_k)² to the loss, so its weight is rounded around w_j - Σ L_kj δ_k / L_jj.

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite; see ``damped``.
        levels: what weights may be.

    Returns:
        codes, float64, of W's shape.
    """
    order = np.argsort(np.diagonal(H, axis1=1, axis2=2), axis=1, kind="stable")  # the last is rounded first
    w, steps = _by_input(W, order), _by_input(levels.steps, order)
    L = np.linalg.cholesky(H[np.arange(len(H))[:, None, None], order[:, :, None], order[:, None, :]])
    codes, errors = np.empty_like(w), np.empty_like(w)
    for end in range(w.shape[1], 0, -BLOCK):
        start = max(0, end - BLOCK)
        behind = L[:, end:, start:end].swapaxes(1, 2) @ errors[:, end:]
        for j in range(end - 1, start - 1, -1):
            pull = behind[:, j - start] + (L[:, j + 1 : end, j, None].swapaxes(1, 2) @ errors[:, j + 1 : end])[:, 0]
            step = steps[:, j if steps.shape[1] > 1 else 0]
            wanted = w[:, j] - pull / L[:, j, j, None]
            codes[:, j] = np.clip(np.rint(wanted / step), levels.low, levels.high) * (w[:, j] != 0)
            errors[:, j] = codes[:, j] * step - w[:, j]
    result = np.empty_like(codes)
    np.put_along_axis(result, order[:, :, None], codes, axis=1)
    return np.ascontiguousarray(result.swapaxes(1, 2))


def descend(W: Array, H: Array, levels: Levels, codes: Array, sweeps: int = 8) -> Array:
    """Better codes by coordinate descent: each weight in turn gets the level that is best given all others.

    The loss never rises. It stops where no single weight can do better, or after so many sweeps.

    Args:
        W, H, levels: as for ``gptq``.
        codes: to start from.
        sweeps: over all inputs, at most.
    """
    w, steps, q = (np.ascontiguousarray(item.swapaxes(1, 2)) for item in (W, levels.steps, codes))
    gradient = H @ (q * steps - w)
    curvature = np.diagonal(H, axis1=1, axis2=2)
    for _ in range(sweeps):
        changed = False
        for start in range(0, w.shape[1], BLOCK):
            end = min(start + BLOCK, w.shape[1])
            local, moves = gradient[:, start:end].copy(), np.zeros_like(w[:, start:end])
            for j in range(start, end):
                step = steps[:, j if steps.shape[1] > 1 else 0]
                wanted = q[:, j] - local[:, j - start] / (curvature[:, j, None] * step)
                code = np.clip(np.rint(wanted), levels.low, levels.high) * (w[:, j] != 0)
                if np.array_equal(code, q[:, j]):
                    continue
                move = (code - q[:, j]) * step
                q[:, j], moves[:, j - start], changed = code, move, True
                local += H[:, start:end, j, None] * move[:, None, :]
            gradient += H[:, :, start:end] @ moves
        if not changed:
            break
    return np.ascontiguousarray(q.swapaxes(1, 2))


def rescaling(W: Array, H: Array, levels: Levels, codes: Array) -> Array:
    """The factor for each output's steps that makes the loss least with these codes, (G, outputs); in closed form."""
    Q = codes * levels.steps
    QH = Q @ H
    power, overlap = (QH * Q).sum(axis=2), (QH * W).sum(axis=2)
    usable = (power > 0) & (overlap > 0)
    factors: Array = np.where(usable, overlap / np.where(usable, power, 1.0), 1.0)
    return factors


def output_error(W: Array, H: Array, Q: Array) -> Array:
    """Mean squared change of each output, (G, outputs): the diagonal of (Q - W) H (Q - W)ᵀ."""
    change = Q - W
    error: Array = ((change @ H) * change).sum(axis=2)
    return error


def _by_input(array: Array, order: Array) -> Array:
    """(G, outputs, d) as (G, d, outputs) with the inputs in this order; d = 1 stands for all."""
    turned = array.swapaxes(1, 2)
    if turned.shape[1] == 1:
        return np.ascontiguousarray(turned)
    taken: Array = np.take_along_axis(turned, order[:, :, None], axis=1)
    return taken
