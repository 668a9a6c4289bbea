"""Raising a model's operator set in place.

``onnx.version_converter`` works on a copy that loses documentation, metadata and node names, and knows
nothing of some operators; so the differences are written down here. An operator may move to the new version
when its schema keeps the attributes, their defaults and the inputs that it had (types and optional additions
aside), or when a rule below rewrites it. Anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.errors import PassError
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import Names
from onnxcomp.graph.inferred import TensorType, infer_types_of_bodies
from onnxcomp.graph.layers import layer_name
from onnxcomp.model import Model

__all__ = ["upgrade_opset"]

Array = np.ndarray[Any, Any]
_STANDARD = (None, "", "ai.onnx")
_IR_OF_TARGET = 7  # the version of the format that came with operator set 13


def upgrade_opset(model: Model, target: int) -> bool:
    """Raise the standard operator set of ``model`` to ``target`` (at most 13) where it is lower.

    Returns:
        whether anything changed.

    Raises:
        PassError: an operator whose meaning changed in a way that no rule covers.
    """
    if model.opset >= target:
        return False
    names, types = Names(model.graph), infer_types_of_bodies(model)
    upgrades = [(model.graph, _Upgrade(model.opset, target, names))]
    for function in model.graph.functions:  # an operator must mean the same there and in the model
        if any(entry.domain in _STANDARD for entry in function.import_domains or ()) and function.opset < target:
            upgrades.append((function, _Upgrade(int(function.opset), target, names)))
    for root, upgrade in upgrades:
        for graph in nested_graphs(root):
            upgrade.graph(graph, types.get(id(graph), {}))
    for root, _ in upgrades:
        for graph in nested_graphs(root):
            _import(graph, target)
    model.graph.ir_version = max(model.graph.ir_version or 0, _IR_OF_TARGET)
    return True


def _import(graph: gs.Graph, target: int) -> None:
    graph.opset = target
    kept = [entry for entry in graph.import_domains or () if entry.domain not in _STANDARD]
    graph.import_domains = [onnx.helper.make_opsetid("", target), *kept]


class _Upgrade:
    """One raise of the main graph or a function, from its operator set to the target."""

    def __init__(self, source: int, target: int, names: Names) -> None:
        self.source = source
        self.target = target
        self.names = names
        self.types: Mapping[str, TensorType | None] = {}

    def graph(self, graph: gs.Graph, types: Mapping[str, TensorType | None]) -> None:
        """Raise one graph; ``types`` are those of the tensors that its nodes see."""
        self.types = types
        nodes: list[gs.Node] = []
        for node in graph.nodes:
            if node.domain not in _STANDARD or not self._changes(node):
                nodes.append(node)
                continue
            rule = _RULES.get(node.op)
            if rule is None or any(isinstance(value, gs.Node.AttributeRef) for value in node.attrs.values()):
                raise PassError(
                    f"{node.op} {layer_name(node)} changed its meaning between operator sets "
                    f"{self.source} and {self.target}; export the model with a newer operator set"
                )
            nodes += rule(self, node)
        graph.nodes = nodes

    def constant(self, node: gs.Node, name: str, value: Array) -> gs.Constant:
        return gs.Constant(self.names.new(f"{layer_name(node)}_{name}"), value)

    def variable(self, node: gs.Node, name: str, dtype: Any = None) -> gs.Variable:
        return gs.Variable(self.names.new(f"{layer_name(node)}_{name}"), dtype)

    def rank(self, tensor: gs.Tensor) -> int | None:
        known = self.types.get(tensor.name)
        return None if known is None or known.shape is None else len(known.shape)

    def dtype(self, tensor: gs.Tensor) -> Any:
        known = self.types.get(tensor.name)
        return np.dtype(np.float32) if known is None else onnx.helper.tensor_dtype_to_np_dtype(known.element)

    def _changes(self, node: gs.Node) -> bool:
        """Whether the node as it stands would mean something else, or nothing, in the target."""
        try:
            old = onnx.defs.get_schema(node.op, self.source)
            new = onnx.defs.get_schema(node.op, self.target)
        except onnx.defs.SchemaError:
            return True
        if new.deprecated or node.op == "Resize" or (node.op == "Scan" and old.since_version == 8):
            return old.since_version != new.since_version
        if old.since_version == new.since_version:
            return False
        return not _same_signature(old, new, node)


def _same_signature(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema, node: gs.Node) -> bool:
    if any(name not in new.attributes for name in node.attrs):
        return False
    for name, attribute in old.attributes.items():
        other = new.attributes.get(name)
        if name not in node.attrs and (other is None or _default(attribute) != _default(other)):
            return other is None and not _default(attribute)
    if node.op in ("Softmax", "LogSoftmax", "Hardmax"):
        return False  # the axis means something else even where it is given
    required = sum(1 for item in new.inputs if item.option == onnx.defs.OpSchema.FormalParameterOption.Single)
    return required <= len(node.inputs) <= new.max_input


def _default(attribute: onnx.defs.OpSchema.Attribute) -> bytes:
    return bytes(attribute.default_value.SerializeToString())


# -- rules: each returns the nodes that stand in the node's place
# -----------------------------------------------


def _axes_to_input(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Squeeze, Unsqueeze, ReduceSum: the axes are an input since 13."""
    axes = node.attrs.pop("axes", None)
    if axes is not None:
        node.inputs.append(up.constant(node, "axes", np.array(axes, np.int64)))
    return [node]


def _split_to_input(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Split: the sizes are an input since 13."""
    sizes = node.attrs.pop("split", None)
    if sizes is not None:
        node.inputs.append(up.constant(node, "split", np.array(sizes, np.int64)))
    return [node]


def _softmax(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Softmax, LogSoftmax, Hardmax: until 12 all axes from ``axis`` (default 1) on, since 13 one."""
    axis, rank = int(node.attrs.get("axis", 1)), up.rank(node.inputs[0])
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        node.attrs["axis"] = -1
        return [node]
    source, result = node.inputs[0], node.outputs[0]
    shape = up.variable(node, "shape", np.dtype(np.int64))
    flat, computed = (up.variable(node, name, up.dtype(source)) for name in ("flat", "computed"))
    node.inputs[0], node.outputs[0] = flat, computed
    node.attrs["axis"] = -1
    return [
        gs.Node("Shape", up.names.new(shape.name + "_S"), inputs=[source], outputs=[shape]),
        gs.Node("Flatten", up.names.new(flat.name + "_F"), {"axis": axis}, inputs=[source], outputs=[flat]),
        node,
        gs.Node("Reshape", up.names.new(computed.name + "_R"), inputs=[computed, shape], outputs=[result]),
    ]


def _clip(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Clip: the limits are inputs since 11."""
    dtype = up.dtype(node.inputs[0])
    for name in ("min", "max"):
        limit = node.attrs.pop(name, None)
        empty = gs.Variable.empty() if limit is None else up.constant(node, name, np.array(limit, dtype))
        node.inputs.append(empty)
    while not node.inputs[-1].name:
        node.inputs.pop()
    return [node]


def _pad(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Pad: widths and value are inputs since 11."""
    widths = node.attrs.pop("pads", None) or node.attrs.pop("paddings", None)
    value = node.attrs.pop("value", 0.0)
    node.inputs.append(up.constant(node, "pads", np.array(widths, np.int64)))
    if node.attrs.get("mode", "constant") == "constant" and value:
        node.inputs.append(up.constant(node, "value", np.array(value, up.dtype(node.inputs[0]))))
    return [node]


def _slice(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Slice: bounds and axes are inputs since 10."""
    starts, ends = node.attrs.pop("starts"), node.attrs.pop("ends")
    axes = node.attrs.pop("axes", list(range(len(starts))))
    for name, values in (("starts", starts), ("ends", ends), ("axes", axes)):
        node.inputs.append(up.constant(node, name, np.array(values, np.int64)))
    return [node]


def _dropout(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Dropout: the ratio is an input since 12; without a training flag it does nothing either way."""
    ratio = node.attrs.pop("ratio", None)
    if ratio is not None:
        node.inputs.append(up.constant(node, "ratio", np.array(ratio, np.float32)))
    return [node]


def _resize(up: _Upgrade, node: gs.Node) -> list[gs.Node]:
    """Upsample (until 9) and Resize of 10: positions are scaled from the corner and rounded down.

    Resize of 11 and 12 is that of 13 but for one mode that is gone.
    """
    if node.op == "Resize" and up.source >= 11:
        if node.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
            raise PassError(f"Resize {layer_name(node)} uses tf_half_pixel_for_nn, gone in operator set 13")
        return [node]
    if "scales" in node.attrs:
        node.inputs.append(up.constant(node, "scales", np.array(node.attrs.pop("scales"), np.float32)))
    scales = node.inputs[1]
    node.inputs[1] = gs.Variable.empty()
    node.inputs.append(scales)
    node.op = "Resize"
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    if node.attrs.get("mode", "nearest") == "nearest":
        known = value_of(scales)
        # Shrinking rounded up where enlarging rounds down; one mode must serve all axes.
        if known is None or np.any(known < 1):
            raise PassError(f"Resize {layer_name(node)} may shrink, which operator set 13 rounds otherwise")
        node.attrs["nearest_mode"] = "floor"
    return [node]


_RULES: dict[str, Callable[[_Upgrade, gs.Node], list[gs.Node]]] = {
    "Squeeze": _axes_to_input,
    "Unsqueeze": _axes_to_input,
    "ReduceSum": _axes_to_input,
    "Split": _split_to_input,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "Clip": _clip,
    "Pad": _pad,
    "Slice": _slice,
    "Dropout": _dropout,
    "Resize": _resize,
    "Upsample": _resize,
}
