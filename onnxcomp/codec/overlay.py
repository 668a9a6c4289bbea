"""Lays what graphsurgeon dropped over what it exports.

Untouched parts become what they were, to the field: a part counts as untouched when graphsurgeon writes what it was
given, so nothing needs to be told that a pass edited something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import (
    PAYLOADS,
    AttributeOrigin,
    FunctionOrigin,
    GraphOrigin,
    drops_unused,
    graph_origin_of,
    home_of,
    node_origin_of,
    state_of,
    tensor_names,
)
from onnxcomp.storage.messages import copied, copy_fields, lay_over, name_of

__all__ = ["overlay_function", "overlay_graph"]

Message = Any  # of a tensor, dense or sparse
Homeless = list[tuple[gs.Constant, Message]]
Values = Iterable[onnx.ValueInfoProto]


def overlay_graph(
    graph: gs.Graph,
    exported: onnx.GraphProto,
    outer: set[int] = frozenset(),  # type: ignore[assignment]
    enclosing: Sequence[GraphOrigin] = (),
    nested: bool = False,
) -> Homeless:
    """Lay its origin over an exported graph.

    Args:
        outer: ``id`` of the constants that the graphs around it write.
        enclosing: origins of the graphs around it.
        nested: whether there is a graph or function around it.

    Returns:
        constants that only bodies read, with their messages: for the graph around this one that they came from.
    """
    origin = graph_origin_of(graph)
    constants = {name: tensor for name, tensor in graph.tensors().items() if isinstance(tensor, gs.Constant)}
    homeless = _take_outer_initializers(exported, constants, outer, enclosing)
    visible = outer | {id(tensor) for tensor in constants.values()}
    within = enclosing if origin is None else (*enclosing, origin)
    for tensor, message in _overlay_nodes(graph.nodes, exported.node, visible, within):
        if home_of(tensor) is origin:
            _field_of(exported, message).append(message)
        else:
            homeless.append((tensor, message))
    if origin is not None:
        lay_over(origin.fields, exported, owned=("name", "doc_string"))
        names = tensor_names(graph)
        gone = origin.names - names
        _prune(exported.quantization_annotation, lambda note: note.tensor_name in gone)
        _overlay_initializers(graph, origin, exported, names)
        initializers = {name_of(tensor) for tensor in (*exported.initializer, *exported.sparse_initializer)}
        gone |= {name_of(message) for message in origin.unused} - initializers - names
        _overlay_values(graph, origin, exported, gone, nested)
    return homeless


def overlay_function(function: gs.Function, origin: FunctionOrigin | None, exported: onnx.FunctionProto) -> None:
    """Lay its origin over an exported function."""
    added = len(exported.node) - len(function.nodes)  # constants, which graphsurgeon writes as nodes in front
    constants = {id(tensor) for tensor in function.tensors().values() if isinstance(tensor, gs.Constant)}
    _overlay_nodes(function.nodes, exported.node[added:], constants, ())
    if origin is None:
        return
    lay_over(origin.fields, exported, owned=("name", "domain", "doc_string"))
    gone = origin.names - tensor_names(function)
    _prune(exported.value_info, lambda value: value.name in gone)
    _overlay_attributes(origin.defaults, exported.attribute_proto, keep_aside=True)
    if not origin.imports:
        del exported.opset_import[:]


# -- nodes -------------------------------------------------------------------------------------------------


def _overlay_nodes(
    nodes: Sequence[gs.Node],
    exported: Sequence[onnx.NodeProto],
    visible: set[int],
    within: Sequence[GraphOrigin],
) -> Homeless:
    returned: dict[int, tuple[gs.Constant, Message]] = {}
    for node, node_proto in zip(nodes, exported, strict=True):
        for attribute in node_proto.attribute:
            body = node.attrs[attribute.name]
            if isinstance(body, gs.Graph):
                found = overlay_graph(body, attribute.g, visible, within, nested=True)
                returned |= {id(item[0]): item for item in found}
        _overlay_node(node, node_proto)
    return list(returned.values())


def _overlay_node(node: gs.Node, exported: onnx.NodeProto) -> None:
    origin = node_origin_of(node)
    if origin is None:
        for attribute in exported.attribute:
            if attribute.HasField("t") and not attribute.t.name:
                attribute.t.ClearField("name")  # graphsurgeon sets it to nothing
        return
    same_operator = (origin.fields.op_type, origin.fields.domain) == (exported.op_type, exported.domain)
    new_value = exported.op_type == "Constant" and bool(exported.attribute)  # of which there can only be one
    _overlay_attributes(origin.attributes, exported.attribute, keep_aside=same_operator and not new_value)
    lay_over(origin.fields, exported, owned=("name", "op_type", "domain"))


def _overlay_attributes(origin: AttributeOrigin, exported: Any, keep_aside: bool) -> None:
    """In the order they stood in; what is new stands behind."""
    written = {attribute.name: attribute for attribute in exported}
    for original in origin.messages:
        attribute = written.get(original.name)
        if attribute is None:
            if keep_aside and original.name in origin.aside:
                exported.append(original)
        elif original.name not in origin.aside:
            _overlay_attribute(original, attribute)
    _sort(exported, [original.name for original in origin.messages])


def _overlay_attribute(original: onnx.AttributeProto, exported: onnx.AttributeProto) -> None:
    payload = PAYLOADS.get(exported.type, "ref_attr_name")
    same_kind = original.type in (exported.type, onnx.AttributeProto.UNDEFINED)
    if original.ref_attr_name or exported.ref_attr_name:
        if same_kind and original.ref_attr_name == exported.ref_attr_name:
            exported.CopyFrom(original)  # graphsurgeon gives it a value for the sake of a viewer
    elif payload == "t" and same_kind:
        exported.t.ClearField("name")  # graphsurgeon gives it that of a variable, or nothing
        lay_over(original.t, exported.t)
        lay_over(original, exported, skip=("type", "t"))
    elif payload == "g" and same_kind:
        lay_over(original, exported, skip=("type", "g"))
    elif same_kind and getattr(original, payload) == getattr(exported, payload):
        exported.CopyFrom(original)
    else:
        copy_fields(original, exported, skip={item.name for item, _ in original.ListFields()} - {"doc_string"})
    if payload in ("t", "g") and same_kind and not original.HasField("type"):
        exported.ClearField("type")  # as the oldest files do


# -- initializers ------------------------------------------------------------------------------------------


def _take_outer_initializers(
    exported: onnx.GraphProto,
    constants: dict[str, gs.Constant],
    outer: set[int],
    enclosing: Sequence[GraphOrigin],
) -> Homeless:
    """A body sees the initializers of the graphs around it; graphsurgeon writes it copies of them.

    Returns:
        those that no graph around it writes, though one of them held them.
    """
    homeless: Homeless = []
    for field in (exported.initializer, exported.sparse_initializer):
        for index in reversed(range(len(field))):
            tensor = constants[name_of(field[index])]
            if id(tensor) in outer:
                del field[index]
            elif any(home_of(tensor) is origin for origin in enclosing):
                homeless.insert(0, (tensor, copied(field[index])))
                del field[index]
    return homeless


def _field_of(exported: onnx.GraphProto, message: Message) -> Any:
    return exported.sparse_initializer if isinstance(message, onnx.SparseTensorProto) else exported.initializer


def _overlay_initializers(graph: gs.Graph, origin: GraphOrigin, exported: onnx.GraphProto, names: set[str]) -> None:
    """Those that nothing reads too, in the order they stood in."""
    taken = (names - origin.names) | {name_of(item) for item in (*exported.initializer, *exported.sparse_initializer)}
    for message in origin.unused:
        kept = name_of(message) in origin.pinned or not drops_unused(graph)
        if kept and name_of(message) not in taken:
            _field_of(exported, message).append(message)
    for tensor in exported.initializer:
        if tensor.name in origin.described:
            lay_over(origin.described[tensor.name], tensor, owned=("name",))
    for field in (exported.initializer, exported.sparse_initializer):
        _sort(field, origin.initializer_order)


# -- values ------------------------------------------------------------------------------------------------


def _overlay_values(
    graph: gs.Graph, origin: GraphOrigin, exported: onnx.GraphProto, gone: set[str], nested: bool
) -> None:
    """Inputs, outputs and declared values as they stood, but for those that a pass changed."""
    tensors = graph.tensors()
    unchanged = {name for name, state in origin.states.items() if name in tensors and state_of(tensors[name]) == state}
    constants = {tensor.name: tensor for tensor in exported.initializer}
    constants |= {name_of(tensor): tensor for tensor in exported.sparse_initializer}

    live = {value.name: copied(value) for value in exported.input}
    del exported.input[:]
    for value in origin.inputs:
        if value.name in live:
            exported.input.append(_merged(value, live.pop(value.name), unchanged))
        elif value.name in constants:  # a default value, or IR 3
            exported.input.append(_fitted(value, constants[value.name]))
    exported.input.extend(live.values())

    outputs = list(origin.outputs)
    for value in exported.output:
        original = next((item for item in outputs if item.name == value.name), None)
        if original is not None:
            outputs.remove(original)
            value.CopyFrom(_merged(original, value, unchanged))

    written = {value.name: copied(value) for value in exported.value_info}
    del exported.value_info[:]
    for value in origin.values:
        kept = _still_declared(value, written.pop(value.name, None), tensors, unchanged, gone)
        if kept is not None:
            exported.value_info.append(kept)
    own = {tensor.name for node in graph.nodes for tensor in node.outputs}
    # graphsurgeon declares in a body what the body reads from outside.
    exported.value_info.extend(value for name, value in written.items() if name in own or not nested)


def _still_declared(
    original: onnx.ValueInfoProto,
    written: onnx.ValueInfoProto | None,
    tensors: dict[str, gs.Tensor],
    unchanged: set[str],
    gone: set[str],
) -> onnx.ValueInfoProto | None:
    """The declaration as it stands now, if it still holds."""
    name = original.name
    if name in unchanged or (name not in tensors and name not in gone):
        return original  # the value of a function or a body, or of something that graphsurgeon does not show
    if written is not None:
        return _merged(original, written, unchanged)
    tensor = tensors.get(name)
    if tensor is None:
        return None
    if isinstance(tensor, gs.Constant):
        held = original.type.tensor_type.shape.dim
        shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in held]
        return original if shape == list(tensor.shape) else None
    return None if _held_type(original.type) else original


def _merged(original: onnx.ValueInfoProto, written: onnx.ValueInfoProto, unchanged: set[str]) -> onnx.ValueInfoProto:
    """Documentation and metadata always; the whole type (denotations) unless a pass changed it."""
    if original.name in unchanged:
        return original
    result = copied(written)
    lay_over(original, result, owned=("type",))
    untyped = not written.HasField("type") and not _held_type(original.type)
    if original.HasField("type") and (untyped or _plain_type(original.type) == _plain_type(written.type)):
        result.type.CopyFrom(original.type)
    return result


def _fitted(value: onnx.ValueInfoProto, tensor: Message) -> onnx.ValueInfoProto:
    """The declaration of an initializer that is an input, with the shape that the initializer has now."""
    if isinstance(tensor, onnx.SparseTensorProto) or not value.type.HasField("tensor_type"):
        return value
    now = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    declared = value.type.tensor_type
    fits = declared.elem_type == tensor.data_type and (
        not declared.HasField("shape")
        or (
            len(declared.shape.dim) == len(tensor.dims)
            and all(
                not dim.HasField("dim_value") or dim.dim_value == size
                for dim, size in zip(declared.shape.dim, tensor.dims, strict=True)
            )
        )
    )
    if fits:
        return value
    result = copied(value)
    result.type.CopyFrom(now)
    return result


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


# -- fields ------------------------------------------------------------------------------------------------


def _sort(field: Any, order: Sequence[str]) -> None:
    """What stood in the file in its order, what is new behind it."""
    place = {name: index for index, name in enumerate(order)}
    field.sort(key=lambda item: place.get(name_of(item), len(place)))


def _prune(field: Any, condition: Any) -> None:
    for index in reversed(range(len(field))):
        if condition(field[index]):
            del field[index]
