"""Between ONNX protobufs and graphsurgeon graphs, without loss.

graphsurgeon is the editing surface, not the codec: on its own it forgets documentation, metadata, denotations,
attribute kinds it has no type for, and initializers that are graph inputs. So every graphsurgeon object is
tagged with the message it came from, and what graphsurgeon drops is laid over its export.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import Message
from onnx_graphsurgeon.logger import G_LOGGER

__all__ = ["export_model", "import_model", "nested_graphs"]

# graphsurgeon reports what it cannot hold as warnings on stderr; here that is carried over instead.
G_LOGGER.severity = G_LOGGER.ERROR

# Fields that the graphsurgeon objects own: whatever stands in them at export is the truth.
_MODEL_OWNED = {"graph", "functions", "opset_import", "ir_version", "producer_name", "producer_version"}
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
_MIN_IR_FOR_FREE_INITIALIZERS = 4  # before it, every initializer had to be a graph input too


@dataclass
class _NodeOrigin:
    """What a node came with and graphsurgeon does not hold."""

    fields: onnx.NodeProto  # documentation, metadata, overload, device configurations
    aside: list[onnx.AttributeProto]  # attributes of kinds that graphsurgeon drops or chokes on
    documented: dict[str, str]  # doc_string by attribute


@dataclass
class _GraphOrigin:
    """What a graph came with and graphsurgeon does not hold."""

    fields: onnx.GraphProto  # metadata, quantization annotations
    inputs: list[onnx.ValueInfoProto]
    values: dict[str, onnx.ValueInfoProto]


def import_model(proto: onnx.ModelProto) -> tuple[gs.Graph, onnx.ModelProto]:
    """The graph to edit, and the header: everything of the model that the graph does not hold.

    ``proto`` is taken over: the graph refers to its tensors, and attributes that graphsurgeon cannot hold are
    moved out of it.
    """
    header = onnx.ModelProto()
    _copy_fields(proto, header, skip=_MODEL_OWNED)
    header.functions.extend(proto.functions)
    node_origins = [_set_aside(node) for graph in _proto_graphs(proto.graph) for node in graph.node]
    graph_origins = [_graph_origin(graph) for graph in _proto_graphs(proto.graph)]
    graph = gs.import_onnx(proto)
    graphs = list(nested_graphs(graph))
    for nested, graph_origin in zip(graphs, graph_origins, strict=True):
        vars(nested)["onnx_origin"] = graph_origin
    for node, node_origin in zip((node for nested in graphs for node in nested.nodes), node_origins, strict=True):
        vars(node)["onnx_origin"] = node_origin
    vars(graph)["functions_as_imported"] = _function_texts(graph)
    vars(graph)["ir_as_imported"] = proto.ir_version
    return graph, header


def export_model(graph: gs.Graph, header: onnx.ModelProto) -> onnx.ModelProto:
    """A new model of what the graph holds now, with the header and every tag laid over it."""
    functions = _function_texts(graph)
    exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    _copy_fields(header, exported, skip=_MODEL_OWNED)
    if functions == vars(graph).get("functions_as_imported"):
        del exported.functions[:]
        exported.functions.extend(header.functions)
    _overlay_graph(graph, exported.graph, outer=set())
    for field in ("producer_name", "producer_version"):
        if not getattr(exported, field):
            exported.ClearField(field)
    inputs = {value.name for value in exported.graph.input}
    if exported.ir_version < _MIN_IR_FOR_FREE_INITIALIZERS and any(
        tensor.name not in inputs for tensor in exported.graph.initializer
    ):
        exported.ir_version = _MIN_IR_FOR_FREE_INITIALIZERS
    if vars(graph).get("ir_as_imported", exported.ir_version) < _MIN_IR_FOR_FREE_INITIALIZERS:
        _free_initializers(exported)
    return exported


def _free_initializers(exported: onnx.ModelProto) -> None:
    """Where a newer IR says so, an initializer that is an input is a default that a caller may override, and the
    runtime optimizes nothing behind it; in the model's own IR, being an input meant nothing."""
    if exported.ir_version < _MIN_IR_FOR_FREE_INITIALIZERS:
        return
    initializers = {tensor.name for tensor in exported.graph.initializer}
    for index in reversed(range(len(exported.graph.input))):
        if exported.graph.input[index].name in initializers:
            del exported.graph.input[index]


def nested_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and, depth first, the bodies of its control-flow nodes."""
    yield graph
    for node in graph.nodes:
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from nested_graphs(attribute)


# -- import: tags ------------------------------------------------------------------------------------------


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The same order as nested_graphs, on messages."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                yield from _proto_graphs(attribute.g)


def _set_aside(node: onnx.NodeProto) -> _NodeOrigin:
    """The node's origin; attributes that graphsurgeon cannot hold leave the node for it."""
    fields = onnx.NodeProto()
    _copy_fields(node, fields, skip=_NODE_OWNED)
    documented = {attribute.name: attribute.doc_string for attribute in node.attribute if attribute.doc_string}
    aside: list[onnx.AttributeProto] = []
    for index in reversed(range(len(node.attribute))):
        if not _holds(node.attribute[index]):
            aside.insert(0, onnx.AttributeProto.FromString(node.attribute[index].SerializeToString()))
            del node.attribute[index]
    return _NodeOrigin(fields, aside, documented)


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


def _graph_origin(graph: onnx.GraphProto) -> _GraphOrigin:
    fields = onnx.GraphProto()
    _copy_fields(graph, fields, skip=_GRAPH_OWNED)
    values = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    return _GraphOrigin(fields, list(graph.input), values)


# -- export: overlay ---------------------------------------------------------------------------------------


def _overlay_graph(graph: gs.Graph, exported: onnx.GraphProto, outer: set[str]) -> None:
    origin: _GraphOrigin | None = vars(graph).get("onnx_origin")
    _drop_outer_initializers(exported, outer)
    if origin is not None:
        _copy_fields(origin.fields, exported, skip={"quantization_annotation"})
        _overlay_inputs(origin, exported)
        for value in (*exported.input, *exported.output, *exported.value_info):
            _overlay_value(value, origin.values.get(value.name))
        names = set(graph.tensors())
        exported.quantization_annotation.extend(
            note for note in origin.fields.quantization_annotation if note.tensor_name in names
        )
    visible = outer | {tensor.name for tensor in exported.initializer}
    for node, node_proto in zip(graph.nodes, exported.node, strict=True):
        node_origin: _NodeOrigin | None = vars(node).get("onnx_origin")
        if node_origin is not None:
            _overlay_node(node_origin, node_proto)
        bodies = (attribute for attribute in node.attrs.values() if isinstance(attribute, gs.Graph))
        body_protos = (attribute.g for attribute in node_proto.attribute if attribute.type == attribute.GRAPH)
        for body, body_proto in zip(bodies, body_protos, strict=True):
            _overlay_graph(body, body_proto, visible)


def _drop_outer_initializers(exported: onnx.GraphProto, outer: set[str]) -> None:
    """A body sees the initializers of the graphs around it; graphsurgeon writes it copies of them."""
    for index in reversed(range(len(exported.initializer))):
        if exported.initializer[index].name in outer:
            del exported.initializer[index]


def _overlay_inputs(origin: _GraphOrigin, exported: onnx.GraphProto) -> None:
    """Initializers that were graph inputs (a default value, or IR 3) are again, in their old order."""
    live = {value.name: onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in exported.input}
    initializers = {tensor.name for tensor in exported.initializer}
    del exported.input[:]
    for value in origin.inputs:
        if value.name in live:
            exported.input.append(live.pop(value.name))
        elif value.name in initializers:
            exported.input.append(value)
    exported.input.extend(live.values())


def _overlay_value(value: onnx.ValueInfoProto, origin: onnx.ValueInfoProto | None) -> None:
    """Documentation and metadata always; the whole type (denotations) unless a pass changed it."""
    if origin is None:
        return
    _copy_fields(origin, value, skip={"name", "type"})
    if _plain_type(origin.type) == _plain_type(value.type):
        value.type.CopyFrom(origin.type)


def _plain_type(kind: onnx.TypeProto) -> Any:
    """Element type and dimensions, without denotations; other kinds of value are compared by kind alone."""
    if not kind.HasField("tensor_type"):
        return kind.WhichOneof("value")
    tensor = kind.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return tensor.elem_type, dims


def _overlay_node(origin: _NodeOrigin, exported: onnx.NodeProto) -> None:
    _copy_fields(origin.fields, exported, skip=set())
    present = {attribute.name for attribute in exported.attribute}
    exported.attribute.extend(attribute for attribute in origin.aside if attribute.name not in present)
    for attribute in exported.attribute:
        if attribute.name in origin.documented:
            attribute.doc_string = origin.documented[attribute.name]


# -- both --------------------------------------------------------------------------------------------------


def _copy_fields(source: Message, target: Message, skip: set[str]) -> None:
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


def _function_texts(graph: gs.Graph) -> list[bytes]:
    """Each model-local function as graphsurgeon writes it, to see whether a pass changed one."""
    exporter = gs.exporters.onnx_exporter.OnnxExporter
    return [exporter.export_function(function).SerializeToString() for function in graph.functions]
