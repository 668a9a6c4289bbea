"""Values between NumPy and ONNX Runtime, of types that the runtime's own binding does not take or give."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__all__ = ["is_float", "prepared", "run_session"]

_REGISTERED = 2  # what numpy.dtype.isbuiltin is for types that a package adds, as ml_dtypes does
_NATIVE = {f"tensor({name})" for name in ("float", "double", "float16", "bool", "string")} | {
    f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the type is a floating-point one, those of ml_dtypes included."""
    return dtype.kind == "f" or "float" in dtype.name


def run_session(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Any], options: ort.RunOptions
) -> list[Any]:
    """``session.run`` that takes and gives bfloat16, float8 and types of a part of a byte as ml_dtypes arrays.

    Raises:
        Exception: what the runtime raises.
    """
    return [_from_ort(value) for value in prepared(session, names, feeds, options)()]


def prepared(
    session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Any], options: ort.RunOptions | None = None
) -> Callable[[], list[Any]]:
    """A call that runs the session and converts nothing: neither the feeds, which are, nor the outputs."""
    wanted = list(names)
    given = {name: _to_ort(value) for name, value in feeds.items()}
    kinds = {output.name: output.type for output in session.get_outputs()}
    if all(kinds[name] in _NATIVE or not kinds[name].startswith("tensor") for name in wanted if name in kinds):
        return lambda: list(session.run(wanted, given, options))
    values = {
        name: value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
        for name, value in given.items()
    }
    return lambda: list(session.run_with_ort_values(wanted, values, options))


def _to_ort(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.isbuiltin != _REGISTERED:
        return value
    tensor = onnx.numpy_helper.from_array(value)  # packs what is smaller than a byte
    made = ort.OrtValue.ortvalue_from_shape_and_type(list(value.shape), tensor.data_type)
    ctypes.memmove(made.data_ptr(), tensor.raw_data, len(tensor.raw_data))
    return made


def _from_ort(value: Any) -> Any:
    if not isinstance(value, ort.OrtValue):
        return value
    if not value.has_value():
        return None
    if not value.is_tensor() or value.data_type() in _NATIVE:
        return value.numpy()
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return onnx.numpy_helper.to_array(
        onnx.TensorProto(data_type=value.element_type(), dims=value.shape(), raw_data=raw)
    )
