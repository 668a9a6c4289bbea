"""What layers with a weight matrix do to the channels they read: they end there, and others begin."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.attention_rules import product
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.propagate import Array, Labels, Propagation, Rule

__all__ = ["LAYER_RULES"]


def convolution(flow: Propagation, node: gs.Node) -> None:
    """Conv and ConvTranspose, plain, grouped or depthwise."""
    layer = editable(flow, node)
    labels = flow.labels(node.inputs[0])
    if layer is None:
        return
    ids = None if labels is None else flow.single(node, labels, 1, f"{node.op} over an axis of channels")
    if layer.groups == 1:
        if ids is not None:
            flow.place(node, 1, layer.in_axis, ids, "in")
        _produce(flow, node, flow.fresh(layer.shape[layer.out_axis]), axis=1)
    elif _inputs(layer) == layer.groups:
        _depthwise(flow, node, layer, ids)
    else:
        _grouped(flow, node, layer, ids)


def _inputs(layer: WeightedLayer) -> int:
    return layer.shape[0] if layer.kind == "ConvTranspose" else layer.shape[1] * layer.groups


def _depthwise(flow: Propagation, node: gs.Node, layer: WeightedLayer, ids: Array | None) -> None:
    """Every channel has kernels of its own: they, and the outputs they give, go with it."""
    if ids is None:
        return
    outputs_each = layer.shape[1] if layer.kind == "ConvTranspose" else layer.shape[0] // layer.groups
    outputs = ids if outputs_each == 1 else np.repeat(ids, outputs_each)
    flow.place(node, 1, 0, ids if layer.kind == "ConvTranspose" else outputs, "along")
    if _has_bias(node):
        flow.place(node, 2, 0, outputs, "along")
    flow.extent(node, "group", None, ids)
    flow.give(node.outputs[0], 1, outputs)


def _grouped(flow: Propagation, node: gs.Node, layer: WeightedLayer, ids: Array | None) -> None:
    """The groups must stay equal in size: the channels at the same place in each are tied."""
    transposed = layer.kind == "ConvTranspose"
    if ids is not None:
        across = ids.reshape(layer.groups, -1)
        flow.tie(across[:1], across)
        flow.place(node, 1, layer.in_axis, ids if transposed else across[0], "in")
    outputs = flow.fresh(layer.shape[1] * layer.groups if transposed else layer.shape[0])
    across = outputs.reshape(layer.groups, -1)
    flow.tie(across[:1], across)
    if len(outputs) > 1:
        flow.place(node, 1, layer.out_axis, across[0] if transposed else outputs, "out")
        if _has_bias(node):
            flow.place(node, 2, 0, outputs, "out")
        flow.give(node.outputs[0], 1, outputs)


def gemm(flow: Propagation, node: gs.Node) -> None:
    """A·B + C with constant B."""
    layer = editable(flow, node)
    if layer is None:
        return
    labels = flow.labels(node.inputs[0])
    if labels is not None:
        ids = flow.single(node, labels, 0 if node.attrs.get("transA", 0) else 1, "Gemm over an axis of channels")
        if ids is not None:
            flow.place(node, 1, layer.in_axis, ids, "in")
    outputs = flow.fresh(layer.shape[layer.out_axis])
    if len(node.inputs) > 2 and not is_constant(node.inputs[2]) and node.inputs[2].name:
        _tie_addend(flow, node, outputs)
    _produce(flow, node, outputs, axis=1)


def _tie_addend(flow: Propagation, node: gs.Node, outputs: Array) -> None:
    """A C that is computed has the channels of the output."""
    labels, shape = flow.labels(node.inputs[2]), flow.shape(node.inputs[2]) or ()
    if labels is not None and labels.axes == (len(shape) - 1,):
        flow.tie(labels.ids, outputs)
    elif labels is not None or not shape or shape[-1] != 1:
        flow.pin_inputs(node, "its addend has other channels")
        flow.pin(outputs, f"its addend {node.inputs[2].name} has channels that cannot be followed")


def matmul(flow: Propagation, node: gs.Node) -> None:
    """A·B with a constant matrix B: over the last axis of A; with others see ``attention_rules.product``."""
    constant = is_constant(node.inputs[1]) and len(flow.shape(node.inputs[1]) or ()) == 2
    if not constant and not _looks_restored(flow, node):
        product(flow, node)
        return
    layer = editable(flow, node)
    if layer is None:
        return
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if shape is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    last = len(shape) - 1
    if labels is not None and last in labels.axes and len(labels.axes) > 1:
        _each_on_its_own(flow, node, layer, labels)
        return
    if labels is not None and (ids := flow.single(node, labels, last, "MatMul over an axis of channels")) is not None:
        flow.place(node, 1, layer.in_axis, ids, "in")
    _produce(flow, node, flow.fresh(layer.shape[layer.out_axis]), axis=last)


def _looks_restored(flow: Propagation, node: gs.Node) -> bool:
    """Whether the second operand is a weight, though no constant: a quantized one."""
    layer = flow.layer(node)
    return layer is not None and layer.kind == "MatMul"


def _each_on_its_own(flow: Propagation, node: gs.Node, layer: WeightedLayer, labels: Labels) -> None:
    """One matrix for all lines of a lattice (heads, say): its inputs and outputs stay, lines may go."""
    reason = "it multiplies each part of the channels with one matrix"
    rest = flow.over(node, labels, [labels.axes[-1]], reason)
    outputs = flow.fresh(layer.shape[layer.out_axis])
    flow.pin(outputs, f"{layer.name}: {reason}")
    flow.place(node, 1, layer.out_axis, outputs, "out")
    flow.give(node.outputs[0], rest.axes, rest.ids)


def _produce(flow: Propagation, node: gs.Node, ids: Array, axis: int) -> None:
    """New channels: along the weight's outputs, its bias, and ``axis`` of the node's output."""
    layer = flow.layer(node)
    if layer is None or len(ids) < 2:
        return
    flow.place(node, 1, layer.out_axis, ids, "out")
    if _has_bias(node):
        shape = flow.shape(node.inputs[2]) or ()
        if shape and shape[-1] == len(ids):
            flow.place(node, 2, len(shape) - 1, ids, "out")
    flow.give(node.outputs[0], axis, ids)


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and is_constant(node.inputs[2])


def editable(flow: Propagation, node: gs.Node) -> WeightedLayer | None:
    """The node as a layer whose weight can be edited here, else what it reads is pinned."""
    layer = flow.layer(node)
    reason = "its weight is computed, or too small"
    if layer is not None and layer.kind == node.op:
        if layer.shared:
            reason = "its weight is shared"
        elif layer.quantized:
            reason = "its weight is quantized"
        elif len(node.inputs) > 2 and node.op != "Gemm" and node.inputs[2].name and not _has_bias(node):
            reason = "its bias is computed"
        else:
            return layer
    flow.pin_inputs(node, reason)
    if layer is not None and layer.kind == node.op:
        _pinned_outputs(flow, node, layer, reason)
    return None


def _pinned_outputs(flow: Propagation, node: gs.Node, layer: WeightedLayer, reason: str) -> None:
    """Follow the outputs all the same, so that whatever they are tied to learns the reason."""
    shape = flow.shape(node.outputs[0])
    axis = 1 if layer.kind in ("Conv", "ConvTranspose") else len(shape or ()) - 1
    if shape is None or axis >= len(shape):
        return
    ids = flow.fresh(shape[axis])
    flow.pin(ids, f"{layer.name}: {reason}")
    flow.give(node.outputs[0], axis, ids)


LAYER_RULES: dict[str, Rule] = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
}
