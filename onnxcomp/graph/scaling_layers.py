"""What layers, normalizations and pooling do to the scales of channels: most scales begin and end here."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.scaling import Array, ScaleFlow, is_shared, lifted, scale_constant
from onnxcomp.graph.shape_rules import axes_of

__all__ = ["batch_norm", "convolution", "gather", "gemm", "matmul", "normalization", "pooling", "reduction"]


def pooling(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Over the spatial axes."""
    ids = flow.labels(node.inputs[0])
    flow.give(node.outputs[0], flow.uniform(ids, range(2, ids.ndim)))
    return None


def reduction(flow: ScaleFlow, node: gs.Node) -> str | None:
    """ReduceMean, ReduceSum, ReduceMax, ReduceMin, ReduceL1, ReduceL2: one scale along the axes."""
    ids = flow.labels(node.inputs[0])
    axes = axes_of(node, ids.ndim)
    if axes is None:
        return "its axes are not constant"
    if not axes and not node.attrs.get("noop_with_empty_axes", 0):
        axes = list(range(ids.ndim))
    ids = flow.uniform(ids, axes)
    if not node.attrs.get("keepdims", 1):
        ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in axes])
    flow.give(node.outputs[0], ids)
    return None


def batch_norm(flow: ScaleFlow, node: gs.Node) -> str | None:
    """With constant parameters: independent scales on both sides."""
    if not all(is_constant(tensor) for tensor in node.inputs[1:]) or any(map(is_shared, node.inputs[1:])):
        return "its parameters are shared, or not constant"
    if node.attrs.get("training_mode", 0) or len(node.outputs) > 1 or len(flow.dims(node.inputs[1])) != 1:
        return "it is in training mode, or of an old form"
    ids = flow.labels(node.inputs[0])
    if ids.ndim < 2:
        return "it has no axis of channels"
    ids = flow.uniform(ids, (0, *range(2, ids.ndim)))
    before, after = ids.reshape(-1), flow.fresh((flow.shape(node.inputs[1]) or (1,))[0])
    flow.factor(node, 1, before, -1)
    flow.factor(node, 3, before, 1)
    flow.factor(node, 1, after, 1)
    flow.factor(node, 2, after, 1)
    flow.give(node.outputs[0], after.reshape(1, -1, *(1,) * (ids.ndim - 2)))
    return None


def normalization(flow: ScaleFlow, node: gs.Node) -> str | None:
    """InstanceNormalization, LayerNormalization …: a new scale behind its parameters."""
    flow.pin_inputs(node, f"{node.op} does not pass a scale on")
    rank = len(flow.dims(node.outputs[0]))
    shape = flow.dims(node.inputs[1])
    parameters = node.inputs[1:]
    if not all(is_constant(tensor) for tensor in parameters) or any(map(is_shared, parameters)):
        return None
    if len(shape) != 1 or any(flow.dims(tensor) != shape for tensor in parameters):
        return None
    if any(output.outputs for output in node.outputs[1:]) and node.op == "InstanceNormalization":
        return None
    ids = flow.fresh(shape[0])
    for index in range(1, len(node.inputs)):
        flow.factor(node, index, ids, 1)
    axis = 1 if node.op == "InstanceNormalization" else rank - 1
    flow.give(node.outputs[0], ids.reshape([-1 if position == axis else 1 for position in range(rank)]))
    return None


def convolution(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Conv and ConvTranspose, plain, grouped or depthwise."""
    layer = flow.layer(node)
    if reason := _obstacle(node, layer):
        return reason
    assert layer is not None
    ids = flow.labels(node.inputs[0])
    groups, spatial = layer.groups, (1,) * (len(layer.shape) - 2)
    channels = flow.dims(node.inputs[0])[1]
    ids = flow.uniform(ids, (0, *range(2, ids.ndim))).reshape(-1)
    ins: Array = np.broadcast_to(ids, (channels,)).reshape(groups, -1)
    made = layer.shape[1] * groups if layer.kind == "ConvTranspose" else layer.shape[0]
    out: Array = flow.fresh(made).reshape(groups, -1)
    if layer.kind == "ConvTranspose":  # (in, out / groups, ...)
        flow.factor(node, 1, ins.reshape(-1, 1, *spatial), -1)
        flow.factor(node, 1, np.repeat(out, ins.shape[1], 0).reshape(channels, -1, *spatial), 1)
    else:  # (out, in / groups, ...)
        flow.factor(node, 1, np.repeat(ins, out.shape[1], 0).reshape(made, -1, *spatial), -1)
        flow.factor(node, 1, out.reshape(-1, 1, *spatial), 1)
    if layer.bias is not None:
        flow.factor(node, 2, out.reshape(-1), 1)
    flow.give(node.outputs[0], out.reshape(1, -1, *spatial))
    return None


def gemm(flow: ScaleFlow, node: gs.Node) -> str | None:
    """A·B + C with constant B."""
    layer = flow.layer(node)
    if reason := _obstacle(node, layer):
        return reason
    assert layer is not None
    if node.attrs.get("transA", 0):
        return "it transposes the channels"
    ids = flow.uniform(flow.labels(node.inputs[0]), (0,)).reshape(-1)
    out = flow.fresh(layer.shape[layer.out_axis])
    flow.factor(node, 1, np.expand_dims(ids, layer.out_axis), -1)
    flow.factor(node, 1, np.expand_dims(out, layer.in_axis), 1)
    flow.give(node.outputs[0], out[None])
    if len(node.inputs) > 2 and node.inputs[2].name:
        if layer.bias is None:
            flow.tie(out[None], lifted(flow.labels(node.inputs[2]), 2))
        elif reason := scale_constant(flow, node, 2, out[None], 1):
            flow.pin(out, reason)
    return None


def matmul(flow: ScaleFlow, node: gs.Node) -> str | None:
    """A·B over the last axis of A, where B is a weight, or computed as the values of attention are."""
    layer = flow.layer(node)
    if layer is None or not is_constant(node.inputs[1]):
        return _computed_product(flow, node)
    if reason := _obstacle(node, layer):
        return reason
    ids = flow.labels(node.inputs[0])
    rank = ids.ndim
    ids = flow.uniform(ids, range(rank - 1)).reshape(-1)
    out = flow.fresh(layer.shape[1])
    flow.factor(node, 1, ids[:, None], -1)
    flow.factor(node, 1, out[None], 1)
    flow.give(node.outputs[0], out.reshape((1,) * (rank - 1) + (-1,)))
    return None


def _computed_product(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Scales of B's columns pass where A has none, or of A's rows where B has none."""
    first, second = (flow.labels(tensor) for tensor in node.inputs)
    if first.any() and second.any():
        return "both operands have scales of their own"
    index, ids = (0, first) if first.any() else (1, second)
    if not ids.any():
        return None
    if min(first.ndim, second.ndim) < 2:
        return "MatMul of a vector"
    ids = flow.uniform(ids, (ids.ndim - 1 if index == 0 else ids.ndim - 2,))
    flow.give(node.outputs[0], lifted(ids, len(flow.dims(node.outputs[0]))))
    return None


def gather(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Entries along an axis, or rows of a constant table (embedding)."""
    data, indices = node.inputs[0], node.inputs[1]
    shape, index_shape = flow.dims(data), flow.dims(indices)
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    layer = flow.layer(node)
    if layer is not None and layer.weight_index == 0 and len(shape) == 2 and axis == 0:
        if layer.shared or layer.quantized:
            return None
        ids = flow.fresh(1, shape[1])
        flow.factor(node, 0, ids, 1)
    else:
        ids = flow.labels(data)
    if flow.is_free(indices):
        return "a scale would change its indices"
    if ids.shape[axis] > 1:
        chosen = value_of(indices)
        if chosen is None:
            return "it picks channels that a run decides"
        flow.give(node.outputs[0], np.take(ids, chosen, axis))
        return None
    flow.give(node.outputs[0], ids.reshape(ids.shape[:axis] + (1,) * len(index_shape) + ids.shape[axis + 1 :]))
    return None


def _obstacle(node: gs.Node, layer: WeightedLayer | None) -> str | None:
    """Why the node's weight cannot be rescaled."""
    if layer is None or layer.kind != node.op:
        return "its weight is computed, too small, or no matrix"
    if layer.shared:
        return "its weight is shared"
    if layer.quantized:
        return "its weight is quantized"
    if node.op != "Gemm" and len(node.inputs) > 2 and node.inputs[2].name and layer.bias is None:
        return "its bias is computed"
    return None
