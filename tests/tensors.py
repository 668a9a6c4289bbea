"""The tensors of a model, wherever they stand, and their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper

from onnxcomp.codec import nested_graphs
from onnxcomp.model import Model

__all__ = ["array_of", "clear_data", "gs_tensors", "messages_of", "other_values", "set_data"]

Array = np.ndarray[Any, Any]


def gs_tensors(model: Model) -> Iterator[gs.Tensor]:
    """Every tensor that a node of the model, of a body or of a function reads or makes."""
    for root in (model.graph, *model.graph.functions):
        for graph in nested_graphs(root):
            for node in graph.nodes:
                yield from (*node.inputs, *node.outputs)


def messages_of(proto: onnx.ModelProto, name: str) -> list[TensorProto]:
    """The initializers of a name, and the values of Constant nodes that make it, wherever they stand."""
    found: list[TensorProto] = []

    def visit(graph: Any) -> None:
        found.extend(item for item in getattr(graph, "initializer", ()) if item.name == name)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and name in node.output and attribute.HasField("t"):
                    found.append(attribute.t)
                visit(attribute.g)

    for root in (proto.graph, *proto.functions):
        visit(root)
    return found


def set_data(message: TensorProto, array: Array) -> None:
    """Put an array into a tensor in the way that ONNX itself stores one."""
    fresh = numpy_helper.from_array(array)
    clear_data(message)
    if fresh.data_type == TensorProto.STRING:
        message.string_data.extend(fresh.string_data)
    else:
        message.raw_data = fresh.raw_data


def clear_data(message: TensorProto) -> None:
    for field in TensorProto.DESCRIPTOR.fields:
        if field.name.endswith("_data"):
            message.ClearField(field.name)


def array_of(message: TensorProto) -> Array:
    """A tensor's value, text as bytes."""
    if message.data_type == TensorProto.STRING:
        return np.array(list(message.string_data), object).reshape(tuple(message.dims))
    return numpy_helper.to_array(message)


def other_values(array: Array) -> Array:
    """An array of the same shape and type, with other values if there are any."""
    if array.dtype == object:
        return np.array([b"other " + item for item in array.reshape(-1)], object).reshape(array.shape)
    if array.dtype == bool:
        return ~array
    return array.reshape(-1)[::-1].reshape(array.shape) if array.ndim else array + array
