"""Arrays that are another one over again, or a multiple of it, as the scales of biases are of those of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

__all__ = ["Relation", "multiplied", "relation"]

Array = np.ndarray[Any, Any]

Relation = tuple[int, bytes]
"""The index of an earlier array; and a factor (float32, little-endian), or nothing where it is the same."""

_LEAST_FLOATS = 8  # of fewer, a factor may fit by accident, and saves little
_MOST_TRIED = 32
_CLOSE = 4  # neighbours of a factor that are tried: it was rounded itself


def relation(data: bytes, element: int, earlier: Sequence[tuple[int, bytes, int]]) -> Relation | None:
    """An earlier array that this one can be computed from, to the bit.

    Args:
        data: the array.
        element: type of ONNX.
        earlier: arrays of the same length before it: their index, bytes and type.
    """
    for index, other, kind in reversed(earlier[-_MOST_TRIED:]):
        if other == data:
            return index, b""
        is_float = element == kind == TensorProto.FLOAT and len(data) >= 4 * _LEAST_FLOATS
        if is_float and (factor := _factor(data, other)):
            return index, factor
    return None


def multiplied(data: bytes, factor: bytes) -> bytes:
    """The array of float32 times a factor; IEEE 754 has one result of that."""
    with np.errstate(all="ignore"):
        product = np.frombuffer(data, "<f4") * np.frombuffer(factor, "<f4")
    return bytes(product.astype("<f4").tobytes())


def _factor(data: bytes, other: bytes) -> bytes:
    wanted, given = np.frombuffer(data, "<f4"), np.frombuffer(other, "<f4")
    with np.errstate(all="ignore"):
        first, last = float(wanted[0]) / given[0], float(wanted[-1]) / given[-1]
        if not abs(first - last) <= 1e-6 * abs(first):
            return b""
        start = np.array([np.median(wanted.astype(np.float64) / given)]).astype("<f4").view("<i4")[0]
    for step in sorted(range(-_CLOSE, _CLOSE + 1), key=abs):
        factor = np.array([start + step], "<i4").tobytes()
        if multiplied(other[:32], factor) == data[:32] and multiplied(other, factor) == data:
            return factor
    return b""
