"""What a byte of codes is worth: the distance of its number, or its numbers, from zero."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

__all__ = ["MASK", "has_magnitudes", "magnitudes"]

MASK = TensorProto.UNDEFINED
"""The type of bytes of flags; their magnitude is how many are set."""

Array = np.ndarray[Any, Any]

_FLOOR = np.float32(0.25)  # so that a row of zeros has a scale, too


def has_magnitudes(element: int) -> bool:
    """Whether the bytes of this type of ONNX are codes that grow with what they stand for."""
    return element in (TensorProto.INT8, TensorProto.UINT8) or _table(element) is not None


def magnitudes(codes: Array, element: int) -> Array:
    """The magnitude of each byte of codes: float32, at least 1/4, of the same shape.

    Unsigned codes are counted from the middle of their range, where quantizers put zero.
    """
    if element in (TensorProto.INT8, TensorProto.UINT8):
        signed = (codes ^ np.uint8(0x80 if element == TensorProto.UINT8 else 0)).view(np.int8)
        return np.asarray(np.abs(signed.astype(np.float32)) + _FLOOR)
    table = _table(element)
    assert table is not None
    return np.asarray(table[codes.astype(np.intp)])


@functools.cache
def _table(element: int) -> Array | None:
    every = np.arange(256, dtype=np.uint8)
    name = TensorProto.DataType.Name(element) if element in TensorProto.DataType.values() else ""
    if name in ("INT4", "UINT4", "INT2", "UINT2"):  # several codes in a byte
        bits = int(name[-1])
        digits = ((every[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)).astype(np.int16)
        middle = 2 ** (bits - 1)
        signed = digits - middle if name[0] == "U" else (digits ^ middle) - middle
        return np.asarray(np.abs(signed).sum(axis=1), np.float32) + _FLOOR
    if element == MASK:
        return np.asarray(np.bitwise_count(every), np.float32) + _FLOOR
    if name.startswith("FLOAT8") and not name.endswith("E8M0"):
        found = every.view(onnx.helper.tensor_dtype_to_np_dtype(element)).astype(np.float32)
        values = np.abs(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))
        return np.asarray(values * (128 / values.max()) + _FLOOR, np.float32)
    return None
