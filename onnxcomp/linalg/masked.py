"""Least squares for weights of which some are held at zero."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["MASKED_SHARE", "kept_weights", "masked_least_squares"]

Array = np.ndarray[Any, Any]

MASKED_SHARE = 1 / 8
"""Of a matrix that must be exactly zero for the zeros to count as meant."""

_STEPS = 40
_TOLERANCE = 1e-4  # of the gradient, over that of the first step


def kept_weights(W: Array) -> Array | None:
    """Which weights are not zero; None where so few are that they are chance."""
    kept: Array = W != 0
    zeros = kept.size - int(np.count_nonzero(kept))
    return kept if zeros and zeros >= MASKED_SHARE * kept.size else None


def masked_least_squares(W: Array, H: Array, kept: Array, start: Array | None = None, steps: int = _STEPS) -> Array:
    """The X with zeros outside ``kept`` that makes the loss tr((X - W) H (X - W)ᵀ) least.

    The rows are independent problems with a matrix H_SS each; all are solved side by side by conjugate gradients,
    preconditioned with diag(H), whose steps are products with H (Hestenes and Stiefel 1952). What is left after so
    many steps is no worse than ``start``.

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        kept: mask of W's shape.
        start: of W's shape; by default W itself.
        steps: at most.
    """
    X: Array = (W if start is None else start) * kept
    inverse = 1.0 / np.diagonal(H, axis1=1, axis2=2)[:, None, :]
    residual = ((W - X) @ H) * kept
    direction = residual * inverse
    power = (residual * direction).sum(axis=2, keepdims=True)
    enough = _TOLERANCE**2 * power
    for _ in range(steps):
        if (power <= enough).all():
            break
        image = (direction @ H) * kept
        length = _ratio(power, (direction * image).sum(axis=2, keepdims=True))
        X = X + length * direction
        residual -= length * image
        scaled = residual * inverse
        before, power = power, (residual * scaled).sum(axis=2, keepdims=True)
        direction = scaled + _ratio(power, before) * direction
    return X


def _ratio(a: Array, b: Array) -> Array:
    ratio: Array = np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    return ratio
