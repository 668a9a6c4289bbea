"""What cannot be carried through an edit is refused before one begins, each with one sentence.

Files that readers understand in different ways are among it: whichever way was chosen, the result would be another
model to somebody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx.external_data_helper import uses_external_data

from onnxcomp.errors import InputError
from onnxcomp.storage.messages import name_of

__all__ = [
    "known_element_type",
    "refuse_capture",
    "refuse_external",
    "refuse_graph",
    "refuse_unreadable_names",
]

_ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def known_element_type(element_type: int) -> bool:
    """Whether the installed onnx can read tensors of the type."""
    return element_type in _ELEMENT_TYPES


def refuse_graph(graph: onnx.GraphProto) -> None:
    """Initializers and inputs without a name, and sparse initializers whose data are elsewhere.

    Raises:
        InputError: it has such.
    """
    for what, items in (
        ("initializer", [*graph.initializer, *graph.sparse_initializer]),
        ("input", list(graph.input)),
    ):
        if any(not name_of(item) for item in items):
            raise InputError(
                f"the graph {graph.name!r} has an {what} without a name, which nothing can refer to; name or remove it"
            )
    for tensor in graph.sparse_initializer:
        refuse_external(tensor, f"the sparse initializer {tensor.values.name!r}")


def refuse_unreadable_names(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Names that are not UTF-8, which protobuf gives as bytes.

    Raises:
        InputError: a node, value, operator, dimension or attribute has such.
    """
    for name in _all_names(graph):
        if isinstance(name, bytes):
            shown = name.decode(errors="backslashreplace")
            raise InputError(f"the graph {graph.name!r} has the name {shown!r}, which is not UTF-8 text; rename it")


def _all_names(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[Any]:
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (name for attribute in node.attribute for name in (attribute.name, attribute.ref_attr_name))
    if isinstance(graph, onnx.FunctionProto):
        yield from (graph.name, graph.domain, *graph.input, *graph.output, *graph.attribute)
        yield from (attribute.name for attribute in graph.attribute_proto)
        return
    yield from (name_of(tensor) for tensor in (*graph.initializer, *graph.sparse_initializer))
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def refuse_external(message: Message, where: str) -> None:
    """External data where ``Model.load`` does not look for it, which a copy elsewhere could not find.

    Raises:
        InputError: a tensor in the message has external data.
    """
    for tensor in _tensors(message):
        if uses_external_data(tensor):
            raise InputError(
                f"{where} has its data in another file, which only initializers and tensor attributes may have here; "
                "store it in the model"
            )


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in (value,) if isinstance(value, Message) else value:
                yield from _tensors(item)


def refuse_capture(bodies: Iterable[onnx.GraphProto], where: str) -> None:
    """Graphs that are kept as they are and read values of the graph around them, which may be edited.

    Raises:
        InputError: one of them does.
    """
    for body in bodies:
        outer = next((name for name in _names_read(body) if name and name not in _names_made(body)), None)
        if outer is not None:
            raise InputError(
                f"{where} is a list of graphs, one of which reads {outer!r} of the graph around it, "
                "and that cannot be kept right while the model is edited; pass it as an input of the node"
            )


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _names_read(body)


def _names_made(graph: onnx.GraphProto) -> set[str]:
    """Names that the graph or a body in it gives a value to."""
    made = {value.name for value in graph.input}
    made.update(name_of(tensor) for tensor in (*graph.initializer, *graph.sparse_initializer))
    for node in graph.node:
        made.update(node.output)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                made |= _names_made(body)
    return made
