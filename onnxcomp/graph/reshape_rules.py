"""What the operators that regroup axes do to the channels they read: Reshape, Flatten, Expand, Shape and Resize."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.dims import Inferred, Size, Written, bind, is_read, shown_axes, sizes
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Labels, Propagation, Rule

__all__ = ["RESHAPE_RULES"]

_LARGE = 2**20  # positions of a lattice; larger ones are not worth the memory


def reshape(flow: Propagation, node: gs.Node) -> None:
    """Axes are joined, channels along them put one after the other, and split into lattices."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if old is None or new is None:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    result = None if labels is None else _regrouped(flow, node, labels, old, new)
    bind(flow, node, sizes(flow, node, 1, len(new), copies=True), result)
    if result is not None:
        flow.give(node.outputs[0], result.axes, result.ids)


def flatten(flow: Propagation, node: gs.Node) -> None:
    """Into two axes."""
    labels = flow.labels(node.inputs[0])
    old, new = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    if labels is None or old is None or new is None:
        return
    if (result := _regrouped(flow, node, labels, old, new)) is not None:
        flow.give(node.outputs[0], result.axes, result.ids)


def _regrouped(
    flow: Propagation, node: gs.Node, labels: Labels, old: Sequence[int], new: Sequence[int]
) -> Labels | None:
    """The channels after a Reshape, or None where they end.

    Axes along which the channels do not differ have none: splitting what a Flatten joined gives back the channels
    of the one axis.
    """
    if not math.prod(old) or math.prod(old) != math.prod(new):
        flow.pin_inputs(node, "the shape of an operand is not known, or empty")
        return None
    pieces = _pieces(old, new, labels.axes)
    if pieces is None:
        result = _through_one_axis(labels, old, new)
        flow.lattice(node, result.ids)
        return result
    own = [at for at, piece in enumerate(pieces) if piece.old in labels.axes]
    targets = [pieces[at].new for at in own]
    mixed = [at for at in own if any(piece.new == pieces[at].new for piece in pieces if piece.old not in labels.axes)]
    if not mixed and len(set(targets)) == len(own) == len(labels.axes):
        return Labels(tuple(targets), labels.ids)
    fine = Labels(tuple(own), labels.ids.reshape([pieces[at].size for at in own]))
    flow.lattice(node, fine.ids)
    if 0 < len(mixed) < len(own) and math.prod(new[axis] for axis in set(targets)) > _LARGE:
        fine = flow.over(node, fine, mixed, "it joins parts of the channels with a large axis")
    result = _joined(fine, pieces, new)
    flow.lattice(node, result.ids)
    return result


@dataclass(frozen=True)
class _Piece:
    """A factor of an axis, the same before and after; ``old`` and ``new`` are the axes it belongs to."""

    size: int
    old: int
    new: int


def _pieces(old: Sequence[int], new: Sequence[int], labelled: Sequence[int]) -> list[_Piece] | None:
    """Factors of the axes with channels, and of those joined with them: both old and new axes are made of these.

    Without those of size 1. None where there are no such factors: (4, 6) as (6, 4).
    """
    found: list[_Piece] = []
    for before, after in _blocks(old, new):
        if not any(axis in before for axis in labelled):
            continue
        olds, news = _ends(old, before), _ends(new, after)
        cuts = sorted({1, *(end for end, _ in olds), *(end for end, _ in news)})
        if any(second % first for first, second in itertools.pairwise(cuts)):
            return None
        for first, second in itertools.pairwise(cuts):
            axes = [next(axis for end, axis in ends if end >= second) for ends in (olds, news)]
            found.append(_Piece(second // first, *axes))
    return found


def _ends(sizes: Sequence[int], block: range) -> list[tuple[int, int]]:
    """How many entries the axes of the block have up to each of them, and the axis."""
    return list(zip(itertools.accumulate((sizes[axis] for axis in block), operator.mul), block, strict=True))


def _joined(fine: Labels, pieces: Sequence[_Piece], new: Sequence[int]) -> Labels:
    """The channels, along pieces of axes, along whole new axes."""
    targets = {pieces[at].new for at in fine.axes}
    wide = [at for at, piece in enumerate(pieces) if piece.new in targets]
    spread = fine.ids.reshape([pieces[at].size if at in fine.axes else 1 for at in wide])
    ids = np.broadcast_to(spread, [pieces[at].size for at in wide]).reshape([new[axis] for axis in sorted(targets)])
    return _without_repeats(Labels(tuple(sorted(targets)), ids))


def _through_one_axis(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """All axes of a stretch with channels are made one, and that is split anew."""
    blocks = [(before, after) for before, after in _blocks(old, new) if any(axis in before for axis in labels.axes)]
    wide, narrow = [1] * len(old), [1] * len(new)
    for before, after in blocks:
        wide[before.start : before.stop] = old[before.start : before.stop]
        narrow[after.start : after.stop] = new[after.start : after.stop]
    spread = [old[axis] if axis in labels.axes else 1 for axis in range(len(old))]
    ids = np.broadcast_to(labels.ids.reshape(spread), wide).reshape(narrow)
    return _without_repeats(Labels(tuple(range(len(new))), ids))


def _without_repeats(labels: Labels) -> Labels:
    """Without axes along which the channels are the same."""
    sizes = enumerate(labels.ids.shape)
    kept = [at for at, size in sizes if size > 1 and (labels.ids != labels.ids.take([0], at)).any()]
    kept = kept or [int(np.argmax(labels.ids.shape))]  # a single channel, many times
    ids = labels.ids[tuple(slice(None) if at in kept else 0 for at in range(labels.ids.ndim))]
    return Labels(tuple(labels.axes[at] for at in kept), ids)


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
