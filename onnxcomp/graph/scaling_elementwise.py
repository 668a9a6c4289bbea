"""What operators that work element by element do to the scales of the channels they read."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.scaling import FIXED, Array, Cap, ScaleFlow, fits, is_shared, lifted, scale_constant

__all__ = ["cast", "clip", "nothing", "product", "same", "sum_like", "where"]


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


def sum_like(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Add, Sub, Max, Min, Mean: operands have the same scale, constants take it."""
    moving = [tensor for tensor in node.inputs if not is_constant(tensor)]
    if not any(flow.is_free(tensor) for tensor in moving):
        return None
    rank = max(len(flow.dims(tensor)) for tensor in node.inputs)
    ids = np.full((1,) * rank, FIXED)
    for tensor in moving:
        ids = _joined(ids, lifted(flow.labels(tensor), rank)) if ids.any() else lifted(flow.labels(tensor), rank)
    for tensor in moving:
        flow.tie(ids, lifted(flow.labels(tensor), rank))
    for index, tensor in enumerate(node.inputs):
        if is_constant(tensor) and (reason := scale_constant(flow, node, index, ids, 1)):
            return reason
    flow.give(node.outputs[0], ids)
    return None


def _joined(first: Array, second: Array) -> Array:
    a, b = np.broadcast_arrays(first, second)
    return np.where(a != FIXED, a, b)


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
    value = max(free, key=lambda tensor: math.prod(flow.dims(tensor)))
    for tensor in node.inputs:
        if tensor is not value and flow.is_free(tensor):
            flow.pin(flow.labels(tensor), f"{layer_name(node)}: it passes on the scale of the other operand")
    rank = len(flow.dims(node.outputs[0]))
    flow.give(node.outputs[0], lifted(flow.labels(value), rank))
    return None


def _constant_product(flow: ScaleFlow, node: gs.Node, index: int) -> str | None:
    """The product with a constant: new scales where it has entries of its own, else the old ones."""
    rank = len(flow.dims(node.outputs[0]))
    ids = lifted(flow.labels(node.inputs[1 - index]), rank)
    shape = flow.dims(node.inputs[index])
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    if len(wide) != 1 or len(shape) > rank or not fits(ids, shape) or is_shared(node.inputs[index]):
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


def where(flow: ScaleFlow, node: gs.Node) -> str | None:
    """One of two operands."""
    if any(is_constant(tensor) for tensor in node.inputs[1:]):
        return "it may put a constant in the place of a channel"
    flow.pin(flow.labels(node.inputs[0]), "it is a condition")
    rank = len(flow.dims(node.outputs[0]))
    first, second = (lifted(flow.labels(tensor), rank) for tensor in node.inputs[1:])
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
