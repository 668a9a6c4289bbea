"""What products of two activations, and the operators of attention, do to the channels they read.

In an attention layer the channels of queries, keys and values are lattices of heads times channels of a head. The
product of queries and keys sums over the channels of a head, so none of them goes alone, and pairs the heads:
what remains free are whole heads.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Array, Propagation, Rule

__all__ = ["ATTENTION_RULES", "product"]

Axes = Sequence[Hashable]


def product(flow: Propagation, node: gs.Node) -> None:
    """MatMul of two activations, or with a constant that is no matrix behind them."""
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    first, second = shapes[0], shapes[1]
    if not first or not second:
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    batch = max(len(first), len(second)) - 2
    names: list[Axes] = [
        [*range(batch - len(first) + 2, batch), "row", "sum"] if len(first) > 1 else ["sum"],
        [*range(batch - len(second) + 2, batch), "sum", "column"] if len(second) > 1 else ["sum"],
    ]
    ends = [end for end, shape in (("row", first), ("column", second)) if len(shape) > 1]
    contract(flow, node, names, [*range(max(batch, 0)), *ends])


def einsum(flow: Propagation, node: gs.Node) -> None:
    """Of two operands, in which every letter occurs once in each."""
    terms, _, result = str(node.attrs["equation"]).replace(" ", "").partition("->")
    operands = terms.split(",")
    plain = all(term.isalpha() and len(set(term)) == len(term) for term in (*operands, result))
    ranks = [len(flow.shape(tensor) or ()) for tensor in node.inputs]
    if len(operands) != 2 or not plain or ranks != [len(term) for term in operands]:
        flow.pin_inputs(node, f"no rule tells how {node.attrs['equation']} treats channels")
        return
    contract(flow, node, operands, result)


@dataclass
class _Side:
    """An operand of a product.

    Attributes:
        ids: its channels, with a name for each of their axes; None where it has none.
        present: names of its axes that are longer than 1.
        followed: names of the axes that have channels, to begin with.
    """

    index: int
    tensor: gs.Tensor
    ids: Array | None
    names: list[Hashable]
    every: Axes
    present: set[Hashable]
    followed: frozenset[Hashable]

    def drop(self, name: Hashable) -> None:
        """Without that axis, along which the channels are tied."""
        assert self.ids is not None
        self.ids = None if self.ids.ndim == 1 else self.ids.take(0, self.names.index(name))
        self.names.remove(name)


def contract(flow: Propagation, node: gs.Node, names: Sequence[Axes], result: Axes) -> None:
    """Two operands are multiplied where their axes of the same names agree, and summed over axes not in ``result``."""
    sides = [_side(flow, node, index, every) for index, every in enumerate(names)]
    first, second = sides
    for side, other in ((first, second), (second, first)):
        if is_constant(other.tensor) and not is_constant(side.tensor):
            _through_weight(flow, node, side, other, result)
            return
    if first.ids is None and second.ids is None:
        return
    summed = [name for name in first.names if name in second.names and name not in result]
    if summed and first.names == second.names == summed and first.ids is not None and second.ids is not None:
        flow.tie(first.ids, second.ids)  # single channels, each multiplied with its own
        return
    for side, other in ((first, second), (second, first)):
        _sum_up(flow, node, side, other, result)
    if first.ids is not None and second.ids is not None:
        _pair(flow, node, first, second)
    rest = max(sides, key=lambda side: len(side.names))
    if rest.ids is not None:
        flow.give(node.outputs[0], [list(result).index(name) for name in rest.names], rest.ids)


def _side(flow: Propagation, node: gs.Node, index: int, every: Axes) -> _Side:
    tensor = node.inputs[index]
    labels, shape = flow.labels(tensor), flow.shape(tensor) or ()
    present = {name for name, size in zip(every, shape, strict=True) if size > 1}
    if labels is None:
        return _Side(index, tensor, None, [], every, present, frozenset())
    names = [every[axis] for axis in labels.axes]
    return _Side(index, tensor, labels.ids, names, every, present, frozenset(names))


def _through_weight(flow: Propagation, node: gs.Node, side: _Side, weight: _Side, result: Axes) -> None:
    """One operand is constant: the axes that it alone has are new channels, those summed over end here."""
    layer = flow.layer(node)
    if layer is None or layer.weight_index != weight.index or layer.shared or layer.quantized:
        flow.pin_inputs(node, "its weight is too small, shared or quantized")
        return
    kept = [name for name in side.names if name in result]
    for name in list(side.names):
        apart = name in weight.present
        if side.ids is not None and name not in result and (kept or not apart):
            flow.hold(side.ids, side.names.index(name), f"{layer_name(node)}: {node.op} over a part of the channels")
            side.drop(name)
    if side.ids is not None:
        axes = [weight.every.index(name) if name in weight.present else -1 for name in side.names]
        if max(axes) >= 0:
            flow.place(node, weight.index, axes, side.ids, "along" if kept else "in")
    if side.ids is not None and kept:
        flow.give(node.outputs[0], [list(result).index(name) for name in side.names], side.ids)
        return
    own = [name for name in result if name in weight.present and name not in side.every]
    sizes = [(flow.shape(weight.tensor) or ())[weight.every.index(name)] for name in own]
    if own and math.prod(sizes) > 1:
        ids = flow.fresh(math.prod(sizes)).reshape(sizes)
        flow.lattice(node, ids)
        flow.place(node, weight.index, [weight.every.index(name) for name in own], ids, "out")
        flow.give(node.outputs[0], [list(result).index(name) for name in own], ids)


def _sum_up(flow: Propagation, node: gs.Node, side: _Side, other: _Side, result: Axes) -> None:
    """Hold the axes of one operand that are summed over, and those whose partners in the other are not followed."""
    for name in list(side.names):
        if side.ids is None or (name in result and (name not in other.present or name in other.names)):
            continue
        reason = f"it multiplies channels with {other.tensor.name}, whose channels cannot be followed"
        if name not in result and (name in other.followed or name not in other.present):
            reason = f"{node.op} over the channels"
        flow.hold(side.ids, side.names.index(name), f"{layer_name(node)}: {reason}")
        side.drop(name)


def _pair(flow: Propagation, node: gs.Node, first: _Side, second: _Side) -> None:
    """Tie the channels along the axes of both; where both have others, all of those must stay."""
    reason = f"{layer_name(node)}: it multiplies each of the channels with each of the other operand"
    for side, other in ((first, second), (second, first)):
        private = [name for name in side.names if name not in other.names]
        if private and set(other.names) - set(side.names):
            for name in private:
                if side.ids is not None:
                    flow.hold(side.ids, side.names.index(name), reason)
                    side.drop(name)
    if first.ids is None or second.ids is None:
        return
    large, small = (first, second) if len(first.names) >= len(second.names) else (second, first)
    assert large.ids is not None
    assert small.ids is not None
    order = [small.names.index(name) for name in large.names if name in small.names]
    sizes = [size if name in small.names else 1 for name, size in zip(large.names, large.ids.shape, strict=True)]
    flow.tie(large.ids, small.ids.transpose(order).reshape(sizes))


# -- attention in one operator -------------------------------------------------------------------------------


def packed_attention(flow: Propagation, node: gs.Node) -> None:
    """com.microsoft.Attention: projects its input to queries, keys and values with one weight (input 1)."""
    flow_in, weight = flow.labels(node.inputs[0]), node.inputs[1]
    layer, shape = flow.layer(node), flow.shape(weight)
    heads = int(node.attrs["num_heads"])
    reason = _unsuitable(node, parts=(0, 1, 2, 3, 5))
    if layer is None or layer.weight_index != 1 or not shape or layer.shared or layer.quantized:
        reason = "its weight is computed, shared or quantized"
    if reason is not None:
        flow.pin_inputs(node, reason)
        return
    if flow_in is not None and (ids := flow.single(node, flow_in, 2, "Attention over an axis of channels")) is not None:
        flow.place(node, 1, 0, ids, "in")
    widths = [int(width) for width in node.attrs.get("qkv_hidden_sizes") or [shape[1] // 3] * 3]  # type: ignore[index]
    parts = [flow.fresh(width) for width in widths]
    lattices = [part.reshape(heads, -1) for part in parts]
    for lattice in lattices:
        flow.tie(lattices[0][:, :1], lattice)
    flow.place(node, 1, 1, np.concatenate(parts), "out")
    if len(node.inputs) > 2 and node.inputs[2].name:
        flow.place(node, 2, 0, np.concatenate(parts), "out")
    if "qkv_hidden_sizes" in node.attrs:
        for entry, part in enumerate(parts):
            flow.extent(node, "qkv_hidden_sizes", entry, part)
    flow.extent(node, "num_heads", None, lattices[0][:, 0])
    _biased(flow, node, 5, lattices[0][:, 0])
    flow.give(node.outputs[0], 2, parts[2])


def multi_head_attention(flow: Propagation, node: gs.Node) -> None:
    """com.microsoft.MultiHeadAttention: queries, keys and values of three axes, in which heads lie side by side."""
    if not list(flow.labelled_inputs(node)):
        return
    labels = [flow.labels(tensor) for tensor in node.inputs[:3]]
    found = [item.ids for item in labels if item is not None and item.axes == (2,)]
    reason = _unsuitable(node, parts=(0, 1, 2, 3, 4, 5))
    if len(found) < 3:
        reason = "its queries, keys and values are no channels that are followed one by one"
    if reason is not None:
        flow.pin_inputs(node, reason)
        return
    lattices = [ids.reshape(int(node.attrs["num_heads"]), -1) for ids in found]
    for lattice in lattices:
        flow.tie(lattices[0][:, :1], lattice)
    if len(node.inputs) > 3 and node.inputs[3].name:
        flow.place(node, 3, 0, np.concatenate(found), "along")
    flow.extent(node, "num_heads", None, lattices[0][:, 0])
    _biased(flow, node, 5, lattices[0][:, 0])
    flow.give(node.outputs[0], 2, found[2])


def attention(flow: Propagation, node: gs.Node) -> None:
    """Attention: heads lie side by side on the last of three axes, or along the second of four.

    Where several heads of queries share one of keys and values they go together.
    """
    if not list(flow.labelled_inputs(node)):
        return
    labels = [flow.labels(tensor) for tensor in node.inputs[:3]]
    shapes = [flow.shape(tensor) for tensor in node.inputs[:3]]
    rank = len(shapes[0] or ())
    reason = _unsuitable(node, parts=(0, 1, 2, 3))
    lattices: list[Array] = []
    for item, shape, name in zip(labels, shapes, ("q_num_heads", "kv_num_heads", "kv_num_heads"), strict=True):
        axes = (2,) if rank == 3 else (1, 3)
        heads = int(node.attrs.get(name, 0)) if rank == 3 else (shape or (0, 0))[1]
        if item is not None and item.axes == axes:
            lattices.append(item.ids.reshape(heads, -1))
    if len(lattices) < 3:
        reason = "its queries, keys and values are no channels that are followed, in several heads"
    if reason is not None:
        flow.pin_inputs(node, reason)
        return
    query, key, value = lattices
    for lattice in (query.reshape(len(key), -1), key, value):
        flow.tie(key[:, :1], lattice)
    if "q_num_heads" in node.attrs:
        flow.extent(node, "q_num_heads", None, query[:, 0])
        flow.extent(node, "kv_num_heads", None, key[:, 0])
    _biased(flow, node, 3, query[:, 0])
    outputs = np.broadcast_to(query[:, :1], (len(query), value.shape[1]))
    outputs = outputs if len(query) > len(value) else value
    flow.give(node.outputs[0], *((2, outputs.reshape(-1)) if rank == 3 else ((1, 3), outputs)))


def _unsuitable(node: gs.Node, parts: Sequence[int]) -> str | None:
    """Why heads cannot be told apart: there is more to the node than these inputs and its first output."""
    if any(output.outputs for output in node.outputs[1:]):
        return "it gives out keys and values of earlier steps"
    if any(tensor.name for index, tensor in enumerate(node.inputs) if index not in parts):
        return "it takes keys and values of earlier steps"
    if node.attrs.get("do_rotary", 0):
        return "it rotates parts of the channels"
    return None


def _biased(flow: Propagation, node: gs.Node, index: int, heads: Array) -> None:
    """What is added to the scores may differ from head to head."""
    if len(node.inputs) <= index or not node.inputs[index].name:
        return
    tensor = node.inputs[index]
    shape, labels = flow.shape(tensor) or (), flow.labels(tensor)
    axis = len(shape) - 3
    if axis < 0 or shape[axis] == 1:
        if labels is not None:
            flow.pin(labels.ids, f"{layer_name(node)}: it adds channels to its scores")
    elif is_constant(tensor):
        flow.place(node, index, axis, heads, "along")
    elif labels is not None and labels.axes == (axis,):
        flow.tie(labels.ids, heads)
    else:
        flow.pin_inputs(node, f"what it adds to its scores, {tensor.name}, has heads that cannot be followed")


ATTENTION_RULES: dict[str, Rule] = {
    "Einsum": einsum,
    "Attention": attention,
    "com.microsoft.Attention": packed_attention,
    "com.microsoft.MultiHeadAttention": multi_head_attention,
}
