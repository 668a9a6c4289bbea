"""Whatever the ONNX format can say, a model still says after it was loaded, edited elsewhere and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import assign
from onnxcomp.model import Model
from tests.compare import differences
from tests.constructs import CONSTRUCTS

Array = np.ndarray[Any, Any]

each_construct = pytest.mark.parametrize("name", CONSTRUCTS)


def reloaded(proto: onnx.ModelProto, folder: Path, edit: Callable[[Model], None] | None = None) -> onnx.ModelProto:
    """The model after it was written, loaded, edited and saved."""
    source, result = folder / "net.onnx", folder / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    model = Model.load(source)
    if edit is not None:
        edit(model)
    model.save(result)
    return onnx.load(result)


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
    for field in ("raw_data", "string_data"):
        if getattr(fresh, field):
            value = getattr(fresh, field)
            message.raw_data = value if field == "raw_data" else b""
            if field == "string_data":
                message.ClearField("raw_data")
                message.string_data.extend(value)


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


# -- three settings ------------------------------------------------------------------------------------------


@each_construct
def test_an_untouched_model_is_equal_in_every_field(name: str, tmp_path: Path) -> None:
    proto = CONSTRUCTS[name]()
    assert differences(reloaded(proto, tmp_path), proto) == []


@each_construct
def test_an_edit_elsewhere_changes_nothing_else(name: str, tmp_path: Path) -> None:
    weight = np.full((4, 2), 7, np.float32)

    def edit(model: Model) -> None:
        node = next(node for node in model.graph.nodes if node.name == "elsewhere")
        assign(node.inputs[1], weight)
        node.name = "renamed"
        state = model.checkpoint()
        model.proto()
        assert not state.changed(), "writing a model must not change it"

    expected = CONSTRUCTS[name]()
    next(node for node in expected.graph.node if node.name == "elsewhere").name = "renamed"
    (message,) = messages_of(expected, "elsewhere.w")
    set_data(message, weight)
    assert differences(reloaded(CONSTRUCTS[name](), tmp_path, edit), expected) == []


@each_construct
def test_a_weight_that_is_replaced_is_the_only_difference(name: str, tmp_path: Path) -> None:
    expected = CONSTRUCTS[name]()
    messages = messages_of(expected, "w")
    if not messages:
        pytest.skip("its value cannot be an array")
    (message,) = messages
    old = array_of(message)
    array = other_values(old)

    def edit(model: Model) -> None:
        assign(next(item for item in gs_tensors(model) if item.name == "w"), array)

    found = reloaded(CONSTRUCTS[name](), tmp_path, edit)
    (stored,) = messages_of(found, "w")
    assert array_of(stored).dtype == old.dtype
    np.testing.assert_array_equal(array_of(stored), array)
    if array.size:
        assert (array != old).any()
    clear_data(stored)
    clear_data(message)
    assert differences(found, expected) == []


def test_undoing_an_edit_brings_every_field_back() -> None:
    for name, maker in CONSTRUCTS.items():
        model = Model.from_proto(maker())
        state = model.checkpoint()
        for graph in nested_graphs(model.graph):
            for node in graph.nodes:
                node.name, node.op = f"new {node.name}", "Renamed"
                node.attrs.clear()
        for item in list(gs_tensors(model)):
            item.name = f"new {item.name}"
        model.graph.functions.clear()
        model.proto()
        state.restore()
        assert differences(model.proto(), maker()) == [], name
