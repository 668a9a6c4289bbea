"""What each operator that computes does to the channels it reads: one rule for each kind of operator."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import WeightedLayer, layer_name
from onnxcomp.graph.propagate import Array, Labels, Propagation, Rule
from onnxcomp.graph.shape_rules import SHAPE_RULES, axes_of

__all__ = ["RULES"]


def unary(flow: Propagation, node: gs.Node) -> None:
    """The channels of the first input pass through."""
    if (labels := flow.labels(node.inputs[0])) is not None:
        flow.give(node.outputs[0], labels.axis, labels.ids)


def source(flow: Propagation, node: gs.Node) -> None:
    """Computes from no channel at all."""


# -- elementwise ---------------------------------------------------------------------------------------------


def elementwise(flow: Propagation, node: gs.Node) -> None:
    """Operands are broadcast against each other; all that have the channels on the same axis are tied."""
    labelled = list(flow.labelled_inputs(node))
    if not labelled:
        return
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    if any(shape is None for shape in shapes):
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    ranks = [len(shape) for shape in shapes if shape is not None]
    rank = max(ranks)
    axes = {rank - len(flow.shape(tensor) or ()) + labels.axis for tensor, labels in labelled}
    if len(axes) > 1:
        flow.pin_inputs(node, "its operands have their channels on different axes")
        return
    axis, ids = axes.pop(), labelled[0][1].ids
    for index, tensor in enumerate(node.inputs):
        own = axis - rank + ranks[index]
        shape = shapes[index] or ()
        if own >= 0 and shape[own] > 1:
            _join(flow, node, index, own, ids)
        elif flow.labels(tensor) is not None:
            flow.pin_inputs(node, "it repeats channels")
    flow.give(node.outputs[0], axis, ids)


def _join(flow: Propagation, node: gs.Node, index: int, axis: int, ids: Array) -> None:
    """The operand has an entry for each of the channels along ``axis``."""
    tensor = node.inputs[index]
    labels = flow.labels(tensor)
    if labels is not None:
        flow.tie(ids, labels.ids)
    elif is_constant(tensor):
        flow.place(node, index, axis, ids, "along")
    else:
        flow.pin_inputs(node, f"its other operand {tensor.name} has channels that cannot be followed")


# -- normalization and activation ----------------------------------------------------------------------------


def per_channel(flow: Propagation, node: gs.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters for each channel of axis 1."""
    labels = flow.labels(node.inputs[0])
    if labels is None:
        return
    if labels.axis != 1 or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "its parameters are no constants of the channels")
        return
    for index in range(1, len(node.inputs)):
        flow.place(node, index, 0, labels.ids, "along")
    flow.give(node.outputs[0], 1, labels.ids)


def layer_norm(flow: Propagation, node: gs.Node) -> None:
    """Mean and variance over the channels: none can go, but their order does not matter."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    start = int(node.attrs.get("axis", -1)) % len(shape)
    if not all(is_constant(tensor) for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "its parameters are not constant")
        return
    if labels.axis >= start:
        flow.pin(labels.ids, f"{layer_name(node)}: {node.op} over the channels", movable=True)
        for index in range(1, len(node.inputs)):
            flow.place(node, index, labels.axis - start, labels.ids, "along")
    flow.give(node.outputs[0], labels.axis, labels.ids)


def softmax(flow: Propagation, node: gs.Node) -> None:
    """The outputs depend on all entries along the axis, in whatever order they are."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", -1 if flow.opset >= 13 else 1)) % len(shape)
    if labels.axis == axis or (flow.opset < 13 and labels.axis > axis):
        flow.pin(labels.ids, f"{layer_name(node)}: {node.op} over the channels", movable=True)
    flow.give(node.outputs[0], labels.axis, labels.ids)


def pooling(flow: Propagation, node: gs.Node) -> None:
    """Works on each channel of axis 1 on its own."""
    labels = flow.labels(node.inputs[0])
    if labels is None:
        return
    if labels.axis != 1 or any(output.outputs for output in node.outputs[1:]):
        flow.pin_inputs(node, "it pools over the channels, or its indices are used")
        return
    flow.give(node.outputs[0], 1, labels.ids)


def reduction(flow: Propagation, node: gs.Node) -> None:
    """Over the channels: none can go, but their order does not matter (save to ArgMax)."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    positional = node.op in ("ArgMax", "ArgMin")
    axes = [int(node.attrs.get("axis", 0)) % len(shape)] if positional else axes_of(node, len(shape))
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    if labels.axis in axes:
        flow.pin(labels.ids, f"{layer_name(node)}: {node.op} over the channels", movable=not positional)
        return
    gone = 0 if node.attrs.get("keepdims", 1) else sum(axis < labels.axis for axis in axes)
    flow.give(node.outputs[0], labels.axis - gone, labels.ids)


# -- layers --------------------------------------------------------------------------------------------------


def convolution(flow: Propagation, node: gs.Node) -> None:
    """Conv and ConvTranspose, plain, grouped or depthwise."""
    layer = _editable(flow, node)
    labels = flow.labels(node.inputs[0])
    if layer is None:
        return
    if labels is not None and labels.axis != 1:
        flow.pin_inputs(node, f"{node.op} over an axis of channels")
        labels = None
    if layer.groups == 1:
        if labels is not None:
            flow.place(node, 1, layer.in_axis, labels.ids, "in")
        _produce(flow, node, flow.fresh(layer.shape[layer.out_axis]), axis=1)
    elif _inputs(layer) == layer.groups:
        _depthwise(flow, node, layer, labels)
    else:
        _grouped(flow, node, layer, labels)


def _inputs(layer: WeightedLayer) -> int:
    return layer.shape[0] if layer.kind == "ConvTranspose" else layer.shape[1] * layer.groups


def _depthwise(flow: Propagation, node: gs.Node, layer: WeightedLayer, labels: Labels | None) -> None:
    """Every channel has kernels of its own: they, and the outputs they give, go with it."""
    if labels is None:
        return
    outputs_each = layer.shape[1] if layer.kind == "ConvTranspose" else layer.shape[0] // layer.groups
    outputs = labels.ids if outputs_each == 1 else np.repeat(labels.ids, outputs_each)
    flow.place(node, 1, 0, labels.ids if layer.kind == "ConvTranspose" else outputs, "along")
    if _has_bias(node):
        flow.place(node, 2, 0, outputs, "along")
    flow.extent(node, "group", None, labels.ids)
    flow.give(node.outputs[0], 1, outputs)


def _grouped(flow: Propagation, node: gs.Node, layer: WeightedLayer, labels: Labels | None) -> None:
    """The groups must stay equal in size: the channels at the same place in each are tied."""
    transposed = layer.kind == "ConvTranspose"
    if labels is not None:
        across = labels.ids.reshape(layer.groups, -1)
        flow.tie(np.broadcast_to(across[0], across.shape).reshape(-1), labels.ids)
        flow.place(node, 1, layer.in_axis, labels.ids if transposed else across[0], "in")
    outputs = flow.fresh(layer.shape[1] * layer.groups if transposed else layer.shape[0])
    across = outputs.reshape(layer.groups, -1)
    flow.tie(np.broadcast_to(across[0], across.shape).reshape(-1), outputs)
    if len(outputs) > 1:
        flow.place(node, 1, layer.out_axis, across[0] if transposed else outputs, "out")
        if _has_bias(node):
            flow.place(node, 2, 0, outputs, "out")
        flow.give(node.outputs[0], 1, outputs)


def gemm(flow: Propagation, node: gs.Node) -> None:
    """A·B + C with constant B."""
    layer = _editable(flow, node)
    if layer is None:
        return
    labels = flow.labels(node.inputs[0])
    if labels is not None:
        if labels.axis != (0 if node.attrs.get("transA", 0) else 1):
            flow.pin_inputs(node, "Gemm over an axis of channels")
        else:
            flow.place(node, 1, layer.in_axis, labels.ids, "in")
    outputs = flow.fresh(layer.shape[layer.out_axis])
    if len(node.inputs) > 2 and not is_constant(node.inputs[2]) and node.inputs[2].name:
        _tie_addend(flow, node, outputs)
    _produce(flow, node, outputs, axis=1)


def _tie_addend(flow: Propagation, node: gs.Node, outputs: Array) -> None:
    """A C that is computed has the channels of the output."""
    labels, shape = flow.labels(node.inputs[2]), flow.shape(node.inputs[2]) or ()
    if labels is not None and labels.axis == len(shape) - 1:
        flow.tie(labels.ids, outputs)
    elif labels is not None or not shape or shape[-1] != 1:
        flow.pin_inputs(node, "its addend has other channels")
        flow.pin(outputs, f"its addend {node.inputs[2].name} has channels that cannot be followed")


def matmul(flow: Propagation, node: gs.Node) -> None:
    """A·B with a constant matrix B: over the last axis of A."""
    layer = _editable(flow, node)
    if layer is None:
        return
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if shape is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    if labels is not None:
        if labels.axis != len(shape) - 1:
            flow.pin_inputs(node, "MatMul over an axis of channels")
        else:
            flow.place(node, 1, layer.in_axis, labels.ids, "in")
    _produce(flow, node, flow.fresh(layer.shape[layer.out_axis]), axis=len(shape) - 1)


def gather(flow: Propagation, node: gs.Node) -> None:
    """Entries of a tensor along another axis than the channels, or rows of a constant table (embedding)."""
    axis, index_shape = int(node.attrs.get("axis", 0)), flow.shape(node.inputs[1])
    data, shape = node.inputs[0], flow.shape(node.inputs[0])
    if index_shape is None or shape is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    axis %= len(shape)
    labels = flow.labels(data)
    if flow.labels(node.inputs[1]) is not None or (labels is not None and labels.axis == axis):
        flow.pin_inputs(node, "it picks channels")
    elif labels is not None:
        shift = len(index_shape) - 1 if labels.axis > axis else 0
        flow.give(node.outputs[0], labels.axis + shift, labels.ids)
    elif (layer := flow.layer(node)) is not None and len(shape) == 2 and axis == 0 and not layer.shared:
        ids = flow.fresh(shape[1])
        flow.place(node, 0, 1, ids, "out")
        flow.give(node.outputs[0], len(index_shape), ids)


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


def _editable(flow: Propagation, node: gs.Node) -> WeightedLayer | None:
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


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table("Constant ConstantOfShape RandomNormal RandomUniform Range EyeLike", source),
    **_table(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
        "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu "
        "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
        unary,
    ),
    **_table(
        "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
        "Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
        elementwise,
    ),
    **_table("BatchNormalization InstanceNormalization", per_channel),
    **_table("LayerNormalization RMSNormalization", layer_norm),
    **_table("Softmax LogSoftmax", softmax),
    **_table("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", pooling),
    **_table(
        "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare",
        reduction,
    ),
    **_table("Conv ConvTranspose", convolution),
    "Gemm": gemm,
    "MatMul": matmul,
    "Gather": gather,
    **SHAPE_RULES,
}
