"""What operators that move values do to the scales of the channels they read."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.scaling import Array, ScaleFlow, lifted

__all__ = ["concat", "other_axes", "reshape", "reshaped", "slice_", "split", "transpose"]


def transpose(flow: ScaleFlow, node: gs.Node) -> str | None:
    """The axes change places."""
    ids = flow.labels(node.inputs[0])
    order = list(node.attrs.get("perm") or reversed(range(ids.ndim)))
    flow.give(node.outputs[0], ids.transpose(order))
    return None


def reshape(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    old, new = flow.dims(node.inputs[0]), flow.dims(node.outputs[0])
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
    """Operands side by side; along an axis without scales, their scales are tied."""
    rank = len(flow.dims(node.outputs[0]))
    axis = int(node.attrs["axis"]) % rank
    parts = [flow.labels(tensor) for tensor in node.inputs]
    if not any(part.any() for part in parts):
        return None
    others = np.max(
        [[1 if position == axis else size for position, size in enumerate(part.shape)] for part in parts], 0
    )
    if all(part.shape[axis] == 1 for part in parts) and not _along_channels(flow, node, axis, parts):
        parts = [np.broadcast_to(part, others) for part in parts]
        for part in parts[1:]:
            flow.tie(parts[0], part)
        flow.give(node.outputs[0], parts[0])
        return None
    wide = []
    for tensor, part in zip(node.inputs, parts, strict=True):
        others[axis] = flow.dims(tensor)[axis]
        wide.append(np.broadcast_to(part, others))
    flow.give(node.outputs[0], np.concatenate(wide, axis))
    return None


def _along_channels(flow: ScaleFlow, node: gs.Node, axis: int, parts: list[Array]) -> bool:
    """Whether single channels are put side by side: no operand has scales along another axis."""
    return all(part.size == 1 for part in parts) and all(flow.dims(t)[axis] == 1 for t in node.inputs)


def split(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Parts along an axis."""
    ids, shape = flow.labels(node.inputs[0]), flow.dims(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    start = 0
    for output in node.outputs:
        size = (flow.shape(output) or shape)[axis]
        part = ids if ids.shape[axis] == 1 else np.take(ids, range(start, start + size), axis)
        flow.give(output, part)
        start += size
    return None


def slice_(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Entries from start to end along some axes."""
    ids, shape = flow.labels(node.inputs[0]), flow.dims(node.inputs[0])
    starts, ends, axes, steps = (_slice_operand(flow, node, index) for index in range(4))
    given = len(node.inputs) - 1 if flow.opset >= 10 else 2
    if any(given > index and node.inputs[index + 1].name and known is None for index, known in ((2, axes), (3, steps))):
        return "its axes or steps are not constant"
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


def _slice_operand(flow: ScaleFlow, node: gs.Node, index: int) -> Array | None:
    """Starts, ends, axes or steps, where they are constant."""
    if flow.opset < 10:
        found = node.attrs.get(("starts", "ends", "axes", "steps")[index])
        return None if found is None else np.asarray(found)
    operands = node.inputs[1:]
    return value_of(operands[index]) if index < len(operands) and operands[index].name else None


def other_axes(flow: ScaleFlow, node: gs.Node) -> str | None:
    """Pad, Resize, Tile, Expand: nothing happens along the axes of the channels, or zeros come in."""
    old, new = flow.dims(node.inputs[0]), flow.dims(node.outputs[0])
    ids = lifted(flow.labels(node.inputs[0]), len(new))
    old = (1,) * (len(new) - len(old)) + old
    if any(size > 1 and before != after for size, before, after in zip(ids.shape, old, new, strict=True)):
        return f"{node.op} along the channels"
    if node.op == "Pad":
        pads = node.attrs.get("pads", node.attrs.get("paddings")) if len(node.inputs) < 2 else value_of(node.inputs[1])
        if pads is None or np.min(pads) < 0:  # what is padded on one side and cut on the other keeps its shape
            return "its pads are computed, or negative"
    if node.op == "Pad" and _text(node, "mode", "constant") == "constant":
        fill = (
            value_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else node.attrs.get("value", 0.0)
        )
        if fill is None or np.any(fill):
            return "it pads with other values than zeros"
    if _text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return "it fills with a constant"
    flow.give(node.outputs[0], ids)
    return None


def _text(node: gs.Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)
