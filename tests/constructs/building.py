"""What the models of the constructs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from tests.models import tensor, value

Array = np.ndarray[Any, Any]
Maker = Callable[[], onnx.ModelProto]

CUSTOM = "org.example"
CONSTRUCTS: dict[str, Maker] = {}

FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 2])
SEQUENCE = helper.make_sequence_type_proto(FLOATS)
OPAQUE = onnx.TypeProto(denotation="HANDLE")
OPAQUE.opaque_type.domain, OPAQUE.opaque_type.name = "org.example", "Handle"
CONDITION = value("c", kind=TensorProto.BOOL)


def construct(maker: Maker) -> Maker:
    """Enter a model under the name of the function that makes it."""
    CONSTRUCTS[maker.__name__] = maker
    return maker


def from_newer_onnx(message: Any) -> None:
    """Give a message a field, number 1000, that no version of ONNX knows yet."""
    grown = type(message).FromString(message.SerializeToString() + b"\xc2\x3e\x03new")
    message.CopyFrom(grown)


def surround(
    nodes: Sequence[onnx.NodeProto],
    initializers: Iterable[TensorProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 21,
    ir_version: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    """A model of some nodes, beside a layer that has nothing to do with them.

    Args:
        initializers: by default the weight ``w`` alone.
        inputs, outputs: beside ``x`` (N, 4) and ``y`` (N, 3).
    """
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("MatMul", ["x", "elsewhere.w"], ["elsewhere.h"], name="elsewhere"),
            helper.make_node("Relu", ["elsewhere.h"], ["elsewhere.y"], name="elsewhere/act"),
        ],
        "main",
        [value("x", "N", 4), *inputs],
        [value("y", "N", 3), value("elsewhere.y", "N", 2), *outputs],
        [*([tensor("w", 4, 3)] if initializers is None else initializers), tensor("elsewhere.w", 4, 2)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CUSTOM, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="maker", **more)


def layer(**attributes: Any) -> onnx.NodeProto:
    """A node of a custom operator that reads the weight."""
    return helper.make_node("Odd", ["x", "w"], ["y"], name="odd", domain=CUSTOM, **attributes)


def sparse(kind: int = TensorProto.FLOAT, name: str = "") -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, kind, [3], [1, 2, 3])
    indices = helper.make_tensor("", TensorProto.INT64, [3], [0, 5, 11])
    return helper.make_sparse_tensor(values, indices, [4, 3])


def body(name: str, *extra: onnx.NodeProto, reads: str = "w", **more: Any) -> onnx.GraphProto:
    """A branch that multiplies ``x`` of the graph around it."""
    nodes = [*extra, helper.make_node("MatMul", ["x", reads], [f"{name}.y"], name=f"{name}/product")]
    return helper.make_graph(nodes, name, [], [value(f"{name}.y", "N", 3)], **more)


def branch(then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)


CONDITION = value("c", kind=TensorProto.BOOL)


def list_of(name: str, *items: Any) -> AttributeProto:
    """An attribute of the kind whose values stand in the field ``name``, under that name."""
    attribute = AttributeProto(name=name, type=AttributeProto.AttributeType.Value(name.upper()))
    getattr(attribute, name).extend(items)
    return attribute
