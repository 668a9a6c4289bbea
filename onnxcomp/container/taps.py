"""Codes of convolution kernels predicted from neighbours: what one tap of a kernel is tells of the next.

Tap k of a kernel is predicted as a linear combination of the taps before it, with the same few coefficients for all
kernels of a weight. What is coded is the difference, modulo 256. Coefficients are integers, so that all machines
predict the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["LEAST_KERNELS", "MOST_BEFORE", "fit", "predicted"]

Array = np.ndarray[Any, Any]

LEAST_KERNELS = 256
"""Kernels that a weight must have to be predicted: those of fewer cost more time than they save bytes."""

MOST_BEFORE = 8
"""Taps that a tap is predicted from, at most: the nearest."""

_SHIFT = 6  # bits of the coefficients behind the point
_LIMIT = 127


def fit(codes: Array, scale: Array) -> tuple[list[Array], float]:
    """Coefficients by weighted least squares.

    Args:
        codes: int8, shape (rows, columns, taps).
        scale: what the codes of each kernel are divided by, so that each counts alike; shape (rows, columns).

    Returns:
        for each tap from the second on, coefficients (int8, in 1/64) of those before it, oldest first; and an
        estimate of the bits that the prediction saves.
    """
    kernels = (codes / scale[:, :, None]).reshape(-1, codes.shape[2]).astype(np.float32)
    gram = (kernels.T @ kernels).astype(np.float64)
    coefficients, bits = [], 0.0
    for tap in range(1, codes.shape[2]):
        before = slice(max(0, tap - MOST_BEFORE), tap)
        inner = gram[before, before]
        ridge = np.eye(len(inner)) * (1e-6 * np.trace(inner) + 1e-9)
        exact = np.linalg.solve(inner + ridge, gram[before, tap])
        rounded = np.clip(np.rint(exact * 2**_SHIFT), -_LIMIT, _LIMIT)
        shares = rounded / 2**_SHIFT
        left = gram[tap, tap] - 2 * shares @ gram[before, tap] + shares @ inner @ shares
        if gram[tap, tap] > 0:
            bits += -0.5 * np.log2(max(left / gram[tap, tap], 1e-6)) * len(kernels)
        coefficients.append(rounded.astype(np.int8))
    return coefficients, float(bits)


def predicted(codes: Array, coefficients: Array) -> Array:
    """Predictions (int8, modulo 256) of the next tap.

    Args:
        codes: int8, shape (taps before, kernels).
        coefficients: one for each of the last taps.
    """
    total = np.full(codes.shape[1], 2 ** (_SHIFT - 1), np.int32)
    for code, coefficient in zip(codes[len(codes) - len(coefficients) :], coefficients.tolist(), strict=True):
        if coefficient:
            total += code * np.int32(coefficient)
    return (total >> _SHIFT).astype(np.int8)
