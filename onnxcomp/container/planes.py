"""Arrays as planes of bytes: bytes of like meaning together, and those of noise apart from those of structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

__all__ = ["WIDTHS", "join", "split"]

Array = np.ndarray[Any, Any]

_T = TensorProto
_FLOATS = {_T.FLOAT, _T.BFLOAT16, _T.DOUBLE, _T.FLOAT16, _T.COMPLEX64, _T.COMPLEX128}
_SIGNED = {_T.INT16, _T.INT32, _T.INT64}

WIDTHS: dict[int, int] = {
    _T.FLOAT: 4, _T.COMPLEX64: 4, _T.INT32: 4, _T.UINT32: 4,
    _T.BFLOAT16: 2, _T.FLOAT16: 2, _T.INT16: 2, _T.UINT16: 2,
    _T.DOUBLE: 8, _T.COMPLEX128: 8, _T.INT64: 8, _T.UINT64: 8,
}  # fmt: skip
"""Bytes of a number, by element type of ONNX; of all others, 1."""


def split(data: bytes | memoryview, element: int) -> list[Array]:
    """The planes of an array, the most significant bytes first.

    A float's sign goes behind its mantissa, so that the first plane of a float32 is its exponent. An integer's sign
    becomes its last bit (zigzag), so that the first planes of small ones are zero.

    Args:
        data: a multiple of the element's width.
        element: type of ONNX.
    """
    width = WIDTHS.get(element, 1)
    if width == 1:
        return [np.frombuffer(data, np.uint8)]
    values = np.frombuffer(data, f"<u{width}")
    one, last = values.dtype.type(1), values.dtype.type(8 * width - 1)
    if element in _FLOATS:
        values = (values << one) | (values >> last)
    elif element in _SIGNED:
        values = (values << one) ^ -(values >> last)
    planes = values.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    return [np.ascontiguousarray(planes[:, index]) for index in reversed(range(width))]


def join(planes: list[Array], element: int) -> bytes:
    """What was split."""
    width = len(planes)
    if width == 1:
        return planes[0].tobytes()
    values = np.ascontiguousarray(np.stack(planes[::-1], axis=1)).view(f"<u{width}").ravel()
    one, last = values.dtype.type(1), values.dtype.type(8 * width - 1)
    if element in _FLOATS:
        values = (values >> one) | (values << last)
    elif element in _SIGNED:
        values = (values >> one) ^ -(values & one)
    return values.astype(f"<u{width}").tobytes()
