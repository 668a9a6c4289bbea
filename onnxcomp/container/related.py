"""Arrays that are another one over again, or a multiple of it, as the scales of biases are of those of weights."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from onnx import TensorProto

__all__ = ["Earlier", "Relation", "multiplied"]

Array = np.ndarray[Any, Any]

Relation = tuple[int, bytes]
"""The index of an earlier array; and a factor (float32, little-endian), or nothing where it is the same."""

_LEAST_FLOATS = 8  # of fewer, a factor may fit by accident, and saves little
_MOST_TRIED = 32
_CLOSE = 4  # neighbours of a factor that are tried: it was rounded itself


class Earlier:
    """The arrays of a block so far."""

    def __init__(self) -> None:
        self._count = 0
        self._same: dict[bytes, int] = {}
        self._floats: dict[int, list[tuple[int, bytes, float, float]]] = {}  # by length; with their first and last

    def relation(self, data: bytes, element: int) -> Relation | None:
        """One that the next array can be computed from, to the bit.

        Args:
            data: the array. It counts as an earlier one from now on.
            element: type of ONNX.
        """
        index, self._count = self._count, self._count + 1
        if (same := self._same.setdefault(data, index)) != index:
            return same, b""
        if element != TensorProto.FLOAT or len(data) < 4 * _LEAST_FLOATS:
            return None
        (first,), (last,) = struct.unpack_from("<f", data), struct.unpack_from("<f", data, len(data) - 4)
        alike = self._floats.setdefault(len(data), [])
        candidates = alike[-_MOST_TRIED:]
        alike.append((index, data, first, last))
        for earlier, other, start, end in reversed(candidates):
            product = abs(first * end)
            is_likely = product > 0 and abs(first * end - last * start) <= 1e-6 * product
            if is_likely and (factor := _factor(data, other)):
                return earlier, factor
        return None


def multiplied(data: bytes, factor: bytes) -> bytes:
    """The array of float32 times a factor; IEEE 754 has one result of that."""
    with np.errstate(all="ignore"):
        product = np.frombuffer(data, "<f4") * np.frombuffer(factor, "<f4")
    return bytes(product.astype("<f4").tobytes())


def _factor(data: bytes, other: bytes) -> bytes:
    if not _is_safe(data) or not _is_safe(other):
        return b""
    wanted, given = np.frombuffer(data, "<f4"), np.frombuffer(other, "<f4")
    kept = given != 0
    if (wanted[~kept] != 0).any() or (wanted[kept] == 0).any():
        return b""
    start = np.array([np.median(wanted[kept].astype(np.float64) / given[kept])]).astype("<f4").view("<i4")[0]
    for step in sorted(range(-_CLOSE, _CLOSE + 1), key=abs):
        factor = (int(start) + step & 0xFFFFFFFF).to_bytes(4, "little")
        if _is_safe(factor) and multiplied(other[:32], factor) == data[:32] and multiplied(other, factor) == data:
            return factor
    return b""


def _is_safe(data: bytes) -> bool:
    """Whether all processors agree on products of these: they may take denormal numbers for 0, and NaNs differ."""
    bits = np.frombuffer(data, "<u4")
    exponents = (bits >> 23) & 0xFF
    return bool((((exponents > 0) & (exponents < 0xFF)) | (bits << np.uint32(1) == 0)).all())
