"""Protobuf messages, field by field: whether a field is set counts, and so do fields that this ONNX does not know."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, MutableSequence
from typing import Any, TypeVar

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

__all__ = ["clear_undecodable", "copied", "copy_fields", "drop_unneeded_nodes", "keep_named", "lay_over", "name_of"]
__all__ += ["proto_graphs", "reads_of", "shell"]

M = TypeVar("M", bound=Message)


def copied(message: M) -> M:
    """A copy of a message, unknown fields included."""
    result: M = type(message)()
    result.CopyFrom(message)
    return result


def copy_fields(source: Message, target: Message, skip: Collection[str] = ()) -> None:
    """Set in ``target`` every known field that is set in ``source``, replacing what is there."""
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        target.ClearField(field.name)
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, bytes) and field.type == field.TYPE_STRING:
            _merge(source, target, only=field.name)
        else:
            setattr(target, field.name, value)


def clear_undecodable(message: Message, names: Collection[str]) -> None:
    """Clear fields of text that is not UTF-8, which protobuf gives as bytes and does not take."""
    for name in names:
        if isinstance(getattr(message, name), bytes):
            message.ClearField(name)


def shell(message: M, without: Collection[str]) -> M:
    """A copy of a message without some of its fields, which may be large."""
    result: M = type(message)()
    copy_fields(message, result, skip=without)
    _copy_unknown(message, result)
    return result


def lay_over(original: Message, exported: Message, owned: Collection[str] = (), skip: Collection[str] = ()) -> None:
    """Put what a message came with over what was written for it.

    Args:
        owned: fields of one value that keep what was written; where that is what the original held, they are set
            if it was set there (a name that is set to nothing differs from none).
        skip: fields that keep what was written.
    """
    for name in owned:
        if isinstance(getattr(original, name), bytes) and not getattr(exported, name):
            _merge(original, exported, only=name)  # graphsurgeon was not given it
        if getattr(original, name) != getattr(exported, name):
            continue
        if not original.HasField(name):
            exported.ClearField(name)
        elif not exported.HasField(name):
            setattr(exported, name, getattr(original, name))
    copy_fields(original, exported, skip=(*owned, *skip))
    if not len(UnknownFieldSet(exported)):
        _copy_unknown(original, exported)


def _copy_unknown(source: Message, target: Message) -> None:
    """Fields of a newer ONNX."""
    if len(UnknownFieldSet(source)):
        _merge(source, target, only=None)


def _merge(source: Message, target: Message, only: str | None) -> None:
    """Merge one field, or the unknown ones: what cannot be assigned, the Python runtime still lets us merge."""
    rest = copied(source)
    for field, _ in source.ListFields():
        if field.name != only:
            rest.ClearField(field.name)
    target.MergeFrom(rest)


def name_of(message: Any) -> str:
    """The name of a tensor (a sparse one has that of its values), value or attribute."""
    name: str = message.values.name if isinstance(message, onnx.SparseTensorProto) else message.name
    return name


def proto_graphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The graph or function and, depth first, the bodies of its control-flow nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                yield from proto_graphs(attribute.g)


def reads_of(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node and its bodies read; some may be the bodies' own."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from (output.name for output in body.output)
            for nested in body.node:
                yield from reads_of(nested)


def keep_named(
    held: MutableSequence[onnx.TensorProto] | MutableSequence[onnx.ValueInfoProto], names: Container[str]
) -> None:
    """Remove from a list of a message all that has none of these names."""
    for index in reversed(range(len(held))):
        if held[index].name not in names:
            del held[index]


def drop_unneeded_nodes(graph: onnx.GraphProto) -> set[str]:
    """Remove nodes that no output of the graph needs; returns the names of all tensors that are needed."""
    needed = {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):  # nodes are sorted, so their readers have been seen
        if needed.intersection(graph.node[index].output):
            needed.update(reads_of(graph.node[index]))
        else:
            del graph.node[index]
    return needed
