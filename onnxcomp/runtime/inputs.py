"""What a model wants to be fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import graph_origin_of
from onnxcomp.errors import InputError
from onnxcomp.model import Model
from onnxcomp.runtime.values import is_float

__all__ = ["ModelInput", "conform", "model_inputs", "require_tensors"]

Array = np.ndarray[Any, Any]
Container = Literal["tensor", "sequence", "optional", "map"]


@dataclass(frozen=True)
class ModelInput:
    """One input.

    Attributes:
        name: in the graph.
        dtype: of its elements; of a map, of its values.
        shape: an int, a symbol or None for each axis; None when the rank is unknown.
        container: a list of such tensors is fed to a sequence, a dict to a map, and the tensor or None to an
            optional.
        keys: type of the keys of a map.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    container: Container = "tensor"
    keys: np.dtype[Any] | None = None

    def __str__(self) -> str:
        if self.container != "tensor":
            return f"a{'n' * (self.container == 'optional')} {self.container} of {self.dtype}"
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
        InputError: an input has no type, or one of which no values can be made (a sequence of sequences, say).
    """
    return [_model_input(model, tensor) for tensor in model.graph.inputs if not isinstance(tensor, gs.Constant)]


def require_tensors(inputs: list[ModelInput], where: str) -> None:
    """Data files hold arrays.

    Raises:
        InputError: an input of the model is something else.
    """
    for entry in inputs:
        if entry.container != "tensor":
            raise InputError(f"{where}: input {entry.name!r} is {entry}, which no data can hold; compile without data")


def _model_input(model: Model, tensor: gs.Tensor) -> ModelInput:
    origin = graph_origin_of(model.graph)
    declared = next((value for value in (origin.inputs if origin else ()) if value.name == tensor.name), None)
    if declared is None:  # an input that a pass made
        dims = None if tensor.shape is None else tuple(_dim(dim) for dim in tensor.shape)
        return ModelInput(tensor.name, np.dtype(tensor.dtype), dims)
    found = _of_type(tensor.name, declared.type)
    if found is None:
        kind = declared.type.WhichOneof("value") or "nothing"
        raise InputError(
            f"{model.path or 'the model'}: input {tensor.name!r} is declared as {kind.removesuffix('_type')} of a type "
            "that cannot be fed; export the model with tensors as inputs"
        )
    return found


def _of_type(name: str, kind: onnx.TypeProto) -> ModelInput | None:
    """None where no values of the type can be made."""
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return _tensor(name, kind.tensor_type)
    if which == "map_type":
        keys, values = _numpy_type(kind.map_type.key_type), _of_type(name, kind.map_type.value_type)
        single = keys is not None and values is not None and values.container == "tensor"
        return ModelInput(name, values.dtype, (), "map", keys) if values is not None and single else None
    if which == "sequence_type":
        inner = _of_type(name, kind.sequence_type.elem_type)
        return replace(inner, container="sequence") if inner is not None and inner.container == "tensor" else None
    if which == "optional_type":
        inner = _of_type(name, kind.optional_type.elem_type)  # its values may be fed as they are
        return replace(inner, container="optional") if inner is not None and inner.container == "tensor" else inner
    return None


def _tensor(name: str, kind: onnx.TypeProto.Tensor) -> ModelInput | None:
    dtype = _numpy_type(kind.elem_type)
    if dtype is None:
        return None
    if not kind.HasField("shape"):
        return ModelInput(name, dtype, None)
    dims = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim)
    return ModelInput(name, dtype, tuple(map(_dim, dims)))


def _numpy_type(element: int) -> np.dtype[Any] | None:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    except KeyError:
        return None


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
        limits = ml_dtypes.iinfo(wanted.dtype)  # type: ignore[no-untyped-call]
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(
                f"{where}: array {wanted.name!r} holds values outside {wanted.dtype}, which the model takes; "
                "check how it was made"
            )
    if wanted.kind == "string":
        return array.astype(object)
    return np.ascontiguousarray(array, dtype=wanted.dtype).reshape(array.shape)


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu" or dtype.name.strip("u").startswith("int"):  # ml_dtypes are of kind V
        return "int"
    if is_float(dtype):
        return "float"
    return {"b": "bool", "U": "string", "S": "string", "O": "string"}.get(dtype.kind, dtype.name)


def _dim(dim: Any) -> int | str | None:
    if isinstance(dim, (int, np.integer)):
        return int(dim) if dim >= 0 else None
    return str(dim) if dim else None
