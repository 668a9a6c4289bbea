"""What a byte of codes is worth: the distance of its number, or its numbers, from zero."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

__all__ = ["magnitudes"]

Array = np.ndarray[Any, Any]

_FLOOR = np.float32(0.25)  # so that a row of zeros has a scale, too


@functools.cache
def magnitudes(element: int) -> Array | None:
    """For each byte a float32 of at least 1/4; None for types whose bytes have no magnitude.

    Unsigned codes are counted from the middle of their range, where quantizers put zero.
    """
    every = np.arange(256, dtype=np.uint8)
    name = TensorProto.DataType.Name(element) if element in TensorProto.DataType.values() else ""
    values: Array
    if name == "INT8":
        values = every.view(np.int8).astype(np.int16)
    elif name == "UINT8":
        values = every.astype(np.int16) - 128
    elif name in ("INT4", "UINT4", "INT2", "UINT2"):
        bits = int(name[-1])
        digits = (every[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
        middle = 2 ** (bits - 1)
        signed = digits.astype(np.int16) - middle if name[0] == "U" else (digits ^ middle).astype(np.int16) - middle
        return np.asarray(np.abs(signed).sum(axis=1), np.float32) + _FLOOR
    elif name.startswith("FLOAT8") and not name.endswith("E8M0"):
        found = every.view(onnx.helper.tensor_dtype_to_np_dtype(element)).astype(np.float32)
        values = np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)
        values = values / max(float(np.abs(values).max()), 1e-30) * 128
    else:
        return None
    return np.asarray(np.abs(values.astype(np.float32)), np.float32) + _FLOOR
