"""What each operator does to the scales of the channels it reads: one rule for each kind of operator."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.scaling import FIXED, Array, Cap, Rule, ScaleFlow
from onnxcomp.graph.shape_rules import axes_of

__all__ = ["SCALING_RULES"]


def same(flow: ScaleFlow, node: gs.Node) -> str | None:
    """f(s·x) = s·f(x), element by element; other operands keep their scale."""
    flow.give(node.outputs[0], flow.labels(node.inputs[0]))
    for tensor in node.inputs[1:]:
        flow.pin(flow.labels(tensor), f"it is an operand of {node.op}")
    return None


def nothing(flow: ScaleFlow, node: gs.Node) -> str | None:  # noqa: ARG001
    """Reads no values."""
    return None


def cast(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Between floating-point types."""
    if int(node.attrs.get("to", 0)) not in (1, 11):
        return "it casts to a type of less precision"
    return same(flow, node)


# -- elementwise ---------------------------------------------------------------------------------------------


def sum_like(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Add, Sub, Max, Min, Mean: operands have the same scale, constants take it."""
    moving = [tensor for tensor in node.inputs if not is_constant(tensor)]
    if not any(flow.is_free(tensor) for tensor in moving):
        return None
    rank = max(len(flow.shape(tensor) or ()) for tensor in node.inputs)
    ids = np.full((1,) * rank, FIXED)
    for tensor in moving:
        ids = _joined(flow, ids, _lifted(flow.labels(tensor), rank)) if ids.any() else _lifted(flow.labels(tensor), rank)
    for tensor in moving:
        flow.tie(ids, _lifted(flow.labels(tensor), rank))
    for index, tensor in enumerate(node.inputs):
        if is_constant(tensor) and (reason := _scale_constant(flow, node, index, ids, 1)):
            return reason
    flow.give(node.outputs[0], ids)
    return None


def _joined(flow: ScaleFlow, first: Array, second: Array) -> Array:
    a, b = np.broadcast_arrays(first, second)
    return np.where(a != FIXED, a, b)


def _lifted(ids: Array, rank: int) -> Array:
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def _scale_constant(flow: ScaleFlow, node: gs.Node, index: int, ids: Array, power: int) -> str | None:
    """The constant takes the scales of ``ids``, whose rank is at least its own."""
    value = value_of(node.inputs[index])
    if value is None:
        return "the value of its constant is not known"
    if not value.any():
        return None
    if not _fits(ids, value.shape):
        return f"its constant {node.inputs[index].name} has one value for all channels"
    flow.factor(node, index, ids.reshape(ids.shape[ids.ndim - value.ndim :]), power)
    return None


def _fits(ids: Array, shape: tuple[int, ...]) -> bool:
    """Whether a constant of that shape has an entry of its own for each of ids."""
    lead = ids.ndim - len(shape)
    own = (1,) * lead + tuple(shape)
    return lead >= 0 and all(size == 1 or size == dim for size, dim in zip(ids.shape, own, strict=True))


def product(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Mul and Div: by a constant of one entry for each channel, the scales on both sides are independent.

    Of two computed operands one passes its scale on, the other keeps its own (the gate of squeeze and excite).
    """
    if len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]:
        return "it squares"
    constants = [index for index, tensor in enumerate(node.inputs) if is_constant(tensor)]
    if constants == [0] and node.op == "Div":
        return "it divides by the channels"
    if len(constants) == 1:
        return _constant_product(flow, node, constants[0])
    candidates = node.inputs[:1] if node.op == "Div" else node.inputs
    free = [tensor for tensor in candidates if flow.is_free(tensor)]
    if not free:
        return "it divides by the channels" if node.op == "Div" else None
    value = max(free, key=lambda tensor: math.prod(flow.shape(tensor) or ()))
    for tensor in node.inputs:
        if tensor is not value and flow.is_free(tensor):
            flow.pin(flow.labels(tensor), f"{node.name}: the other operand of {node.op} passes its scale on")
    rank = len(flow.shape(node.outputs[0]) or ())
    flow.give(node.outputs[0], _lifted(flow.labels(value), rank))
    return None


def _constant_product(flow: ScaleFlow, node: gs.Node, index: int) -> str | None:
    """The product with a constant: new scales where it has entries of its own, else the old ones."""
    rank = len(flow.shape(node.outputs[0]) or ())
    ids = _lifted(flow.labels(node.inputs[1 - index]), rank)
    shape = flow.shape(node.inputs[index]) or ()
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    if len(wide) != 1 or len(shape) > rank or not _fits(ids, shape) or _shared(node.inputs[index]):
        flow.give(node.outputs[0], ids)
        return None
    own = [1] * rank
    own[rank - len(shape) + wide[0]] = shape[wide[0]]
    out = flow.fresh(*own)
    sign = 1 if node.op == "Mul" else -1
    flow.factor(node, index, ids.reshape(ids.shape[rank - len(shape) :]), -sign)
    flow.factor(node, index, out.reshape(out.shape[rank - len(shape) :]), sign)
    flow.give(node.outputs[0], out)
    return None


def _shared(tensor: gs.Tensor) -> bool:
    return len(tensor.outputs) > 1


def where(flow: ScaleFlow, node: gs.Node) -> str | None:
    """One of two operands."""
    if any(is_constant(tensor) for tensor in node.inputs[1:]):
        return "it may put a constant in the place of a channel"
    flow.pin(flow.labels(node.inputs[0]), "it is a condition")
    rank = len(flow.shape(node.outputs[0]) or ())
    first, second = (_lifted(flow.labels(tensor), rank) for tensor in node.inputs[1:])
    flow.tie(first, second)
    flow.give(node.outputs[0], np.broadcast_arrays(first, second)[0])
    return None


def clip(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Homogeneous where its limits are zero or infinite."""
    limits = _clip_limits(node)
    if limits is None:
        return "its limits are computed"
    low, high = limits
    ids = flow.labels(node.inputs[0])
    if not (low in (0.0, -math.inf) and high in (0.0, math.inf)):
        if not flow.allows_caps or not low <= 0 <= high:
            return f"Clip at {high if math.isfinite(high) and high else low:g} does not pass a scale on"
        flow.caps.append(Cap(node.outputs[0], ids, low, high))
    flow.give(node.outputs[0], ids)
    return None


def _clip_limits(node: gs.Node) -> tuple[float, float] | None:
    limits = [float(node.attrs.get("min", -math.inf)), float(node.attrs.get("max", math.inf))]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            value = value_of(tensor)
            if value is None or value.size != 1:
                return None
            limits[index] = float(value.reshape(()))
    low, high = (math.copysign(math.inf, limit) if abs(limit) > 1e37 else limit for limit in limits)
    return low, high


# -- normalization and pooling -------------------------------------------------------------------------------


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
    ids = flow.uniform(ids, axes)
    if not node.attrs.get("keepdims", 1):
        ids = ids.reshape([size for axis, size in enumerate(ids.shape) if axis not in axes])
    flow.give(node.outputs[0], ids)
    return None


def batch_norm(flow: ScaleFlow, node: gs.Node) -> str | None:
    """γ(x - μ)/σ + β with constants: independent scales on both sides."""
    if not all(is_constant(tensor) for tensor in node.inputs[1:]) or any(map(_shared, node.inputs[1:])):
        return "its parameters are shared, or not constant"
    ids = flow.labels(node.inputs[0])
    ids = flow.uniform(ids, range(2, ids.ndim))
    before, after = ids.reshape(-1), flow.fresh((flow.shape(node.inputs[1]) or (1,))[0])
    flow.factor(node, 1, before, -1)
    flow.factor(node, 3, before, 1)
    flow.factor(node, 1, after, 1)
    flow.factor(node, 2, after, 1)
    flow.give(node.outputs[0], after.reshape(1, -1, *(1,) * (ids.ndim - 2)))
    return None


def normalization(flow: ScaleFlow, node: gs.Node) -> str | None:
    """InstanceNormalization, LayerNormalization …: a new scale behind γ and β."""
    flow.pin_inputs(node, f"{node.op} does not pass a scale on")
    rank = len(flow.shape(node.outputs[0]) or ())
    shape = flow.shape(node.inputs[1]) or ()
    parameters = node.inputs[1:]
    if not all(is_constant(tensor) for tensor in parameters) or any(map(_shared, parameters)) or len(shape) != 1:
        return None
    if any(output.outputs for output in node.outputs[1:]) and node.op == "InstanceNormalization":
        return None
    ids = flow.fresh(shape[0])
    for index in range(1, len(node.inputs)):
        flow.factor(node, index, ids, 1)
    axis = 1 if node.op == "InstanceNormalization" else rank - 1
    flow.give(node.outputs[0], ids.reshape([-1 if position == axis else 1 for position in range(rank)]))
    return None


# -- layers --------------------------------------------------------------------------------------------------


def convolution(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Conv and ConvTranspose, plain, grouped or depthwise."""
    layer = flow.layer(node)
    if reason := _obstacle(node, layer):
        return reason
    assert layer is not None
    ids = flow.labels(node.inputs[0])
    ins = flow.uniform(ids, (0, *range(2, ids.ndim))).reshape(-1)
    groups, spatial = layer.groups, (1,) * (len(layer.shape) - 2)
    channels = (flow.shape(node.inputs[0]) or ())[1]
    ins = np.broadcast_to(ins, (channels,)).reshape(groups, -1)
    made = layer.shape[1] * groups if layer.kind == "ConvTranspose" else layer.shape[0]
    out = flow.fresh(made).reshape(groups, -1)
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
            addend = flow.labels(node.inputs[2])
            flow.tie(out[None], _lifted(addend, 2))
            flow.pin(addend, "it is the addend of a Gemm") if not addend.any() else None
        elif reason := _scale_constant(flow, node, 2, out[None], 1):
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
    if ids.ndim < 2:
        return "MatMul of a vector"
    ids = flow.uniform(ids, (ids.ndim - 1 if index == 0 else ids.ndim - 2,))
    flow.give(node.outputs[0], _lifted(ids, len(flow.shape(node.outputs[0]) or ())))
    return None


def gather(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Entries along an axis, or rows of a constant table (embedding)."""
    data, indices = node.inputs[0], node.inputs[1]
    shape, index_shape = flow.shape(data) or (), flow.shape(indices) or ()
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
        return "its weight is computed, or too small"
    if layer.shared:
        return "its weight is shared"
    if layer.quantized:
        return "its weight is quantized"
    if node.op != "Gemm" and len(node.inputs) > 2 and node.inputs[2].name and layer.bias is None:
        return "its bias is computed"
    return None


# -- moving values -------------------------------------------------------------------------------------------


def transpose(flow: ScaleFlow, node: gs.Node) -> str | None:
    ids = flow.labels(node.inputs[0])
    order = list(node.attrs.get("perm") or reversed(range(ids.ndim)))
    flow.give(node.outputs[0], ids.transpose(order))
    return None


def reshape(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    old, new = flow.shape(node.inputs[0]) or (), flow.shape(node.outputs[0]) or ()
    if 0 in old:
        return "it is empty"
    flow.give(node.outputs[0], reshaped(flow.labels(node.inputs[0]), old, new))
    return None


def reshaped(ids: Array, old: tuple[int, ...], new: tuple[int, ...]) -> Array:
    """Labels of a tensor whose shape changes from old to new, axes of one scale 1 long.

    Both shapes are cut into the shortest stretches that hold as many elements; stretches without labels stay 1 long.
    """
    before: list[int] = []
    after: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        start, begin = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (left := math.prod(old[start:i])) != (right := math.prod(new[begin:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        varies = any(size > 1 for size in ids.shape[start:i])
        before += old[start:i] if varies else [1] * (i - start)
        after += new[begin:j] if varies else [1] * (j - begin)
    return _compressed(np.broadcast_to(ids, before).reshape(after))


def _compressed(ids: Array) -> Array:
    for axis in range(ids.ndim):
        first = np.take(ids, [0], axis)
        if ids.shape[axis] > 1 and (ids == first).all():
            ids = first
    return ids


def concat(flow: ScaleFlow, node: gs.Node) -> str | None:
    rank = len(flow.shape(node.outputs[0]) or ())
    axis = int(node.attrs["axis"]) % rank
    parts = [flow.labels(tensor) for tensor in node.inputs]
    if not any(part.any() for part in parts):
        return None
    others = np.max([[1 if position == axis else size for position, size in enumerate(part.shape)] for part in parts], 0)
    if all(part.shape[axis] == 1 for part in parts) and not _along_channels(flow, node, axis, parts):
        parts = [np.broadcast_to(part, others) for part in parts]
        for part in parts[1:]:
            flow.tie(parts[0], part)
        flow.give(node.outputs[0], parts[0])
        return None
    wide = []
    for tensor, part in zip(node.inputs, parts, strict=True):
        others[axis] = (flow.shape(tensor) or ())[axis]
        wide.append(np.broadcast_to(part, others))
    flow.give(node.outputs[0], np.concatenate(wide, axis))
    return None


def _along_channels(flow: ScaleFlow, node: gs.Node, axis: int, parts: list[Array]) -> bool:
    """Whether single channels are put side by side: no operand has scales along another axis."""
    return all(part.size == 1 for part in parts) and all((flow.shape(t) or ())[axis] == 1 for t in node.inputs)


def split(flow: ScaleFlow, node: gs.Node) -> str | None:
    ids, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0]) or ()
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    start = 0
    for output in node.outputs:
        size = (flow.shape(output) or shape)[axis]
        part = ids if ids.shape[axis] == 1 else np.take(ids, range(start, start + size), axis)
        flow.give(output, part)
        start += size
    return None


def slice_(flow: ScaleFlow, node: gs.Node) -> str | None:
    ids, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0]) or ()
    if flow.opset < 10:
        starts, ends, axes, steps = (node.attrs.get(name) for name in ("starts", "ends", "axes", "steps"))
    else:
        values = [value_of(tensor) if tensor.name else None for tensor in node.inputs[1:]]
        starts, ends, axes, steps = (*values, *(None,) * (4 - len(values)))
        if len(node.inputs) > 3 and node.inputs[3].name and axes is None:
            return "its axes are not constant"
        if len(node.inputs) > 4 and node.inputs[4].name and steps is None:
            return "its steps are not constant"
    count = len(starts) if starts is not None else (flow.shape(node.inputs[1]) or (0,))[0]
    named = [int(axis) % len(shape) for axis in (range(count) if axes is None else axes)]
    for entry, axis in enumerate(named):
        if ids.shape[axis] == 1:
            continue
        if starts is None or ends is None:
            return "it picks channels that a run decides"
        step = 1 if steps is None else int(steps[entry])
        chosen = range(shape[axis])[slice(int(starts[entry]), int(ends[entry]), step)]
        ids = np.take(ids, chosen, axis)
    flow.give(node.outputs[0], ids)
    return None


def other_axes(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Pad, Resize, Tile, Expand: nothing happens along the axes of the channels, or zeros come in."""
    old, new = flow.shape(node.inputs[0]) or (), flow.shape(node.outputs[0]) or ()
    ids = _lifted(flow.labels(node.inputs[0]), len(new))
    old = (1,) * (len(new) - len(old)) + old
    if any(size > 1 and before != after for size, before, after in zip(ids.shape, old, new, strict=True)):
        return f"{node.op} along the channels"
    if node.op == "Pad" and _text(node, "mode", "constant") == "constant":
        fill = value_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else node.attrs.get("value", 0.0)
        if fill is None or np.any(fill):
            return "it pads with other values than zeros"
    if _text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return "it fills with a constant"
    flow.give(node.outputs[0], ids)
    return None


def _text(node: gs.Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


SCALING_RULES: dict[str, Rule] = {
    **_table("Shape Size Constant ConstantOfShape RandomNormalLike RandomUniformLike EyeLike", nothing),
    **_table("Abs Dropout Identity LeakyRelu Neg PRelu Relu", same),
    "Cast": cast,
    **_table("Add Sub Sum Mean Max Min", sum_like),
    **_table("Mul Div", product),
    "Where": where,
    "Clip": clip,
    **_table("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", pooling),
    **_table("ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum", reduction),
    "BatchNormalization": batch_norm,
    **_table("InstanceNormalization LayerNormalization RMSNormalization", normalization),
    **_table("Conv ConvTranspose", convolution),
    "Gemm": gemm,
    "MatMul": matmul,
    "Gather": gather,
    "Transpose": transpose,
    **_table("Reshape Flatten Squeeze Unsqueeze", reshape),
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    **_table("Pad Resize Upsample Tile Expand", other_axes),
}
