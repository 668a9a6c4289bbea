"""What graphsurgeon drops of a model, kept as tags on its objects.

Each graph, node and function that is imported gets the parts of its message that graphsurgeon has no place for;
``overlay`` lays them over what graphsurgeon exports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.unknown_fields import UnknownFieldSet

from onnxcomp.codec.refusals import (
    known_element_type,
    refuse_capture,
    refuse_external,
    refuse_graph,
)
from onnxcomp.codec.scopes import nested_graphs
from onnxcomp.storage.messages import copied, name_of, shell

__all__ = [
    "AttributeOrigin",
    "FunctionOrigin",
    "GraphOrigin",
    "NodeOrigin",
    "attributes_aside",
    "drop_unused",
    "drops_unused",
    "function_origin_of",
    "graph_origin_of",
    "home_of",
    "nested_graphs",
    "node_origin_of",
    "state_of",
    "tag_function",
    "tag_graphs",
    "tag_nodes",
    "take_attributes",
    "take_function_origin",
    "take_graph_origin",
    "take_node_origin",
    "tensor_names",
]

Kind = onnx.AttributeProto

# Where the value of an attribute stands that graphsurgeon can take in and give back.
PAYLOADS = {
    Kind.FLOAT: "f",
    Kind.INT: "i",
    Kind.STRING: "s",
    Kind.TENSOR: "t",
    Kind.GRAPH: "g",
    Kind.FLOATS: "floats",
    Kind.INTS: "ints",
    Kind.STRINGS: "strings",
}
_LISTS = (Kind.FLOATS, Kind.INTS, Kind.STRINGS)
_NOTES = ("name", "doc_string", "metadata_props")
_TENSOR_DATA = tuple(item.name for item in onnx.TensorProto.DESCRIPTOR.fields if item.name not in _NOTES)

_TAG = "onnx_origin"
_HOME = "onnx_home"
_DROPPED = "onnx_unused_dropped"


@dataclass(frozen=True)
class AttributeOrigin:
    """The attributes of a node, or the default values of a function's.

    Attributes:
        messages: as they stood; of those that graphsurgeon holds, tensors and graphs are left out.
        aside: names of those that graphsurgeon drops or chokes on.
    """

    messages: list[onnx.AttributeProto]
    aside: frozenset[str]


@dataclass(frozen=True)
class NodeOrigin:
    """What a node came with.

    Attributes:
        fields: all but its inputs, outputs and attributes.
    """

    fields: onnx.NodeProto
    attributes: AttributeOrigin


@dataclass(frozen=True)
class GraphOrigin:
    """What a graph came with.

    Attributes:
        fields: metadata, quantization annotations, name.
        inputs: as they stood, initializers that are inputs too included.
        outputs, values: as they stood.
        initializer_order: names as they stood.
        described: documentation and metadata of initializers, without their data.
        unused: initializers that no node reads, dense and sparse.
        pinned: names of unused ones that something else in the file refers to.
        states: type and shape that graphsurgeon was given, by tensor.
        names: of all tensors of the graph and its bodies.
    """

    fields: onnx.GraphProto
    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    values: list[onnx.ValueInfoProto]
    initializer_order: list[str]
    described: dict[str, onnx.TensorProto]
    unused: list[onnx.TensorProto | onnx.SparseTensorProto]
    pinned: frozenset[str]
    states: dict[str, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class FunctionOrigin:
    """What a function came with.

    Attributes:
        fields: overload, declared values, metadata, name.
        defaults: of its attributes.
        names: of all its tensors.
        imports: whether it names the operator sets that it uses; else the model's count.
    """

    fields: onnx.FunctionProto
    defaults: AttributeOrigin
    imports: bool
    names: set[str] = field(default_factory=set)


def node_origin_of(node: gs.Node) -> NodeOrigin | None:
    """The tag of a node; None when a pass made it."""
    origin: NodeOrigin | None = vars(node).get(_TAG)
    return origin


def attributes_aside(node: gs.Node) -> frozenset[str]:
    """Names of attributes that the node has and graphsurgeon does not show."""
    origin = node_origin_of(node)
    return frozenset() if origin is None else origin.attributes.aside


def graph_origin_of(graph: gs.Graph) -> GraphOrigin | None:
    """The tag of a graph; None when a pass made it."""
    origin: GraphOrigin | None = vars(graph).get(_TAG)
    return origin


def function_origin_of(function: gs.Function) -> FunctionOrigin | None:
    """The tag of a function; None when a pass made it."""
    origin: FunctionOrigin | None = vars(function).get(_TAG)
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
    for nested in _bodies(graph):
        origin = graph_origin_of(nested)
        if origin is None or drops_unused(nested):
            continue
        if any(name_of(message) not in origin.pinned for message in origin.unused):
            vars(nested)[_DROPPED] = found = True
    return found


def drops_unused(graph: gs.Graph) -> bool:
    """Whether ``drop_unused`` was called for the graph."""
    return _DROPPED in vars(graph)


# -- walks -------------------------------------------------------------------------------------------------


def _bodies(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph, its bodies and those of its functions."""
    yield from nested_graphs(graph)
    for function in graph.functions:
        yield from (nested for nested in nested_graphs(function) if nested is not function)


def tensor_names(graph: gs.Graph) -> set[str]:
    """Names of the tensors of the graph and its bodies."""
    return {name for nested in nested_graphs(graph) for name in nested.tensors()}


def state_of(tensor: gs.Tensor) -> Any:
    """Everything that a declaration of the tensor says, to see whether a pass changed it."""
    shape = None if tensor.shape is None else tuple(tensor.shape)
    if isinstance(tensor, gs.Constant):
        return "constant", str(tensor.dtype), shape
    return tensor.type, str(tensor.dtype), shape


# -- tags --------------------------------------------------------------------------------------------------


def tag_graphs(graphs: Sequence[gs.Graph], origins: Sequence[GraphOrigin]) -> None:
    """Tag graphs, and the initializers of each with where they stood.

    Args:
        graphs: bodies behind the graphs around them.
    """
    for graph, origin in reversed(list(zip(graphs, origins, strict=True))):  # the innermost owner of a name has it
        vars(graph)[_TAG] = origin
        origin.states.update((name, state_of(tensor)) for name, tensor in graph.tensors().items())
        origin.names.update(tensor_names(graph))
        own = set(origin.initializer_order)
        sparse = {name_of(message) for message in origin.unused if isinstance(message, onnx.SparseTensorProto)}
        reached = {tensor.name for tensor in graph.outputs}
        for tensor in _tensors_read(graph):
            if not isinstance(tensor, gs.Constant) or tensor.name not in own:
                continue
            if vars(tensor).setdefault(_HOME, origin) is origin:
                reached.add(tensor.name)
                if tensor.data_location == onnx.TensorProto.DEFAULT and tensor.name in sparse:
                    tensor.data_location = None  # graphsurgeon says so of a sparse one though its file does not
        origin.unused[:] = [message for message in origin.unused if name_of(message) not in reached]


def _tensors_read(graph: gs.Graph) -> Iterator[gs.Tensor]:
    for nested in nested_graphs(graph):
        for node in nested.nodes:
            yield from node.inputs


def tag_nodes(graph: gs.Graph, origins: Iterator[NodeOrigin]) -> None:
    """Tag the nodes of a graph or function and of its bodies."""
    for nested in nested_graphs(graph):
        for node in nested.nodes:
            vars(node)[_TAG] = next(origins)


def tag_function(function: gs.Function, origin: FunctionOrigin) -> None:
    """Tag a function."""
    vars(function)[_TAG] = origin
    origin.names.update(tensor_names(function))


# -- taking out --------------------------------------------------------------------------------------------


def take_node_origin(node: onnx.NodeProto) -> NodeOrigin:
    """The node's origin; attributes that graphsurgeon cannot hold leave the node for it.

    Raises:
        InputError: two of its attributes have one name, or an attribute cannot be kept.
    """
    fields = shell(node, without=("input", "output", "attribute"))
    return NodeOrigin(fields, take_attributes(node.attribute, f"node {node.name or node.op_type!r}"))


def take_attributes(attributes: Any, owner: str, defaults: bool = False) -> AttributeOrigin:
    """The origin of a repeated field of attributes; those that graphsurgeon cannot hold leave the field for it.

    Args:
        defaults: whether they are the default values of a function's attributes.
    """
    messages: list[onnx.AttributeProto] = []
    aside: set[str] = set()
    for index in reversed(range(len(attributes))):
        attribute = attributes[index]
        if _holds(attribute) and not (defaults and attribute.type == Kind.GRAPH):
            messages.insert(0, _without_data(attribute))
            if not attribute.HasField("type"):
                attribute.type = _kind_of(attribute)
        else:
            where = f"the attribute {attribute.name!r} of the {owner}"
            refuse_capture((attribute.g, *attribute.graphs), where)
            refuse_external(attribute, where)
            messages.insert(0, copied(attribute))
            aside.add(attribute.name)
            del attributes[index]
    return AttributeOrigin(messages, frozenset(aside))


def _kind_of(attribute: onnx.AttributeProto) -> Kind.AttributeType:
    """The attribute's type; the oldest files do not say, but only one field is set."""
    if attribute.type or attribute.ref_attr_name or len(UnknownFieldSet(attribute)):
        return attribute.type
    filled = {item.name for item, _ in attribute.ListFields()} & (set(PAYLOADS.values()) | {"graphs", "tensors"})
    kinds = [kind for kind, payload in PAYLOADS.items() if {payload} == filled and kind != Kind.GRAPH]
    return kinds[0] if kinds else Kind.UNDEFINED


def _holds(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon can take the attribute in and give it back."""
    kind = _kind_of(attribute)
    if kind not in PAYLOADS or attribute.ref_attr_name:
        return kind in PAYLOADS
    if kind in _LISTS and not getattr(attribute, PAYLOADS[kind]):
        return False  # it could not tell the type of an empty list
    if kind == Kind.TENSOR and (attribute.t.HasField("segment") or not known_element_type(attribute.t.data_type)):
        return False
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_data(attribute: onnx.AttributeProto) -> onnx.AttributeProto:
    if _kind_of(attribute) not in (Kind.TENSOR, Kind.GRAPH) or attribute.ref_attr_name:
        return copied(attribute)
    kept = shell(attribute, without=("t", "g"))
    if attribute.HasField("t"):
        kept.t.CopyFrom(shell(attribute.t, without=_TENSOR_DATA))
    return kept


def take_graph_origin(graph: onnx.GraphProto, pinned: Iterable[str] = ()) -> GraphOrigin:
    """The graph's origin; types that graphsurgeon cannot hold leave the graph for it.

    Args:
        pinned: names of initializers that stay even if nothing reads them.

    Raises:
        InputError: initializers or inputs have no name or one name, or are of an unknown type.
    """
    tensors = [*graph.initializer, *graph.sparse_initializer]
    refuse_graph(graph)
    dense = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    scales = [entry.value for note in graph.quantization_annotation for entry in note.quant_parameter_tensor_names]
    declared = (*graph.input, *graph.output, *graph.value_info)
    origin = GraphOrigin(
        fields=shell(graph, ("node", "initializer", "sparse_initializer", "input", "output", "value_info")),
        inputs=[copied(value) for value in graph.input],
        outputs=[copied(value) for value in graph.output],
        values=[copied(value) for value in graph.value_info],
        initializer_order=[tensor.name for tensor in dense],
        described={tensor.name: shell(tensor, without=_TENSOR_DATA) for tensor in dense},
        unused=tensors,  # until it is known what nodes read
        pinned=frozenset((*pinned, *scales)),
    )
    for value in declared:
        if not (value.type.HasField("tensor_type") and known_element_type(value.type.tensor_type.elem_type)):
            value.ClearField("type")
    return origin


def take_function_origin(function: onnx.FunctionProto) -> FunctionOrigin:
    """The function's origin; default values that graphsurgeon cannot hold leave the function for it."""
    owned = ("input", "output", "attribute", "attribute_proto", "node", "opset_import")
    for attribute in function.attribute_proto:
        refuse_external(attribute, f"the attribute {attribute.name!r} of the function {function.name!r}")
    defaults = take_attributes(function.attribute_proto, f"function {function.name!r}", defaults=True)
    return FunctionOrigin(shell(function, without=owned), defaults, imports=bool(function.opset_import))
