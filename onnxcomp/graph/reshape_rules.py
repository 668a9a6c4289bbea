"""What the operators that regroup axes do to the channels they read: Reshape, Flatten, Expand, Shape and Resize."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.dims import Inferred, Size, Written, bind, is_read, shown_axes, sizes
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Labels, Propagation, Rule

__all__ = ["RESHAPE_RULES", "regrouped"]

Blocks = Sequence[tuple[range, range]]


def reshape(flow: Propagation, node: gs.Node) -> None:
    """Axes are joined, channels along them put one after the other, and split into lattices."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if old is None or new is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    result = None if labels is None else regrouped(labels, old, new)
    if labels is not None and result is None:
        flow.pin_inputs(node, "it makes other axes of a tensor without entries")
    bind(flow, node, sizes(flow, node, 1, len(new), copies=True), result)
    _give(flow, node, labels, result)


def flatten(flow: Propagation, node: gs.Node) -> None:
    """Into two axes."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    result = regrouped(labels, old, new)
    if result is None:
        flow.pin_inputs(node, "it makes other axes of a tensor without entries")
    _give(flow, node, labels, result)


def _give(flow: Propagation, node: gs.Node, labels: Labels | None, result: Labels | None) -> None:
    if labels is None or result is None:
        return
    if result.ids is not labels.ids:
        flow.lattice(node, result.ids)
    flow.give(node.outputs[0], result.axes, result.ids)


def regrouped(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels | None:
    """The channels after a Reshape; None where a size is zero.

    Axes along which the channels do not differ have none: splitting what a Flatten joined gives back the channels
    of the one axis.
    """
    if 0 in old or 0 in new:
        return None
    blocks = [(before, after) for before, after in _blocks(old, new) if any(axis in before for axis in labels.axes)]
    if (same := _renamed(labels, blocks, old, new)) is not None:
        return same
    wide = [1] * len(old)
    narrow = [1] * len(new)
    for before, after in blocks:
        for axis in before:
            wide[axis] = old[axis]
        for axis in after:
            narrow[axis] = new[axis]
    spread = [old[axis] if axis in labels.axes else 1 for axis in range(len(old))]
    ids = np.broadcast_to(labels.ids.reshape(spread), wide).reshape(narrow)
    axes = [axis for axis, size in enumerate(narrow) if size > 1 and (ids != ids.take([0], axis)).any()]
    if not axes:  # a single channel, many times
        axes = [next(axis for axis, size in enumerate(narrow) if size > 1)]
    return Labels(tuple(axes), ids[tuple(slice(None) if axis in axes else 0 for axis in range(len(new)))])


def _renamed(labels: Labels, blocks: Blocks, old: Sequence[int], new: Sequence[int]) -> Labels | None:
    """The same channels on other axes, where none with channels is joined or split."""
    axes = []
    for before, after in blocks:
        first, second = [axis for axis in before if old[axis] > 1], [axis for axis in after if new[axis] > 1]
        if len(first) != 1 or len(second) != 1:
            return None
        axes.append(second[0])
    return Labels(tuple(axes), labels.ids)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Stretches of old and new axes that hold the same entries, as short as can be."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        before, after = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = i + 1, j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        yield range(first, min(i, len(old))), range(second, min(j, len(new)))


def expand(flow: Propagation, node: gs.Node) -> None:
    """Repeats axes of size 1, where no channels are."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if new is None or old is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    shift = len(new) - len(old)
    if is_constant(node.inputs[0]) and old and old[-1] == new[-1] > 1:  # a token for every sample, say
        labels = Labels((len(old) - 1,), flow.fresh(old[-1]))
        flow.place(node, 0, len(old) - 1, labels.ids, "out")
    elif is_constant(node.inputs[0]) and new and becomes_state(node.outputs[0]):
        labels = Labels((len(old) - 1,), flow.fresh(new[-1]))
    result = None if labels is None else Labels(tuple(axis + shift for axis in labels.axes), labels.ids)
    found = sizes(flow, node, 1, (flow.shape(node.inputs[1]) or (len(new),))[0])
    kept: list[Size] = [Inferred()] * (len(new) - len(found))  # axes that the target does not name
    bind(
        flow,
        node,
        kept + [Inferred() if isinstance(size, Written) and size.value == 1 else size for size in found],
        result,
    )
    if result is not None:
        flow.give(node.outputs[0], result.axes, result.ids)


def resize(flow: Propagation, node: gs.Node) -> None:
    """Scales other axes than those of the channels."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if old is None or new is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    result = labels
    if labels is not None:
        result = _unchanged(flow, node, labels, old, new, "it resizes an axis of channels")
    if node.op == "Resize" and len(node.inputs) > 3 and node.inputs[3].name:
        axes = [int(axis) % len(old) for axis in node.attrs.get("axes") or range(len(old))]
        named = dict(zip(axes, sizes(flow, node, 3, len(axes)), strict=True))
        found: list[Size] = [named.get(axis, Inferred()) for axis in range(len(new))]
        bind(flow, node, found, result)
    if result is not None and result.axes:
        flow.give(node.outputs[0], result.axes, result.ids)


def pad(flow: Propagation, node: gs.Node) -> None:
    """Pads other axes than those of the channels."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    result = _unchanged(flow, node, labels, old, new, "it pads an axis of channels")
    if result.axes:
        flow.give(node.outputs[0], result.axes, result.ids)


def _unchanged(
    flow: Propagation, node: gs.Node, labels: Labels, old: Sequence[int], new: Sequence[int], reason: str
) -> Labels:
    """The channels along axes that keep their sizes; along the others all must stay."""
    return flow.over(node, labels, [axis for axis in labels.axes if old[axis] != new[axis]], reason)


def shape_of_channels(flow: Propagation, node: gs.Node) -> None:
    """Harmless as long as what is read from the shape are sizes of other axes, or of others with these channels."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None:
        return
    rank = len(shape or ())
    axes = shown_axes(node, rank)
    for at, axis in enumerate(labels.axes):
        if shape is None or (axis in axes and is_read(flow, node.outputs[0], axes.index(axis))):
            reason = "the number of channels is read from the shape"
            flow.hold(labels.ids, at, f"{layer_name(node)}: {reason}")


def constant_of_shape(flow: Propagation, node: gs.Node) -> None:
    """One number everywhere: it has channels where it is the state that a recurrent layer begins with."""
    shape = flow.shape(node.outputs[0])
    if not shape:
        return
    labels = Labels((len(shape) - 1,), flow.fresh(shape[-1])) if becomes_state(node.outputs[0]) else None
    bind(flow, node, sizes(flow, node, 0, len(shape)), labels)
    if labels is not None:
        flow.give(node.outputs[0], labels.axes, labels.ids)


def becomes_state(tensor: gs.Tensor, depth: int = 4) -> bool:
    """Whether the tensor, or a part of it, is the initial state of an LSTM, GRU or RNN."""
    for reader in tensor.outputs:
        if reader.op in ("LSTM", "GRU", "RNN"):
            return any(item is tensor for item in reader.inputs[5:7])
        if depth and reader.op in ("Expand", "Gather", "Identity", "Slice", "Split", "Unsqueeze"):
            return any(becomes_state(output, depth - 1) for output in reader.outputs)
    return False


RESHAPE_RULES: dict[str, Rule] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Expand": expand,
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
    "Shape": shape_of_channels,
    "ConstantOfShape": constant_of_shape,
}
