"""What each operator that moves data along axes, without computing, does to the channels it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Array, Labels, Propagation, Rule
from onnxcomp.graph.reshape_rules import RESHAPE_RULES

__all__ = ["SHAPE_RULES", "axes_of", "rows_of_a_table"]

_ENDLESS = 2**31 - 1


def concat(flow: Propagation, node: gs.Node) -> None:
    """Side by side along the channels, or tied where it joins another axis."""
    shape = flow.shape(node.outputs[0])
    labelled = list(flow.labelled_inputs(node))
    if not labelled or shape is None:
        return
    axis = int(node.attrs["axis"]) % len(shape)
    axes = labelled[0][1].axes
    if any(labels.axes != axes for _, labels in labelled):
        flow.pin_inputs(node, "its operands have their channels on different axes")
    elif axis in axes:
        _side_by_side(flow, node, axis, labelled[0][1])
    else:
        _behind_each_other(flow, node, labelled[0][1])


def _side_by_side(flow: Propagation, node: gs.Node, axis: int, like: Labels) -> None:
    parts: list[Array] = []
    along = like.axes.index(axis)
    for tensor in node.inputs:
        labels, shape = flow.labels(tensor), flow.shape(tensor)
        if labels is not None:
            parts.append(labels.ids)
            continue
        if shape is None:
            flow.pin_inputs(node, f"the shape of {tensor.name} is not known")
            return
        sizes = [shape[at] for at in like.axes]
        parts.append(flow.fresh(math.prod(sizes)).reshape(sizes))
        flow.pin(parts[-1], f"{tensor.name} has channels that cannot be followed")
    ids = np.concatenate(parts, axis=along)
    flow.lattice(node, ids)
    flow.give(node.outputs[0], like.axes, ids)


def _behind_each_other(flow: Propagation, node: gs.Node, like: Labels) -> None:
    """Along an axis without channels: all operands have the same ones."""
    for index, tensor in enumerate(node.inputs):
        labels, shape = flow.labels(tensor), flow.shape(tensor)
        if labels is not None:
            flow.tie(like.ids, labels.ids)
        elif is_constant(tensor) and shape is not None:
            axes = [axis if shape[axis] > 1 else -1 for axis in like.axes]
            flow.place(node, index, axes, like.ids, "along")
        else:
            flow.pin_inputs(node, "it appends a tensor whose channels cannot be followed")
            return
    flow.give(node.outputs[0], like.axes, like.ids)


def split(flow: Propagation, node: gs.Node) -> None:
    """Each output takes its stretch of the channels; the sizes written in the graph count them."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    along = labels.at(axis)
    if along is None:
        for output in node.outputs:
            flow.give(output, labels.axes, labels.ids)
        return
    widths = [flow.shape(output) for output in node.outputs]
    if any(width is None for width in widths):
        flow.pin_inputs(node, "the shape of an output is not known")
        return
    ends = np.cumsum([width[axis] for width in widths if width is not None]).tolist()
    parts = np.split(labels.ids, ends[:-1], axis=along)
    source: int | str = "split" if flow.opset < 13 else 1
    written = "split" in node.attrs if source == "split" else len(node.inputs) > 1 and is_constant(node.inputs[1])
    computed = source == 1 and len(node.inputs) > 1 and bool(node.inputs[1].name) and not written
    if computed or (not written and any(part.shape != parts[0].shape for part in parts)):
        flow.hold(labels.ids, along, f"{layer_name(node)}: the sizes of its parts are not written in the graph")
    start = 0
    for entry, (output, part, end) in enumerate(zip(node.outputs, parts, ends, strict=True)):
        if written:
            flow.extent(node, source, entry, labels.ids, along, (start, end))
        elif not computed and part.shape == parts[0].shape:
            flow.tie(parts[0], part)  # equal parts stay equal
        flow.give(output, labels.axes, part)
        start = end


def slice_(flow: Propagation, node: gs.Node) -> None:
    """A stretch of the channels, or a stretch of another axis."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None and is_constant(node.inputs[0]):
        rows_of_a_table(flow, node, 0, _axes_sliced(node))
        return
    if labels is None or shape is None:
        return
    axes = _axes_sliced(node)
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    taken: dict[int, slice] = {}
    held: list[int] = []
    for entry, axis in enumerate(axis % len(shape) for axis in axes):
        if (along := labels.at(axis)) is None:
            continue
        stretch = _stretch(flow, node, entry, labels.ids, along)
        if stretch is None:
            held.append(axis)
        else:
            taken[axis] = stretch
    rest = flow.over(node, labels, held, "it picks channels that only a run knows")
    if rest.axes:
        flow.give(node.outputs[0], rest.axes, rest.ids[tuple(taken.get(axis, slice(None)) for axis in rest.axes)])


def _axes_sliced(node: gs.Node) -> list[int] | None:
    axes, starts = _integers(node, "axes", 3), _integers(node, "starts", 1)
    if axes is None and len(node.inputs) <= 3 and "axes" not in node.attrs and starts is not None:
        return list(range(len(starts)))
    return axes


def _stretch(flow: Propagation, node: gs.Node, entry: int, ids: Array, along: int) -> slice | None:
    """What a Slice takes along an axis of channels; None where it is not constant."""
    in_inputs = flow.opset >= 10
    starts, ends = (_integers(node, name, at if in_inputs else None) for name, at in (("starts", 1), ("ends", 2)))
    steps = _integers(node, "steps", 4) if in_inputs else None
    if starts is None or ends is None or (steps is None and len(node.inputs) > 4):
        return None
    size, step = ids.shape[along], 1 if steps is None else steps[entry]
    start, end, _ = taken = slice(starts[entry], ends[entry], step).indices(size)
    endless = ends[entry] >= _ENDLESS if step > 0 else ends[entry] <= -_ENDLESS
    count = len(range(*taken))
    if step == 1:
        if starts[entry] != 0:
            flow.extent(node, 1 if in_inputs else "starts", entry, ids, along, (0, start))
        if not endless:
            flow.extent(node, 2 if in_inputs else "ends", entry, ids, along, (0, end))
    elif step > 1 and size % step == 0 and 0 <= starts[entry] < step and count == size // step:
        runs = np.moveaxis(ids, along, -1)
        runs = runs.reshape(*runs.shape[:-1], count, step)
        flow.tie(runs[..., :1], runs)  # a run that goes leaves the others as they are
        if not endless:
            flow.extent(node, 2 if in_inputs else "ends", entry, ids, along, (0, end))
    elif not (step == -1 and count == size and endless and starts[entry] == -1):
        flow.hold(ids, along, f"{layer_name(node)}: it picks channels other than one constant stretch")
    return slice(start, None if step < 0 and end < 0 else end, step)


def gather(flow: Propagation, node: gs.Node) -> None:
    """Entries of a tensor along an axis, or rows of a constant table (embedding)."""
    index_shape, shape = flow.shape(node.inputs[1]), flow.shape(node.inputs[0])
    if index_shape is None or shape is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    labels, indices = flow.labels(node.inputs[0]), value_of(node.inputs[1])
    if flow.labels(node.inputs[1]) is not None:
        flow.pin_inputs(node, "its indices are computed from channels")
    elif labels is None:
        if is_constant(node.inputs[0]) and axis == 0:
            rows_of_a_table(flow, node, 0, [axis])
    elif (along := labels.at(axis)) is None or indices is None or indices.ndim > 1:
        rest = flow.over(node, labels, [axis], "it picks channels")
        moved = [at + (len(index_shape) - 1 if at > axis else 0) for at in rest.axes]
        if moved:
            flow.give(node.outputs[0], moved, rest.ids)
    else:
        flow.pick(node, labels.ids, along)
        picked = labels.ids.take(indices, axis=along)
        moved = [at - (1 if at > axis and not indices.ndim else 0) for at in labels.axes]
        if not indices.ndim:
            del moved[along]
        if moved:
            flow.give(node.outputs[0], moved, picked)


def rows_of_a_table(flow: Propagation, node: gs.Node, index: int, axes: Sequence[int] | None) -> None:
    """The node takes rows of a constant matrix, along another axis than the last: that one has channels."""
    layer, shape = flow.layer(node), flow.shape(node.inputs[index])
    result = flow.shape(node.outputs[0])
    if layer is not None and (layer.weight_index != index or layer.shared or layer.quantized):
        return
    if not shape or result is None or axes is None or len(shape) - 1 in [axis % len(shape) for axis in axes]:
        return
    if result[-1] == shape[-1]:
        ids = flow.fresh(shape[-1])
        flow.place(node, index, len(shape) - 1, ids, "out")
        flow.give(node.outputs[0], len(result) - 1, ids)


def transpose(flow: Propagation, node: gs.Node) -> None:
    """The axes of the channels move."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    order = list(node.attrs.get("perm") or reversed(range(len(shape))))
    flow.give(node.outputs[0], [order.index(axis) for axis in labels.axes], labels.ids)


def squeeze(flow: Propagation, node: gs.Node) -> None:
    """Axes of size 1 go; the channels are never among them, for one channel is not followed."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axes = axes_of(node, len(shape), every=False)
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    moved = [own - sum(axis < own for axis in axes) for own in labels.axes]
    flow.give(node.outputs[0], moved, labels.ids)


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
    flow.give(node.outputs[0], [kept[axis] for axis in labels.axes], labels.ids)


def tile(flow: Propagation, node: gs.Node) -> None:
    """Repeats the whole tensor along its axes."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None:
        return
    repeats = value_of(node.inputs[1])
    result = flow.shape(node.outputs[0])
    if repeats is None and shape is not None and result is not None:  # as they were in the run
        repeats = np.array(result) // np.array(shape)
        if any(repeats[axis] > 1 for axis in labels.axes):
            repeats = None
    if repeats is None or len(node.inputs) > 2:
        flow.pin_inputs(node, "how often it repeats channels is computed")
        return
    times = [int(repeats[axis]) for axis in labels.axes]
    ids = labels.ids if set(times) == {1} else np.tile(labels.ids, times)
    flow.give(node.outputs[0], labels.axes, ids)


def depth_to_space(flow: Propagation, node: gs.Node) -> None:
    """The channels whose entries become a square of one channel are tied."""
    labels = flow.labels(node.inputs[0])
    if labels is None or (ids := flow.single(node, labels, 1, "it moves channels into space")) is None:
        return
    square = int(node.attrs["blocksize"]) ** 2
    first = node.attrs.get("mode", "DCR") == "DCR"
    squares = ids.reshape(square, -1) if first else ids.reshape(-1, square).T
    flow.tie(squares[:1], squares)
    flow.give(node.outputs[0], 1, squares[0])


def space_to_depth(flow: Propagation, node: gs.Node) -> None:
    """Every channel becomes as many as a square has entries."""
    labels = flow.labels(node.inputs[0])
    if labels is not None and (ids := flow.single(node, labels, 1, "it moves space into channels")) is not None:
        flow.give(node.outputs[0], 1, np.tile(ids, int(node.attrs["blocksize"]) ** 2))


def axes_of(node: gs.Node, rank: int, every: bool = True) -> list[int] | None:
    """The axes that an operator names in an attribute or a constant input; None where they are computed.

    Where it names none these are all axes, or with ``every=False`` unknown.
    """
    axes = _integers(node, "axes", 1)
    if not axes and node.attrs.get("noop_with_empty_axes", 0) and (axes is not None or _is_absent(node)):
        return []
    if axes is None:
        return list(range(rank)) if every and _is_absent(node) else None
    return [axis % rank for axis in axes]


def _is_absent(node: gs.Node) -> bool:
    """Whether an operator names no axes at all."""
    return "axes" not in node.attrs and (len(node.inputs) < 2 or not node.inputs[1].name)


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
    "Gather": gather,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    **RESHAPE_RULES,
}
