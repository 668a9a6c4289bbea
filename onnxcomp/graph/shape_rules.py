"""What each operator that moves data without computing does to the channels it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.propagate import Array, Propagation, Rule

__all__ = ["SHAPE_RULES", "axes_of"]


def concat(flow: Propagation, node: gs.Node) -> None:
    """Side by side along the channels, or tied where it joins another axis."""
    shape = flow.shape(node.outputs[0])
    labelled = list(flow.labelled_inputs(node))
    if not labelled or shape is None:
        return
    axis = int(node.attrs["axis"]) % len(shape)
    axes = {labels.axis for _, labels in labelled}
    if len(axes) > 1:
        flow.pin_inputs(node, "its operands have their channels on different axes")
    elif axes == {axis}:
        _side_by_side(flow, node, axis)
    elif len(labelled) < len(node.inputs):
        flow.pin_inputs(node, "it appends a tensor whose channels cannot be followed")
    else:
        first = labelled[0][1]
        for _, labels in labelled[1:]:
            flow.tie(first.ids, labels.ids)
        flow.give(node.outputs[0], first.axis, first.ids)


def _side_by_side(flow: Propagation, node: gs.Node, axis: int) -> None:
    parts: list[Array] = []
    for tensor in node.inputs:
        labels, shape = flow.labels(tensor), flow.shape(tensor)
        if labels is not None:
            parts.append(labels.ids)
            continue
        if shape is None:
            flow.pin_inputs(node, f"the shape of {tensor.name} is not known")
            return
        parts.append(flow.fresh(shape[axis]))
        flow.pin(parts[-1], f"{tensor.name} has channels that cannot be followed")
    flow.give(node.outputs[0], axis, np.concatenate(parts))


def split(flow: Propagation, node: gs.Node) -> None:
    """Each output takes its stretch of the channels; the sizes written in the graph count them."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    if labels.axis != int(node.attrs.get("axis", 0)) % len(shape):
        for output in node.outputs:
            flow.give(output, labels.axis, labels.ids)
        return
    source: int | str = "split" if flow.opset < 13 else 1
    explicit = "split" in node.attrs or len(node.inputs) > 1
    if not explicit or (source == 1 and not is_constant(node.inputs[1])):
        flow.pin_inputs(node, "it splits the channels into parts whose sizes are not written in the graph")
        return
    start = 0
    for entry, output in enumerate(node.outputs):
        size = (flow.shape(output) or shape)[labels.axis]
        part = labels.ids[start : start + size]
        flow.extent(node, source, entry, part)
        flow.give(output, labels.axis, part)
        start += size


def slice_(flow: Propagation, node: gs.Node) -> None:
    """A stretch of the channels, or a stretch of another axis."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    names = ("starts", "ends", "axes", "steps")
    as_inputs = flow.opset >= 10
    found = [_integers(node, name, index + 1 if as_inputs else None) for index, name in enumerate(names)]
    starts, ends, axes, steps = found
    if axes is None and len(node.inputs) <= 3 and "axes" not in node.attrs and starts is not None:
        axes = list(range(len(starts)))
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    axes = [axis % len(shape) for axis in axes]
    if labels.axis not in axes:
        flow.give(node.outputs[0], labels.axis, labels.ids)
        return
    entry = axes.index(labels.axis)
    step = 1 if steps is None else steps[entry]
    if starts is None or ends is None or step != 1 or (steps is None and len(node.inputs) > 4):
        flow.pin_inputs(node, "it picks channels other than one constant stretch")
        return
    start, end, _ = slice(starts[entry], ends[entry]).indices(shape[labels.axis])
    if starts[entry] != 0:
        flow.extent(node, 1 if as_inputs else "starts", entry, labels.ids[:start])
    if ends[entry] < 2**31 - 1:
        flow.extent(node, 2 if as_inputs else "ends", entry, labels.ids[:end])
    flow.give(node.outputs[0], labels.axis, labels.ids[start:end])


def transpose(flow: Propagation, node: gs.Node) -> None:
    """The axis of the channels moves."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    order = list(node.attrs.get("perm") or reversed(range(len(shape))))
    flow.give(node.outputs[0], order.index(labels.axis), labels.ids)


def squeeze(flow: Propagation, node: gs.Node) -> None:
    """Axes of size 1 go; the channels are never among them, for one channel is not followed."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axes = axes_of(node, len(shape), every=False)
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    flow.give(node.outputs[0], labels.axis - sum(axis < labels.axis for axis in axes), labels.ids)


def unsqueeze(flow: Propagation, node: gs.Node) -> None:
    """Axes of size 1 come in."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or shape is None:
        return
    axes = axes_of(node, len(shape), every=False)
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    flow.give(node.outputs[0], kept[labels.axis], labels.ids)


def flatten(flow: Propagation, node: gs.Node) -> None:
    """Into two axes."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    first, last = (axis, len(shape)) if labels.axis >= axis else (0, axis)
    if first == 0 and labels.axis > 0:
        flow.pin_inputs(node, "it joins channels with the axis before them")
        return
    ids = merged(labels.ids, shape[first : labels.axis], shape[labels.axis + 1 : last])
    flow.give(node.outputs[0], 1 if labels.axis >= axis else 0, ids)


def merged(ids: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """The channels of an axis that joins theirs with those before and after it."""
    return np.tile(np.repeat(ids, math.prod(after)), math.prod(before))


def reshape(flow: Propagation, node: gs.Node) -> None:
    """The axis of the channels stays, or is joined with its neighbours; it is not to be split."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    found = _destination(old, labels.axis, new)
    if found is None:
        flow.pin_inputs(node, "it splits the axis of the channels, or joins it with the samples")
        return
    axis, first, last = found
    ids = merged(labels.ids, old[first : labels.axis], old[labels.axis + 1 : last])
    target = None if node.op != "Reshape" else _target(flow, node, axis, labels.axis)
    if target is None:
        flow.pin_inputs(node, "its target shape is computed in a way that fixes the channels")
        return
    where, source, entry = target
    if source is not None:
        flow.extent(where, source, entry, ids)
    flow.give(node.outputs[0], axis, ids)


def _destination(old: tuple[int, ...], axis: int, new: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The new axis, and the stretch [first, last) of old axes that it joins

    Axis 0 is taken for the samples, and not joined with the channels.
    ."""
    for position, size in enumerate(new):
        if size < old[axis]:
            continue
        lead = math.prod(new[:position])
        for first in range(axis, 0 if axis else -1, -1):
            if math.prod(old[:first]) != lead:
                continue
            for last in range(axis + 1, len(old) + 1):
                if math.prod(old[first:last]) == size:
                    return position, first, last
    return None


def _target(flow: Propagation, node: gs.Node, axis: int, old_axis: int) -> tuple[gs.Node, int | str | None, int] | None:
    """Node, input and entry of the constant that says how long the new axis is.

    The source is None where nothing needs to be said (-1: as long as it comes), the result None where the
    length comes from elsewhere.
    """
    if "shape" in node.attrs:
        return node, ("shape" if node.attrs["shape"][axis] > 0 else None), axis
    tensor = node.inputs[1]
    if (value := value_of(tensor)) is not None:
        if value[axis] == 0 and axis != old_axis:  # 0 copies the old length of the same axis
            return None
        return _entry(node, 1, value, axis)
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is None or producer.op != "Concat" or len(tensor.outputs) != 1:
        return None
    offset = 0
    for index, part in enumerate(producer.inputs):
        value, length = value_of(part), (flow.shape(part) or (1,))[0]
        if offset <= axis < offset + length:
            return None if value is None else _entry(producer, index, value, axis - offset)
        offset += length
    return None


def _entry(node: gs.Node, index: int, value: Array, entry: int) -> tuple[gs.Node, int | None, int]:
    return node, (index if value[entry] > 0 else None), entry


def resize(flow: Propagation, node: gs.Node) -> None:
    """Scales other axes than that of the channels."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    axes = [int(axis) % len(old) for axis in node.attrs.get("axes") or range(len(old))]
    if old[labels.axis] != new[labels.axis]:
        flow.pin_inputs(node, "it resizes the axis of the channels")
        return
    if node.op == "Resize" and len(node.inputs) > 3 and node.inputs[3].name and labels.axis in axes:
        if not is_constant(node.inputs[3]):
            flow.pin_inputs(node, "its sizes are computed")
            return
        flow.extent(node, 3, axes.index(labels.axis), labels.ids)
    flow.give(node.outputs[0], labels.axis, labels.ids)


def pad(flow: Propagation, node: gs.Node) -> None:
    """Pads other axes than that of the channels."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    if old[labels.axis] != new[labels.axis]:
        flow.pin_inputs(node, "it pads the axis of the channels")
        return
    flow.give(node.outputs[0], labels.axis, labels.ids)


def shape_of_channels(flow: Propagation, node: gs.Node) -> None:
    """Harmless as long as only other axes than that of the channels are read from the shape."""
    labels = flow.labels(node.inputs[0])
    if labels is None:
        return
    offset = int(node.attrs.get("start", 0))
    if offset < 0 or _may_read(flow, node.outputs[0], labels.axis - offset):
        flow.pin_inputs(node, "the number of channels is read from the shape")


def _may_read(flow: Propagation, shape: gs.Tensor, entry: int) -> bool:
    """Whether anyone takes that entry of the shape (or who knows which)."""
    return flow.is_output(shape) or any(_takes(flow, reader, entry) for reader in shape.outputs)


def _takes(flow: Propagation, reader: gs.Node, entry: int) -> bool:
    if reader.op in ("Cast", "Identity"):
        return _may_read(flow, reader.outputs[0], entry)
    if reader.op == "Gather" and (indices := value_of(reader.inputs[1])) is not None:
        return bool((indices < 0).any() or (indices == entry).any())
    if reader.op == "Slice" and len(reader.inputs) >= 3:
        starts, ends = value_of(reader.inputs[1]), value_of(reader.inputs[2])
        steps = [1] if len(reader.inputs) < 5 else value_of(reader.inputs[4])
        if starts is not None and ends is not None and steps is not None and starts[0] >= 0 and steps[0] == 1:
            return bool(starts[0] <= entry and (ends[0] < 0 or entry < ends[0]))
    return True


def axes_of(node: gs.Node, rank: int, every: bool = True) -> list[int] | None:
    """The axes that an operator names in an attribute or a constant input; None where they are computed.

    Where it names none these are all axes, or with ``every=False`` unknown.
    """
    axes = _integers(node, "axes", 1)
    if axes is None:
        absent = "axes" not in node.attrs and (len(node.inputs) < 2 or not node.inputs[1].name)
        return list(range(rank)) if every and absent else None
    return [axis % rank for axis in axes]


def _integers(node: gs.Node, attribute: str, index: int | None) -> list[int] | None:
    """Integers that are an attribute in one opset and a constant input in another."""
    if attribute in node.attrs:
        return [int(value) for value in node.attrs[attribute]]
    if index is None or len(node.inputs) <= index or (value := value_of(node.inputs[index])) is None:
        return None
    return [int(entry) for entry in value.reshape(-1)]


SHAPE_RULES: dict[str, Rule] = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Flatten": flatten,
    "Reshape": reshape,
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
    "Shape": shape_of_channels,
}
