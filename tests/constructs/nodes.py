"""Nodes and their attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.constructs.building import (
    CONSTRUCTS,
    CUSTOM,
    FLOATS,
    OPAQUE,
    SEQUENCE,
    Maker,
    construct,
    layer,
    list_of,
    sparse,
    surround,
)
from tests.models import note, tensor, value


@construct
def node_documentation() -> onnx.ModelProto:
    node = layer()
    node.doc_string = "does something"
    note(node, source="net.py:12", namespace="")
    return surround([node])


@construct
def node_without_a_name() -> onnx.ModelProto:
    node = layer()
    node.ClearField("name")
    return surround([node, helper.make_node("Neg", ["y"], ["z"])])


@construct
def node_fields_set_to_nothing() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.name = node.domain = node.overload = node.doc_string = ""
    return surround([node])


@construct
def omitted_inputs_and_outputs() -> onnx.ModelProto:
    node = helper.make_node("Odd", ["", "x", "", "w", "", ""], ["", "y", ""], domain=CUSTOM, name="odd")
    return surround([node, helper.make_node("Empty", [], [], domain=CUSTOM)])


@construct
def names_of_any_kind() -> onnx.ModelProto:
    names = ["a.b/c:0", "ünï/号", "with space", "a,b;c=d", "'quoted\"", "x" * 300]
    nodes = [helper.make_node("Neg", ["x" if i == 0 else names[i - 1]], [n], name=n) for i, n in enumerate(names)]
    nodes += [helper.make_node("Neg", ["x"], ["same"], name="same"), helper.make_node("Neg", ["x"], ["t"], name="same")]
    return surround([*nodes, layer()])


@construct
def one_tensor_read_twice() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Odd", ["w", "x", "w"], ["y"], domain=CUSTOM, name="odd"),
        helper.make_node("MatMul", ["x", "w"], ["again"]),
    ]
    return surround(nodes)


@construct
def input_that_is_an_output() -> onnx.ModelProto:
    return surround([layer()], outputs=[value("x", "N", 4), value("y", "N", 3)])


# -- attributes ----------------------------------------------------------------------------------------------


def _with_attribute(*attributes: AttributeProto) -> Maker:
    def maker() -> onnx.ModelProto:
        node = layer(after="text", before=1)
        for attribute in attributes:
            node.attribute.insert(1, attribute)
        return surround([node])

    return maker


def attributes() -> dict[str, Sequence[AttributeProto]]:
    """Attributes of every kind, and odd ones."""
    make = helper.make_attribute
    graph = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "inner", [value("a", 2)], [value("b", 2)])
    documented = [make(name, item, doc_string=f"about {name}") for name, item in (("f", 0.5), ("t", tensor("t", 2)))]
    lists = ("floats", "ints", "strings", "tensors", "graphs", "sparse_tensors", "type_protos")
    described = tensor("inner", 2, 3)
    described.doc_string = "a table"
    note(described, unit="cm")
    part = TensorProto(dims=[2], data_type=TensorProto.FLOAT, float_data=[1.0])
    part.segment.begin, part.segment.end = 0, 1
    return {
        "float": [make("f", 0.1), make("nan", float("nan")), make("zero", -0.0), make("inf", float("-inf"))],
        "int": [make("i", -(2**63))],
        "string": [make("s", "é\n"), make("nothing", "")],
        "string_not_utf8": [make("s", b"\xff\xfe\x00")],
        "strings_not_utf8": [make("s", [b"ok", b"\xff"])],
        "tensor": [make("t", tensor("inner", 2, 3)), make("described", described)],
        "tensor_without_a_name": [make("t", numpy_helper.from_array(np.arange(3)))],
        "tensor_with_an_empty_name": [make("t", numpy_helper.from_array(np.arange(3), ""))],
        "tensor_of_strings": [make("t", numpy_helper.from_array(np.array([b"a", b"\xff"], object), "t"))],
        "tensor_in_segments": [make("t", part)],
        "tensor_that_is_missing": [AttributeProto(name="t", type=AttributeProto.TENSOR)],
        "graph": [make("g", graph)],
        "sparse_tensor": [make("sparse", sparse(TensorProto.INT8))],
        "type_proto": [make("kind", SEQUENCE)],
        "floats": [make("fs", [0.1, float("nan")])],
        "ints": [make("is", [1, -1])],
        "strings": [make("ss", ["a", ""])],
        "tensors": [list_of("tensors", tensor("a", 2), tensor("b", 3))],
        "graphs": [list_of("graphs", graph, graph)],
        "sparse_tensors": [list_of("sparse_tensors", sparse(), sparse(TensorProto.INT32))],
        "type_protos": [list_of("type_protos", FLOATS, OPAQUE)],
        "empty_lists": [list_of(name) for name in lists],
        "documentation": documented,
        "several_values": [AttributeProto(name="odd", type=AttributeProto.INT, i=3, f=2.0, ints=[1])],
        "undefined": [AttributeProto(name="odd", f=2.0, ints=[1])],
        "unset_value": [AttributeProto(name="i", type=AttributeProto.INT)],
    }


CONSTRUCTS |= {f"attribute_{name}": _with_attribute(*items) for name, items in attributes().items()}


@construct
def attribute_of_a_newer_kind() -> onnx.ModelProto:
    return _with_attribute(AttributeProto.FromString(b"\x0a\x01n\xa0\x01\x63"))()


def _constant(name: str, item: Any) -> Maker:
    def maker() -> onnx.ModelProto:
        constant = helper.make_node("Constant", [], ["w"], name="constant", doc_string="the weight", **{name: item})
        return surround([constant, layer()], [])

    return maker


_DESCRIBED = tensor("some name", 4, 3)
_DESCRIBED.doc_string = "a weight"
note(_DESCRIBED, origin="training")
CONSTRUCTS |= {
    "constant_node": _constant("value", tensor("", 4, 3)),
    "constant_node_with_documentation": _constant("value", _DESCRIBED),
    "constant_node_of_a_list": _constant("value_floats", [1.0, 2.0]),
    "constant_node_of_an_int": _constant("value_int", 3),
    "constant_node_of_strings": _constant("value_strings", ["a", "b"]),
    "constant_node_that_is_sparse": _constant("sparse_value", sparse()),
}
