"""What graphsurgeon drops of a model, kept as tags on its objects.

Each graph, node and function that is imported gets the parts of its message that graphsurgeon has no place for;
``codec`` lays them over what graphsurgeon exports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message

__all__ = [
    "GraphOrigin",
    "NodeOrigin",
    "all_graphs",
    "copy_fields",
    "drop_unused",
    "home_of",
    "name_of",
    "nested_graphs",
    "origin_of",
    "proto_graphs",
    "set_aside",
    "tag_graphs",
    "tag_nodes",
    "take_graph_origin",
]

# Fields that the graphsurgeon objects own: whatever stands in them at export is the truth.
_GRAPH_OWNED = {
    "node",
    "name",
    "doc_string",
    "initializer",
    "sparse_initializer",
    "input",
    "output",
    "value_info",
}
_NODE_OWNED = {"input", "output", "name", "op_type", "domain", "attribute"}

_HELD_ATTRIBUTES = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.TENSOR,
    onnx.AttributeProto.GRAPH,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRINGS,
}
_LIST_ATTRIBUTES = {onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS, onnx.AttributeProto.STRINGS}

M = TypeVar("M", bound=Message)

_TAG = "onnx_origin"
_HOME = "onnx_home"


@dataclass(frozen=True)
class NodeOrigin:
    """What a node came with.

    Attributes:
        fields: documentation, metadata, overload, device configurations.
        aside: attributes of kinds that graphsurgeon drops or chokes on.
        documented: doc_string by attribute.
        order: names of all attributes as they stood.
    """

    fields: onnx.NodeProto
    aside: list[onnx.AttributeProto]
    documented: dict[str, str]
    order: list[str]


@dataclass(frozen=True)
class GraphOrigin:
    """What a graph came with.

    Attributes:
        fields: metadata, quantization annotations.
        inputs: as they stood, initializers that are inputs too included.
        values: every declared value by name.
        value_order, initializer_order: names as they stood.
        described: documentation and metadata of initializers, without their data.
        unused, unused_sparse: initializers that no node reads.
        foreign: declared values that no tensor of the graph has the name of (those inside functions, say).
    """

    fields: onnx.GraphProto
    inputs: list[onnx.ValueInfoProto]
    values: dict[str, onnx.ValueInfoProto]
    value_order: list[str]
    initializer_order: list[str]
    described: dict[str, onnx.TensorProto]
    unused: list[onnx.TensorProto]
    unused_sparse: list[onnx.SparseTensorProto]
    foreign: list[onnx.ValueInfoProto]


def origin_of(item: gs.Graph | gs.Node) -> GraphOrigin | NodeOrigin | None:
    """The tag of a graph or node; None when a pass made it."""
    origin: GraphOrigin | NodeOrigin | None = vars(item).get(_TAG)
    return origin


def home_of(tensor: gs.Constant) -> GraphOrigin | None:
    """The graph that an imported initializer stood in."""
    home: GraphOrigin | None = vars(tensor).get(_HOME)
    return home


def drop_unused(graph: gs.Graph) -> bool:
    """Let go of initializers that nothing reads; returns whether there were any.

    graphsurgeon does not show them, but the saved file holds them until this is called.
    """
    found = False
    for nested in nested_graphs(graph):
        origin = vars(nested).get(_TAG)
        if origin is not None and (origin.unused or origin.unused_sparse):
            vars(nested)[_TAG] = replace(origin, unused=[], unused_sparse=[])
            found = True
    return found


# -- walks -------------------------------------------------------------------------------------------------


def nested_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and, depth first, the bodies of its control-flow nodes."""
    yield graph
    for node in graph.nodes:
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from nested_graphs(attribute)


def all_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and its bodies, and then each model-local function and its bodies."""
    for root in (graph, *graph.functions):
        yield from nested_graphs(root)


def proto_graphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """The same order as nested_graphs, on messages."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                yield from proto_graphs(attribute.g)


# -- tags --------------------------------------------------------------------------------------------------


def set_aside(node: onnx.NodeProto) -> NodeOrigin:
    """The node's origin; attributes that graphsurgeon cannot hold leave the node for it."""
    fields = onnx.NodeProto()
    copy_fields(node, fields, skip=_NODE_OWNED)
    documented = {attribute.name: attribute.doc_string for attribute in node.attribute if attribute.doc_string}
    order = [attribute.name for attribute in node.attribute]
    aside: list[onnx.AttributeProto] = []
    for index in reversed(range(len(node.attribute))):
        if not _holds(node.attribute[index]):
            aside.insert(0, _copy(node.attribute[index]))
            del node.attribute[index]
    return NodeOrigin(fields, aside, documented, order)


def _holds(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon can take the attribute in and give it back."""
    if attribute.ref_attr_name:
        return True
    if attribute.type not in _HELD_ATTRIBUTES:
        return False
    if attribute.type in _LIST_ATTRIBUTES and not (attribute.floats or attribute.ints or attribute.strings):
        return False  # it could not tell the type of an empty list
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def take_graph_origin(graph: onnx.GraphProto) -> GraphOrigin:
    """The graph's origin; types that graphsurgeon cannot hold leave the graph for it.

    To be called with bodies before their graphs: what a body reads, it reads of the graphs around it.
    """
    fields = onnx.GraphProto()
    copy_fields(graph, fields, skip=_GRAPH_OWNED)
    declared = [*graph.value_info, *graph.input, *graph.output]
    read = set(_names_read(graph))
    made = {name for node in graph.node for name in node.output}
    tensors = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    known = read | made | {tensor.name for tensor in tensors} | {value.name for value in (*graph.input, *graph.output)}
    origin = GraphOrigin(
        fields=fields,
        inputs=[_copy(value) for value in graph.input],
        values={value.name: _copy(value) for value in declared},
        value_order=[value.name for value in graph.value_info],
        initializer_order=[tensor.name for tensor in tensors],
        described={tensor.name: note for tensor in tensors if (note := _description(tensor)).ListFields()},
        unused=[tensor for tensor in graph.initializer if tensor.name not in read],
        unused_sparse=[tensor for tensor in graph.sparse_initializer if tensor.values.name not in read],
        foreign=[_copy(value) for value in graph.value_info if value.name not in known],
    )
    for value in declared:
        if not (value.type.HasField("tensor_type") and value.type.tensor_type.elem_type):
            value.ClearField("type")
    return origin


def tag_graphs(graph: gs.Graph, origins: list[GraphOrigin]) -> None:
    """Tag a graph and its bodies, and the initializers of each with where they stood."""
    for nested, origin in zip(nested_graphs(graph), origins, strict=True):
        vars(nested)[_TAG] = origin
        own = set(origin.initializer_order)
        for inner in nested_graphs(nested):
            for node in inner.nodes:
                for tensor in node.inputs:
                    if isinstance(tensor, gs.Constant) and tensor.name in own:
                        vars(tensor).setdefault(_HOME, origin)


def tag_nodes(graph: gs.Graph, origins: Iterator[NodeOrigin]) -> None:
    """Tag the nodes of a graph or function and of its bodies."""
    for nested in nested_graphs(graph):
        for node in nested.nodes:
            vars(node)[_TAG] = next(origins)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the graph's outputs, its nodes or their bodies read."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _names_read(body)


def _description(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Documentation and metadata of a tensor."""
    note = onnx.TensorProto()
    copy_fields(tensor, note, skip={f.name for f, _ in tensor.ListFields()} - {"doc_string", "metadata_props"})
    return note


def name_of(message: Any) -> str:
    """The name of a tensor (a sparse one has that of its values), value or attribute."""
    name: str = message.values.name if isinstance(message, onnx.SparseTensorProto) else message.name
    return name


def copy_fields(source: Message, target: Message, skip: set[str]) -> None:
    """Set in ``target`` every field that is set in ``source``, replacing what is there."""
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        target.ClearField(field.name)
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _copy(message: M) -> M:
    copied: M = type(message)()
    copied.CopyFrom(message)
    return copied
