"""Between ONNX protobufs and graphsurgeon graphs, without loss.

graphsurgeon is the editing surface, not the codec: on its own it forgets documentation, metadata, denotations,
attribute kinds it has no type for, initializers that nothing reads or that are graph inputs, and the order of
initializers. So every graphsurgeon object is tagged with what it came from (see ``origins``), and what graphsurgeon
drops is laid over its export.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcomp.origins import (
    GraphOrigin,
    NodeOrigin,
    copy_fields,
    home_of,
    name_of,
    nested_graphs,
    origin_of,
    proto_graphs,
    set_aside,
    tag_graphs,
    tag_nodes,
    take_graph_origin,
)
from onnxcomp.storage.mapped import Mapped, Table
from onnxcomp.storage.payload import Payload
from onnxcomp.storage.skeleton import Skeleton, is_reference, referred

__all__ = ["constants", "export_model", "import_model", "nested_graphs"]

# graphsurgeon reports what it cannot hold as warnings on stderr; here that is carried over instead.
G_LOGGER.severity = G_LOGGER.ERROR

_MODEL_OWNED = {"graph", "functions", "opset_import", "ir_version", "producer_name", "producer_version"}
_FUNCTION_OWNED = {"name", "domain", "input", "output", "node", "opset_import", "attribute", "attribute_proto"}
_MIN_IR_FOR_FREE_INITIALIZERS = 4  # before it, every initializer had to be a graph input too


def import_model(proto: onnx.ModelProto, table: Table) -> tuple[gs.Graph, onnx.ModelProto]:
    """The graph to edit, and the header: everything of the model that the graph does not hold.

    ``proto`` is taken over: the graph refers to its tensors, and what graphsurgeon cannot hold is moved out of it.
    Its references are of ``table``.
    """
    header = onnx.ModelProto()
    copy_fields(proto, header, skip=_MODEL_OWNED)
    header.functions.extend(proto.functions)
    graph_origins = [take_graph_origin(graph) for graph in proto_graphs(proto.graph)]
    roots = [proto.graph, *proto.functions]
    node_origins = iter([set_aside(node) for root in roots for graph in proto_graphs(root) for node in graph.node])
    graph = gs.import_onnx(proto)
    tag_graphs(graph, graph_origins)
    for root in (graph, *graph.functions):
        tag_nodes(root, node_origins)
    for function, original in zip(graph.functions, header.functions, strict=True):
        vars(function)["onnx_origin"] = (original, _function_text(function))
    vars(graph)["ir_as_imported"] = proto.ir_version
    for tensor in constants(graph):
        tensor.data_location = None  # graphsurgeon would keep it when the value is another
        if isinstance(tensor._values.tensor, onnx.TensorProto) and is_reference(tensor._values.tensor):
            tensor._values = Mapped(tensor._values.tensor, table[referred(tensor._values.tensor)])
    return graph, header


def export_model(graph: gs.Graph, header: onnx.ModelProto, table: Table) -> Skeleton:
    """A new model of what the graph holds now, with the header and every tag laid over it."""
    payloads = table.start()
    with _encoded(graph, table, payloads):
        functions = [_export_function(function) for function in graph.functions]
        exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    copy_fields(header, exported, skip=_MODEL_OWNED)
    del exported.functions[:]
    exported.functions.extend(functions)
    _overlay_graph(graph, exported.graph, outer=set(), enclosing=())
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
    return Skeleton(exported, payloads)


def _free_initializers(exported: onnx.ModelProto) -> None:
    """Where a newer IR says so, an initializer that is an input is a default that a caller may override, and the
    runtime optimizes nothing behind it; in the model's own IR, being an input meant nothing."""
    if exported.ir_version < _MIN_IR_FOR_FREE_INITIALIZERS:
        return
    initializers = {tensor.name for tensor in exported.graph.initializer}
    for index in reversed(range(len(exported.graph.input))):
        if exported.graph.input[index].name in initializers:
            del exported.graph.input[index]


# -- weights -----------------------------------------------------------------------------------------------


@contextmanager
def _encoded(graph: gs.Graph, table: Table, payloads: list[Payload]) -> Iterator[None]:
    """Constants that graphsurgeon would copy or write wrongly stand encoded while it writes.

    Among them are those whose message two constants share: it writes their names into it.
    """
    swapped: list[tuple[gs.Constant, Any]] = []
    owners: dict[int, gs.Constant] = {}
    try:
        for tensor in constants(graph):
            values = tensor._values
            message = None
            if isinstance(values, np.ndarray):
                message = table.encoded(tensor, payloads)
            elif owners.setdefault(id(values.tensor), tensor) is not tensor:
                message = type(values.tensor).FromString(values.tensor.SerializeToString())
            if message is not None:
                swapped.append((tensor, values))
                sparse = isinstance(message, onnx.SparseTensorProto)
                tensor._values = (SparseValues if sparse else LazyValues)(message)
        yield
    finally:
        for tensor, values in swapped:
            tensor._values = values


def constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every constant of the graph, its bodies, its functions and their attributes, each once."""
    seen: set[int] = set()
    for root in (graph, *graph.functions):
        for nested in nested_graphs(root):
            candidates = [*nested.inputs, *nested.outputs]
            for node in nested.nodes:
                candidates += [*node.inputs, *node.attrs.values()]
            for tensor in candidates:
                if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


# -- overlay -----------------------------------------------------------------------------------------------


def _overlay_graph(
    graph: gs.Graph, exported: onnx.GraphProto, outer: set[int], enclosing: Sequence[GraphOrigin]
) -> list[tuple[gs.Constant, Any]]:
    """Lay its origin over an exported graph.

    Args:
        outer: ``id`` of the constants that the graphs around it write.
        enclosing: origins of the graphs around it.

    Returns:
        constants that only bodies read, with their messages: for the graph around this one that they came from.
    """
    origin = origin_of(graph)
    assert origin is None or isinstance(origin, GraphOrigin)
    constants = {name: tensor for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    homeless = _take_outer_initializers(exported, constants, outer, enclosing)
    visible = outer | {id(tensor) for tensor in constants.values()}
    within = enclosing if origin is None else (*enclosing, origin)
    returned: dict[int, tuple[gs.Constant, Any]] = {}
    for node, node_proto in zip(graph.nodes, exported.node, strict=True):
        _overlay_node(node, node_proto)
        bodies = (attribute for attribute in node.attrs.values() if isinstance(attribute, gs.Graph))
        body_protos = (attribute.g for attribute in node_proto.attribute if attribute.type == attribute.GRAPH)
        for body, body_proto in zip(bodies, body_protos, strict=True):
            returned |= {id(item[0]): item for item in _overlay_graph(body, body_proto, visible, within)}
    for tensor, message in returned.values():
        if home_of(tensor) is origin:
            _field_of(exported, message).append(message)
        else:
            homeless.append((tensor, message))
    if origin is not None:
        _overlay_values(graph, origin, exported, nested=bool(enclosing))
    return homeless


def _take_outer_initializers(
    exported: onnx.GraphProto,
    constants: dict[str, gs.Constant],
    outer: set[int],
    enclosing: Sequence[GraphOrigin],
) -> list[tuple[gs.Constant, Any]]:
    """A body sees the initializers of the graphs around it; graphsurgeon writes it copies of them.

    Returns:
        those that no graph around it writes, though one of them held them.
    """
    homeless: list[tuple[gs.Constant, Any]] = []
    for field in (exported.initializer, exported.sparse_initializer):
        for index in reversed(range(len(field))):
            tensor = constants[name_of(field[index])]
            if id(tensor) in outer:
                del field[index]
            elif any(home_of(tensor) is origin for origin in enclosing):
                homeless.insert(0, (tensor, type(field[index]).FromString(field[index].SerializeToString())))
                del field[index]
    return homeless


def _field_of(exported: onnx.GraphProto, message: Any) -> Any:
    return exported.sparse_initializer if isinstance(message, onnx.SparseTensorProto) else exported.initializer


def _overlay_values(graph: gs.Graph, origin: GraphOrigin, exported: onnx.GraphProto, nested: bool) -> None:
    """Initializers, inputs and declared values: what was dropped, in the order it stood in."""
    names = {tensor.name for inner in nested_graphs(graph) for tensor in inner.tensors().values()}
    copy_fields(origin.fields, exported, skip={"quantization_annotation"})
    exported.quantization_annotation.extend(
        note for note in origin.fields.quantization_annotation if note.tensor_name in names
    )
    present = {name_of(tensor) for tensor in (*exported.initializer, *exported.sparse_initializer)}
    for message in (*origin.unused, *origin.unused_sparse):
        if name_of(message) not in names | present:
            _field_of(exported, message).append(message)
    for tensor in exported.initializer:
        if tensor.name in origin.described:
            copy_fields(origin.described[tensor.name], tensor, skip=set())
    for field in (exported.initializer, exported.sparse_initializer):
        _sort(field, origin.initializer_order)
    _overlay_inputs(origin, exported)
    if nested:
        _drop_outer_values(graph, origin, exported)
    exported.value_info.extend(_undeclared(origin, exported, names))
    for value in (*exported.input, *exported.output, *exported.value_info):
        _overlay_value(value, origin.values.get(value.name))
    _sort(exported.value_info, origin.value_order)


def _sort(field: Any, order: Sequence[str]) -> None:
    """What stood in the file in its order, what is new behind it."""
    place = {name: index for index, name in enumerate(order)}
    field.sort(key=lambda item: place.get(name_of(item), len(place)))


def _overlay_inputs(origin: GraphOrigin, exported: onnx.GraphProto) -> None:
    """Initializers that were graph inputs (a default value, or IR 3) are again, in their old order."""
    live = {value.name: onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in exported.input}
    initializers = {name_of(tensor) for tensor in (*exported.initializer, *exported.sparse_initializer)}
    del exported.input[:]
    for value in origin.inputs:
        if value.name in live:
            exported.input.append(live.pop(value.name))
        elif value.name in initializers:
            exported.input.append(value)
    exported.input.extend(live.values())


def _drop_outer_values(graph: gs.Graph, origin: GraphOrigin, exported: onnx.GraphProto) -> None:
    """graphsurgeon declares in a body what the body reads from outside."""
    own = {tensor.name for node in graph.nodes for tensor in node.outputs} | set(origin.value_order)
    for index in reversed(range(len(exported.value_info))):
        if exported.value_info[index].name not in own:
            del exported.value_info[index]


def _undeclared(origin: GraphOrigin, exported: onnx.GraphProto, names: set[str]) -> list[onnx.ValueInfoProto]:
    """Declared values that graphsurgeon did not write and that still hold."""
    written = {value.name for value in (*exported.value_info, *exported.input, *exported.output)}
    types = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in exported.initializer}
    foreign = {value.name for value in origin.foreign}
    found = []
    for name in origin.value_order:
        value = origin.values[name]
        if name in written:
            continue
        if name in types:
            holds = _plain_type(value.type) == types[name]
        elif name in foreign:
            holds = name not in names
        else:
            holds = name in names and not _held_type(value.type)
        if holds:
            found.append(value)
    return found


def _overlay_value(value: onnx.ValueInfoProto, origin: onnx.ValueInfoProto | None) -> None:
    """Documentation and metadata always; the whole type (denotations) unless a pass changed it."""
    if origin is None:
        return
    copy_fields(origin, value, skip={"name", "type"})
    untyped = not value.HasField("type") and not _held_type(origin.type)
    if origin.HasField("type") and (untyped or _plain_type(origin.type) == _plain_type(value.type)):
        value.type.CopyFrom(origin.type)


def _held_type(kind: onnx.TypeProto) -> bool:
    """Whether graphsurgeon was given the type."""
    return bool(kind.HasField("tensor_type") and kind.tensor_type.elem_type)


def _plain_type(kind: onnx.TypeProto) -> Any:
    """Element type and dimensions, without denotations; other kinds of value are compared by kind alone."""
    if not kind.HasField("tensor_type"):
        return kind.WhichOneof("value")
    tensor = kind.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return tensor.elem_type, dims


def _overlay_node(node: gs.Node, exported: onnx.NodeProto) -> None:
    for attribute in exported.attribute:
        if attribute.HasField("t") and not attribute.t.name:
            attribute.t.ClearField("name")  # graphsurgeon sets it to nothing
    origin = origin_of(node)
    if not isinstance(origin, NodeOrigin):
        return
    copy_fields(origin.fields, exported, skip=set())
    present = {attribute.name for attribute in exported.attribute}
    exported.attribute.extend(attribute for attribute in origin.aside if attribute.name not in present)
    _sort(exported.attribute, origin.order)
    for attribute in exported.attribute:
        if attribute.name in origin.documented:
            attribute.doc_string = origin.documented[attribute.name]


# -- functions ---------------------------------------------------------------------------------------------


def _function_text(function: gs.Function) -> bytes:
    """A model-local function as graphsurgeon writes it, to see whether a pass changed it."""
    exported = gs.exporters.onnx_exporter.OnnxExporter.export_function(function)
    text: bytes = exported.SerializeToString(deterministic=True)
    return text


def _export_function(function: gs.Function) -> onnx.FunctionProto:
    """The function as it came unless a pass changed it."""
    exporter = gs.exporters.onnx_exporter.OnnxExporter
    exported: onnx.FunctionProto = exporter.export_function(function)
    original, text = vars(function).get("onnx_origin", (None, None))
    if original is None:
        return exported
    if exported.SerializeToString(deterministic=True) == text:
        return original  # type: ignore[no-any-return]
    copy_fields(original, exported, skip=_FUNCTION_OWNED)
    added = len(exported.node) - len(function.nodes)  # constants, which graphsurgeon writes as nodes in front
    for node, node_proto in zip(function.nodes, exported.node[added:], strict=True):
        _overlay_node(node, node_proto)
    return exported
