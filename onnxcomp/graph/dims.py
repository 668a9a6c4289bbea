"""Where the sizes come from that a Reshape, an Expand or a Resize gives to its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Labels, Propagation

__all__ = ["Follows", "Inferred", "Size", "Written", "bind", "is_read", "shown_axes", "sizes"]

Array = np.ndarray[Any, Any]

_PASSING = ("Cast", "Identity", "Squeeze", "Unsqueeze")
_TAKING = (("Reshape", 1), ("Expand", 1), ("Resize", 3), ("ConstantOfShape", 0))  # that call ``bind``
_ENDLESS = 2**31 - 1


@dataclass(frozen=True)
class Written:
    """The graph says it: an entry of a constant input, or of an attribute."""

    node: gs.Node
    source: int | str
    entry: int
    value: int


@dataclass(frozen=True)
class Follows:
    """It is the size of that axis of that tensor."""

    tensor: gs.Tensor
    axis: int


class Inferred:
    """It is what is left by the others."""


Size: TypeAlias = Written | Follows | Inferred | None  # None: computed in a way that is not understood


def sizes(flow: Propagation, node: gs.Node, index: int, rank: int, copies: bool = False) -> list[Size]:
    """The sizes that input ``index`` of the node gives, one for each of ``rank`` axes.

    Args:
        copies: -1 and 0 mean what they mean to a Reshape.
    """
    if "shape" in node.attrs:
        values = [int(value) for value in node.attrs["shape"]]
        found: list[Size] = [Written(node, "shape", entry, value) for entry, value in enumerate(values)]
    else:
        found = _entries(flow, node, index)
    if len(found) != rank:
        return [None] * rank
    for axis, size in enumerate(found):
        if copies and isinstance(size, Written) and size.value <= 0:
            keeps = size.value == 0 and not node.attrs.get("allowzero", 0)
            found[axis] = Follows(node.inputs[0], axis) if keeps else Inferred()
    return found


def _entries(flow: Propagation, node: gs.Node, index: int) -> list[Size]:
    """The entries of an input that holds a shape."""
    tensor = node.inputs[index]
    if (value := value_of(tensor)) is not None:
        return [Written(node, index, entry, int(size)) for entry, size in enumerate(value.reshape(-1))]
    length = (flow.shape(tensor) or (1,))[0]
    producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if producer is None or producer.domain not in (None, "", "ai.onnx"):
        return [None] * length
    if producer.op == "Shape":
        source = producer.inputs[0]
        rank = len(flow.shape(source) or ())
        return [Follows(source, axis) for axis in shown_axes(producer, rank)]
    found: list[Size]
    if producer.op in _PASSING and (producer.op != "Squeeze" or length == 1):
        found = _entries(flow, producer, 0)
    elif producer.op == "Concat":
        found = [size for part in range(len(producer.inputs)) for size in _entries(flow, producer, part)]
    elif producer.op == "Mul" and length == 1:
        found = [_multiple(flow, producer)]
    elif (chosen := _chosen(flow, producer)) is not None:
        every = _entries(flow, producer, 0)
        found = [every[entry] for entry in chosen]
    else:
        return [None] * length
    if is_read(flow, tensor, None):  # whoever else takes what is written there would see it change
        found = [None if isinstance(size, Written) else size for size in found]
    return found


def shown_axes(node: gs.Node, rank: int) -> list[int]:
    """The axes whose sizes a Shape gives."""
    return list(range(rank)[node.attrs.get("start", 0) : node.attrs.get("end", rank)])


def _multiple(flow: Propagation, node: gs.Node) -> Size:
    """A number times the size of an axis without channels, such as that of the samples."""
    sizes = [size for index in (0, 1) for size in _entries(flow, node, index)]
    written = [size for size in sizes if isinstance(size, Written)]
    for size in sizes:
        if isinstance(size, Follows) and len(written) == 1 and len(sizes) == 2:
            labels = flow.labels(size.tensor)
            return written[0] if labels is None or labels.at(size.axis) is None else None
    return None


def _chosen(flow: Propagation, node: gs.Node) -> list[int] | None:
    """Which entries of a shape a Gather or Slice with constant operands takes."""
    length = (flow.shape(node.inputs[0]) or (0,))[0]
    if node.op == "Gather" and (indices := value_of(node.inputs[1])) is not None:
        return [int(entry) % length for entry in indices.reshape(-1)] if length else None
    if node.op == "Slice" and "starts" in node.attrs:
        starts, ends = (np.asarray(node.attrs[name]) for name in ("starts", "ends"))
        return list(range(length)[int(starts[0]) : int(ends[0])])
    if node.op == "Slice" and len(node.inputs) >= 3:
        values = [value_of(tensor) for index, tensor in enumerate(node.inputs) if index in (1, 2, 4)]
        if all(value is not None and value.size == 1 for value in values):
            first, last, *step = [int(value.reshape(-1)[0]) for value in values if value is not None]
            return list(range(length)[slice(first, None if last >= _ENDLESS else last, *step)])
    return None


def bind(flow: Propagation, node: gs.Node, found: list[Size], result: Labels | None) -> None:
    """Let the sizes of the node's output agree with its channels, or hold these where they cannot.

    Args:
        result: the channels of the output, or None where it has none that are followed.
    """
    for axis, size in enumerate(found):
        at = None if result is None else result.at(axis)
        ids = None if result is None or at is None else result.ids
        if isinstance(size, Written) and ids is not None and size.value != ids.shape[at or 0]:
            reason = f"its target shape counts {size.value} of {ids.shape[at or 0]} channels"
            flow.hold(ids, at or 0, f"{layer_name(node)}: {reason}")
        elif isinstance(size, Written):
            flow.claim(size.node, size.source, size.entry, ids, at or 0)
        elif isinstance(size, Follows):
            _follow(flow, node, size, ids, at or 0)
        elif size is None and ids is not None and at is not None:
            reason = "its target shape is computed in a way that fixes the channels"
            flow.hold(ids, at, f"{layer_name(node)}: {reason}")


def _follow(flow: Propagation, node: gs.Node, size: Follows, ids: Array | None, axis: int) -> None:
    labels = flow.labels(size.tensor)
    at = None if labels is None else labels.at(size.axis)
    if labels is not None and at is not None:
        if ids is not None and (ids.shape, axis) == (labels.ids.shape, at):
            flow.tie(labels.ids, ids)
            return
        flow.hold(labels.ids, at, f"{layer_name(node)}: the number of channels is read from the shape")
    if ids is not None:
        reason = f"its shape is that of {size.tensor.name}, which has other channels"
        flow.hold(ids, axis, f"{layer_name(node)}: {reason}")


def is_read(flow: Propagation, shape: gs.Tensor, entry: int | None) -> bool:
    """Whether that entry of a shape (None: any) goes anywhere but into the sizes of a node that calls ``bind``."""
    if entry is None and id(shape) in flow.read:
        return flow.read[id(shape)]
    found = flow.is_output(shape) or any(
        _reads(flow, reader, index, entry)
        for reader in shape.outputs
        for index, tensor in enumerate(reader.inputs)
        if tensor is shape
    )
    if entry is None:
        flow.read[id(shape)] = found
    return found


def _reads(flow: Propagation, reader: gs.Node, index: int, entry: int | None) -> bool:
    if (reader.op, index) in _TAKING and reader.domain in (None, "", "ai.onnx"):
        return False
    result = reader.outputs[0]
    if reader.op in _PASSING and index == 0:
        return is_read(flow, result, entry)
    if reader.op in ("Gather", "Slice") and index == 0 and (chosen := _chosen(flow, reader)) is not None:
        if entry is None:
            return is_read(flow, result, None)
        return any(is_read(flow, result, at) for at, found in enumerate(chosen) if found == entry)
    if reader.op == "Concat":
        lengths = [(flow.shape(tensor) or (1,))[0] for tensor in reader.inputs]
        return is_read(flow, result, None if entry is None else entry + sum(lengths[:index]))
    return True
