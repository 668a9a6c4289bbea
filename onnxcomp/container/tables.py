"""Tables of frequencies: how they are made of counts, stored in a few bytes, and made again the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.container.rans import TOTAL, CodeError

__all__ = ["entropies", "entropy", "frequencies", "from_levels", "histogram", "levels_of", "most_tables"]

Array = np.ndarray[Any, Any]

_STEPS = 8  # levels per factor of two: what rounding to them costs is below 0.001 bits a symbol
_MOST_LEVEL = 255

# 2^(level / _STEPS) with 16 more bits, by integer arithmetic alone, so that every machine finds the same tables.
_ROOTS = [65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194]
_WEIGHTS = np.array(
    [0] + [_ROOTS[(level - 1) % 8] << ((level - 1) // 8) for level in range(1, _MOST_LEVEL + 1)], object
)
_WEIGHTS = np.minimum(_WEIGHTS, 2**48).astype(np.int64)


def most_tables(size: int) -> int:
    """How many tables the code of so many bytes may have: making them must not take more time than the bytes do."""
    return min(256, 1 + size // 64)


def levels_of(counts: Array) -> Array:
    """Counts of symbols on a logarithmic scale (uint8, the same shape); 0 stays 0."""
    with np.errstate(divide="ignore"):
        levels = np.rint(np.log2(counts.astype(np.float64)) * _STEPS) + 1
    return np.where(counts > 0, np.clip(levels, 1, _MOST_LEVEL), 0).astype(np.uint8)


def from_levels(levels: Array) -> Array:
    """The frequencies that levels stand for: rows of 256 of sum ``TOTAL``."""
    return np.array([frequencies(row) for row in _WEIGHTS[levels]], np.int64).reshape(-1, 256)


def frequencies(weights: Array) -> Array:
    """Integers in the ratio of ``weights`` (int64, below 2^48) and of sum ``TOTAL``; what is not 0 stays so.

    No symbol gets all of them, because a coder's state could not hold that.

    Raises:
        CodeError: all weights are 0.
    """
    present = weights > 0
    total = int(weights.sum())
    if not total:
        raise CodeError("a table is empty")
    shift = max(0, total.bit_length() - 48)
    shares = (weights >> shift) * TOTAL // max(1, total >> shift)
    result = np.where(present, np.maximum(shares, 1), 0)
    largest = int(result.argmax())
    result[largest] += TOTAL - result.sum()
    if result[largest] >= TOTAL:
        result[largest] -= 1
        result[largest ^ 1] += 1
    return result


def histogram(symbols: Array) -> Array:
    """How often each of 256 symbols occurs."""
    if len(symbols) < _WORTH_PAIRS:
        return np.bincount(symbols, minlength=256)
    even = len(symbols) & -2
    pairs = np.bincount(symbols[:even].view(np.uint16), minlength=2**16).reshape(256, 256)  # takes half the time
    return np.asarray(pairs.sum(axis=0) + pairs.sum(axis=1) + np.bincount(symbols[even:], minlength=256))


_WORTH_PAIRS = 2**18


def entropy(counts: Array) -> float:
    """Bytes that symbols take at least when each row of counts has a table of its own."""
    return float(entropies(counts).sum())


def entropies(counts: Array) -> Array:
    """The same of each row."""
    row, _ = np.nonzero(counts)
    found = counts[counts > 0].astype(np.float64)
    totals = counts.sum(axis=1)
    bits = totals * np.log2(np.maximum(totals, 1)) - np.bincount(row, found * np.log2(found), minlength=len(counts))
    return np.asarray(bits) / 8
