"""Weights put onto allowed values one input after the other, so that a layer's outputs change least.

A layer computes y = W x of inputs with second moment H; weights Q instead of W cost tr((Q - W) H (Q - W)ᵀ). G
independent problems (the groups of a convolution) are solved side by side: W is (G, outputs, d), H is (G, d, d).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = ["Allowed", "Rounder", "by_input", "coordinate_descent", "nearest_plane"]

Array = np.ndarray[Any, Any]
Rounder: TypeAlias = Callable[[int, Array], Array]

BLOCK = 128  # columns whose changes reach the others in one product of matrices


class Allowed(Protocol):
    """The values that each weight may take."""

    def rounder(self, W: Array, order: Array | None) -> Rounder:
        """What gives, for the j-th input in this order and values wanted of it, (G, outputs), the nearest allowed ones.

        Args:
            W: the weights, (G, outputs, d); those that are zero may have to stay zero.
            order: (G, d), of the inputs; None for their own.
        """


def nearest_plane(W: Array, H: Array, allowed: Allowed) -> Array:
    """Allowed weights found one input after the other, in the order of falling H_jj; those to come make up for errors.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers", ICLR 2023 (arXiv:2210.17323). Computed as Babai's nearest plane algorithm, which gives the same
    (Chen et al. 2025, "The geometry of LLM quantization: GPTQ as Babai's nearest plane algorithm", arXiv:2507.18553):
    with H = L Lᵀ and the errors δ of inputs k > j known, input j adds (L_jj δ_j + Σ L_kj δ_k)² to the loss, so its
    weight is rounded around w_j - Σ L_kj δ_k / L_jj.

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        allowed: what weights may be.
    """
    order = np.argsort(np.diagonal(H, axis1=1, axis2=2), axis=1, kind="stable")  # the last is rounded first
    w, rounded = by_input(W, order), allowed.rounder(W, order)
    L = np.linalg.cholesky(H[np.arange(len(H))[:, None, None], order[:, :, None], order[:, None, :]])
    q, errors = np.empty_like(w), np.empty_like(w)
    for end in range(w.shape[1], 0, -BLOCK):
        start = max(0, end - BLOCK)
        behind = L[:, end:, start:end].swapaxes(1, 2) @ errors[:, end:]
        for j in range(end - 1, start - 1, -1):
            pull = behind[:, j - start] + (L[:, j + 1 : end, j, None].swapaxes(1, 2) @ errors[:, j + 1 : end])[:, 0]
            q[:, j] = rounded(j, w[:, j] - pull / L[:, j, j, None])
            errors[:, j] = q[:, j] - w[:, j]
    result = np.empty_like(q)
    np.put_along_axis(result, order[:, :, None], q, axis=1)
    return np.ascontiguousarray(result.swapaxes(1, 2))


def coordinate_descent(W: Array, H: Array, allowed: Allowed, Q: Array, sweeps: int = 8) -> Array:
    """Better weights: each in turn gets the allowed value that is best given all others.

    The loss never rises. It stops where no single weight can do better, or after so many sweeps.

    Args:
        W, H, allowed: as for ``nearest_plane``.
        Q: allowed weights to start from.
        sweeps: over all inputs, at most.
    """
    w, q = (np.ascontiguousarray(item.swapaxes(1, 2)) for item in (W, Q))
    rounded = allowed.rounder(W, None)
    gradient = H @ (q - w)
    curvature = np.diagonal(H, axis1=1, axis2=2)
    for _ in range(sweeps):
        changed = False
        for start in range(0, w.shape[1], BLOCK):
            end = min(start + BLOCK, w.shape[1])
            local, moves = gradient[:, start:end].copy(), np.zeros_like(w[:, start:end])
            for j in range(start, end):
                better = rounded(j, q[:, j] - local[:, j - start] / curvature[:, j, None])
                if np.array_equal(better, q[:, j]):
                    continue
                move = better - q[:, j]
                q[:, j], moves[:, j - start], changed = better, move, True
                local += H[:, start:end, j, None] * move[:, None, :]
            gradient += H[:, :, start:end] @ moves
        if not changed:
            break
    return np.ascontiguousarray(q.swapaxes(1, 2))


def by_input(array: Array, order: Array | None) -> Array:
    """(G, outputs, d) as (G, d, outputs) with the inputs in this order; d = 1 stands for all."""
    turned = array.swapaxes(1, 2)
    if turned.shape[1] == 1 or order is None:
        return np.ascontiguousarray(turned)
    taken: Array = np.take_along_axis(turned, order[:, :, None], axis=1)
    return taken
