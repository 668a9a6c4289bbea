"""Codes of weights by their scale: a channel of small weights has another distribution than one of large ones.

The mean magnitude of the code in row o, column i and tap k of a kernel is modelled as a product r_o · c_i · d_k. Its
logarithm, rounded, is the code's class; each class has a table of frequencies. The rounded logarithms of the
factors are stored, and take some bits for each row and column.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Levels", "classes", "fit", "kernel_scales"]

Array = np.ndarray[Any, Any]
Levels = tuple[Array, Array, Array]
"""Rounded logarithms (uint8) of the factors of rows, columns and taps."""

_ROUNDS = 3


def fit(magnitude: Array, steps: float) -> Levels:
    """The levels of an array, by alternating fits as of a contingency table (Deming & Stephan, 1940).

    Args:
        magnitude: shape (rows, columns, taps), above 0, float32.
        steps: levels for each factor of two.
    """
    rows, columns, taps = magnitude.shape
    matrix = magnitude.reshape(rows, columns * taps)
    column, tap = np.ones(columns, np.float32), np.ones(taps, np.float32)
    row = np.ones(rows, np.float32)
    for _ in range(_ROUNDS):
        row = matrix @ (1 / (column[:, None] * tap)).ravel().astype(np.float32) / (columns * taps) + _SMALL
        sums = ((1 / row).astype(np.float32) @ matrix).reshape(columns, taps) / rows
        column = (sums / tap).mean(axis=1) + _SMALL
        tap = (sums / column[:, None]).mean(axis=0) + _SMALL
    levels = [np.rint(np.log2(factor) * steps).astype(np.int64) for factor in (row, column, tap)]
    return tuple(np.clip(level - level.min(), 0, 63).astype(np.uint8) for level in levels)


_SMALL = np.float32(1e-6)


def classes(levels: Levels) -> Array:
    """The class of each code (uint8), shape (rows, columns, taps)."""
    row, column, tap = levels
    return np.asarray(row[:, None, None] + (column[:, None] + tap)[None], np.uint8)


def kernel_scales(levels: Levels, steps: float) -> Array:
    """The modelled magnitudes of kernels, but for a constant factor: shape (rows, columns)."""
    row, column, _ = levels
    return np.asarray(np.exp2((row[:, None].astype(np.float32) + column) / np.float32(steps)))
