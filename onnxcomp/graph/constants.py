"""Constant tensors, whether they are initializers or the outputs of Constant nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.storage.mapped import Mapped

__all__ = ["assign", "is_constant", "replace_input", "shape_of", "value_of"]

Array = np.ndarray[Any, Any]


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether the tensor's value is known before the model runs."""
    return isinstance(tensor, gs.Constant) or _constant_node(tensor) is not None


def value_of(tensor: gs.Tensor) -> Array | None:
    """The tensor's value, or None when only a run knows it.

    Reading leaves an initializer's own bytes in place (graphsurgeon's ``values`` would re-encode them).
    The array must not be written into.
    """
    if isinstance(tensor, gs.Constant):
        values = tensor._values
        if isinstance(values, np.ndarray):
            return values
        if isinstance(values, Mapped):
            return values.view()
        if isinstance(values.tensor, onnx.TensorProto):
            return _stored(values.tensor)
        return _dense(values.tensor)
    node = _constant_node(tensor)
    return None if node is None else _attribute_value(node)


def shape_of(tensor: gs.Tensor) -> tuple[int | str | None, ...] | None:
    """Dimensions as the graph declares them, or None when it does not."""
    if not isinstance(tensor, gs.Constant) and (value := value_of(tensor)) is not None:
        return tuple(value.shape)
    return None if tensor.shape is None else tuple(tensor.shape)


def assign(tensor: gs.Tensor, value: Array) -> None:
    """Replace a constant's value, in the initializer or the Constant node that holds it."""
    array = np.ascontiguousarray(value).reshape(np.shape(value))  # ascontiguousarray makes 0-d into 1-d
    if not array.dtype.isnative:  # as files of other machines have it
        array = array.astype(array.dtype.newbyteorder("="))
    if isinstance(tensor, gs.Constant):
        tensor.values = array
        return
    if (node := _constant_node(tensor)) is None:
        raise ValueError(f"{tensor.name} is no constant")
    node.attrs.clear()
    node.attrs["value"] = gs.Constant(tensor.name, array)
    if tensor.dtype is not None:  # else the file does not declare it
        tensor.shape, tensor.dtype = array.shape, array.dtype


def replace_input(node: gs.Node, index: int, value: Array) -> None:
    """Replace a node's constant input; what other nodes read of the same tensor stays as it is."""
    tensor = node.inputs[index]
    if len(tensor.outputs) == 1:
        assign(tensor, value)
    else:
        name = f"{tensor.name}/{node.name or node.outputs[0].name}/{index}"
        node.inputs[index] = gs.Constant(name, np.ascontiguousarray(value))


def _stored(message: onnx.TensorProto) -> Array:
    """A tensor's value; text that is not UTF-8 stays bytes."""
    try:
        return np.asarray(onnx.numpy_helper.to_array(message))
    except UnicodeDecodeError:
        array = np.empty(len(message.string_data), object)
        array[:] = list(message.string_data)
        return array.reshape(tuple(message.dims))


def _dense(sparse: onnx.SparseTensorProto) -> Array:
    """A sparse tensor's value (graphsurgeon's is float64 whatever the type)."""
    stored = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), stored.dtype)
    if indices.ndim == 1:  # positions in the flattened array
        array.reshape(-1)[indices] = stored
    else:
        array[tuple(indices.T)] = stored
    return array


def _constant_node(tensor: gs.Tensor) -> gs.Node | None:
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and not tensor.inputs[0].domain:
        node: gs.Node = tensor.inputs[0]
        return node
    return None


def _attribute_value(node: gs.Node) -> Array | None:
    for name, value in node.attrs.items():
        if isinstance(value, gs.Constant):
            return value_of(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return None  # strings and sparse values are nothing to compute with
