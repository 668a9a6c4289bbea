"""Weights put onto allowed values one input after the other, so that a layer's outputs change least.

A layer computes y = W x of inputs with second moment H; weights Q instead of W cost tr((Q - W) H (Q - W)ᵀ). G
independent problems (the groups of a convolution) are solved side by side: W is (G, outputs, d), H is (G, d, d).

Weights may also be put onto allowed vectors: then so many neighbouring inputs take the place of one, and blocks of H
that of its entries. Single weights are the case of width one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import numpy as np

__all__ = ["Allowed", "Rounder", "by_input", "coordinate_descent", "nearest_plane"]

Array = np.ndarray[Any, Any]
Rounder: TypeAlias = Callable[[int, Array, Array], Array]

BLOCK = 128  # columns whose changes reach the others in one product of matrices; a multiple of all widths


class Allowed(Protocol):
    """The values that each weight may take, or the vectors that so many neighbours of an output may."""

    @property
    def width(self) -> int:
        """Weights of a vector."""

    def rounder(self, W: Array, order: Array | None) -> Rounder:
        """What gives the nearest allowed values.

        Its arguments are j, for the inputs from the j-th in this order to j + width; what is wanted of them, (G, width,
        outputs); and the metric in which the nearest is meant, (G, width, width). The values have the shape of what is
        wanted.

        Args:
            W: the weights, (G, outputs, d); those that are zero may have to stay zero.
            order: (G, d), of the inputs; None for their own.
        """


def nearest_plane(W: Array, H: Array, allowed: Allowed) -> Array:
    """Allowed weights found one input after the other, in the order of falling H_jj; those to come make up for errors.

    Vectors are found one after the other, in the order of falling traces of their blocks of H.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers", ICLR 2023 (arXiv:2210.17323). Computed as Babai's nearest plane algorithm, which gives the same
    (Chen et al. 2025, "The geometry of LLM quantization: GPTQ as Babai's nearest plane algorithm", arXiv:2507.18553):
    with H = L Lᵀ and the errors δ of inputs k > j known, input j adds (L_jj δ_j + Σ L_kj δ_k)² to the loss, so its
    weight is rounded around w_j - Σ L_kj δ_k / L_jj. For vectors L_jj is a block, and L_jj L_jjᵀ the metric of
    the nearest one: the inverse of a block of H⁻¹, that of the inputs to come (GPTVQ, van Baalen et al. 2024,
    arXiv:2402.15319).

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        allowed: what weights may be.
    """
    width = allowed.width
    order = _by_power(H, width)  # the last is rounded first
    w, rounded = by_input(W, order), allowed.rounder(W, order)
    L = np.linalg.cholesky(H[np.arange(len(H))[:, None, None], order[:, :, None], order[:, None, :]])
    q, errors = np.empty_like(w), np.empty_like(w)
    for end in range(w.shape[1], 0, -BLOCK):
        start = max(0, end - BLOCK)
        behind = L[:, end:, start:end].swapaxes(1, 2) @ errors[:, end:]
        for j in range(end - width, start - 1, -width):
            one, known = slice(j, j + width), slice(j + width, end)
            pull = behind[:, j - start : j - start + width] + L[:, known, one].swapaxes(1, 2) @ errors[:, known]
            root = L[:, one, one]
            q[:, one] = rounded(j, w[:, one] - _solved(root.swapaxes(1, 2), pull), root @ root.swapaxes(1, 2))
            errors[:, one] = q[:, one] - w[:, one]
    result = np.empty_like(q)
    np.put_along_axis(result, order[:, :, None], q, axis=1)
    return np.ascontiguousarray(result.swapaxes(1, 2))


def coordinate_descent(W: Array, H: Array, allowed: Allowed, Q: Array, sweeps: int = 8) -> Array:
    """Better weights: each in turn, or each vector, gets the allowed value that is best given all others.

    The loss never rises. It stops where nothing can do better alone, or after so many sweeps.

    Args:
        W, H, allowed: as for ``nearest_plane``.
        Q: allowed weights to start from.
        sweeps: over all inputs, at most.
    """
    w, q = (np.ascontiguousarray(item.swapaxes(1, 2)) for item in (W, Q))
    width, rounded = allowed.width, allowed.rounder(W, None)
    gradient = H @ (q - w)
    for _ in range(sweeps):
        changed = False
        for start in range(0, w.shape[1], BLOCK):
            end = min(start + BLOCK, w.shape[1])
            local, moves = gradient[:, start:end].copy(), np.zeros_like(w[:, start:end])
            for j in range(start, end, width):
                one, within = slice(j, j + width), slice(j - start, j - start + width)
                better = rounded(j, q[:, one] - _solved(H[:, one, one], local[:, within]), H[:, one, one])
                if np.array_equal(better, q[:, one]):
                    continue
                move = better - q[:, one]
                q[:, one], moves[:, within], changed = better, move, True
                local += H[:, start:end, one] @ move
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


def _by_power(H: Array, width: int) -> Array:
    """The inputs by rising H_jj, or runs of so many by its sums, (G, d)."""
    power = np.diagonal(H, axis1=1, axis2=2).reshape(len(H), -1, width).sum(axis=2)
    first = np.argsort(power, axis=1, kind="stable") * width
    return (first[:, :, None] + np.arange(width)).reshape(len(H), -1)


def _solved(A: Array, x: Array) -> Array:
    """A⁻¹ x of small matrices (G, width, width)."""
    return x / A if A.shape[1] == 1 else np.linalg.solve(A, x)
