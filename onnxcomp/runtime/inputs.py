"""What a model wants to be fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import InputError
from onnxcomp.model import Model

__all__ = ["ModelInput", "conform", "model_inputs"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ModelInput:
    """One input: ``shape`` has an int, a symbol or None for each axis; None when the rank is unknown."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} of shape ({', '.join('?' if dim is None else str(dim) for dim in self.shape)})"

    @property
    def kind(self) -> str:
        """``float``, ``int``, ``bool`` or ``string``."""
        return _kind(self.dtype)


def model_inputs(model: Model) -> list[ModelInput]:
    """The inputs that a caller must feed: graph inputs that no initializer gives a value.

    Raises:
        InputError: an input is no tensor.
    """
    inputs = []
    for tensor in model.graph.inputs:
        if isinstance(tensor, gs.Constant):
            continue
        if tensor.dtype is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
            raise InputError(
                f"{model.path or 'the model'}: input {tensor.name} is no tensor; such models are not supported yet"
            )
        dims = None if tensor.shape is None else tuple(_dim(dim) for dim in tensor.shape)
        inputs.append(ModelInput(tensor.name, np.dtype(tensor.dtype), dims))
    return inputs


def conform(array: Array, wanted: ModelInput, where: str) -> Array:
    """``array`` as one feed of the input: cast within its kind, with its rank and fixed dimensions.

    Args:
        array: a whole feed.
        wanted: the input.
        where: the start of an error message: the file, and the sample where that helps.

    Raises:
        InputError: it cannot be fed, or holds NaN or infinite values.
    """
    check_kind(array.dtype, wanted, where)
    if wanted.shape is not None:
        fits = len(wanted.shape) == array.ndim and all(
            not isinstance(dim, int) or dim == found for dim, found in zip(wanted.shape, array.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"{where}: array {wanted.name!r} has shape {array.shape} where the model takes {wanted}; "
                "give it that shape"
            )
    return _cast(array, wanted, where)


def check_names(arrays: Mapping[str, Any], inputs: list[ModelInput], where: str) -> None:
    for entry in inputs:
        if entry.name not in arrays:
            found = ", ".join(arrays) or "none"
            raise InputError(
                f"{where}: has no array for input {entry.name!r} ({entry}); add it (arrays there: {found})"
            )
    for name in arrays:
        if name not in {entry.name for entry in inputs}:
            names = ", ".join(entry.name for entry in inputs)
            raise InputError(f"{where}: array {name!r} is no input of the model; remove it (inputs: {names})")


def check_kind(found: np.dtype[Any], wanted: ModelInput, where: str) -> None:
    """Floats are fed to float inputs, integers to integer inputs: a mix-up hides missing preprocessing.

    Raises:
        InputError: the kinds differ.
    """
    kind = _kind(found)
    if kind == wanted.kind:
        return
    remedy = {
        "float": f"convert it with the scaling the model was trained with, to {wanted.dtype}",
        "int": f"convert it to {wanted.dtype}",
        "bool": "convert it to bool",
    }.get(wanted.kind, "convert it to strings")
    raise InputError(f"{where}: array {wanted.name!r} is {found} where the model takes {wanted}; {remedy}")


def _cast(array: Array, wanted: ModelInput, where: str) -> Array:
    if wanted.kind == "float":
        with np.errstate(over="ignore"):
            cast = np.ascontiguousarray(array, dtype=wanted.dtype).reshape(array.shape)
        if not np.isfinite(cast).all():
            raise InputError(
                f"{where}: array {wanted.name!r} holds NaN or infinite values as {wanted.dtype}; remove those samples"
            )
        return cast
    if wanted.kind == "int" and array.dtype != wanted.dtype and array.size:
        limits = np.iinfo(wanted.dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(
                f"{where}: array {wanted.name!r} holds values outside {wanted.dtype}, which the model takes; "
                "check how it was made"
            )
    if wanted.kind == "string":
        return array.astype(object)
    return np.ascontiguousarray(array, dtype=wanted.dtype).reshape(array.shape)


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        return "int"
    if dtype.kind == "f" or "float" in dtype.name:  # ml_dtypes are of kind V
        return "float"
    return {"b": "bool", "U": "string", "S": "string", "O": "string"}.get(dtype.kind, dtype.name)


def _dim(dim: Any) -> int | str | None:
    if isinstance(dim, (int, np.integer)):
        return int(dim) if dim >= 0 else None
    return str(dim) if dim else None
