"""Tensors inside the bodies of If, Loop and Scan made outputs of the model, so that a run shows them.

ONNX Runtime gives out tensors of the main graph only. So each observed tensor of a body is packed into two
vectors: its values (float32), and a record of its rank and dimensions. Vectors of any length may cross a body:

- an ``If`` gets two more outputs, which are empty in the branch that does not compute the tensor;
- a ``Loop`` carries both vectors along and appends to them in every iteration, so that iterations may differ
  in shape, or compute nothing;
- a ``Scan`` (from operator set 9) stacks them, for it knows no vectors that grow; so the tensors it shows must
  have the same shape in all its iterations.

What comes out is unpacked to one array for each time that the tensor was computed, shaped as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcomp.graph.bodies import Address, Steps

__all__ = ["Raised", "crosses_scan", "obstacle", "raise_tensors", "unpack"]

Array = np.ndarray[Any, Any]

_STANDARD = ("", "ai.onnx")
_SCAN_OPSET = 9  # before, Scan had an axis of its own for the batch
_TYPES = (TensorProto.FLOAT, TensorProto.INT64)  # of the values, of the records


@dataclass(frozen=True)
class Raised:
    """Names of the two vectors that hold a tensor.

    Attributes:
        values: all its values in one float32 vector, one computation after the other.
        records: for each computation its rank and its dimensions, int64.
    """

    values: str
    records: str


def obstacle(proto: onnx.ModelProto, steps: Steps) -> str:
    """Why tensors of the graph at the end of these steps cannot be raised, or nothing."""
    graph, scanned = proto.graph, False
    for position, attribute in steps:
        node = graph.node[position]
        if node.op_type not in ("If", "Loop", "Scan") or node.domain not in _STANDARD:
            return f"nothing is known of how {node.op_type} runs its body"
        if node.op_type == "Scan" and _opset(proto) < _SCAN_OPSET:
            return f"the Scan of operator set {_opset(proto)} has an axis of its own for the batch"
        if scanned and node.op_type != "Scan":
            return f"a Scan shows no values of the {node.op_type} in it, whose number may change"
        scanned = scanned or node.op_type == "Scan"
        graph = _body(node, attribute)
    return ""


def crosses_scan(proto: onnx.ModelProto, steps: Steps) -> bool:
    """Whether a Scan stands on the way to that graph."""
    graph = proto.graph
    for position, attribute in steps:
        if graph.node[position].op_type == "Scan":
            return True
        graph = _body(graph.node[position], attribute)
    return False


def raise_tensors(proto: onnx.ModelProto, wanted: Iterable[Address]) -> dict[Address, Raised]:
    """Compute the packed form of tensors of bodies in the main graph; ``proto`` is edited in place.

    Args:
        wanted: tensors of bodies for which there is no ``obstacle``.

    Returns:
        names of tensors of the main graph.
    """
    return _Raising(proto).graph(proto.graph, {address: address.steps for address in wanted})


def unpack(values: Array, records: Array) -> Iterator[Array]:
    """The arrays, one for each time that the tensor was computed."""
    start = position = 0
    while position < len(records):
        rank = int(records[position])
        shape = tuple(int(dim) for dim in records[position + 1 : position + 1 + rank])
        size = int(np.prod(shape, dtype=np.int64))
        yield values[start : start + size].reshape(shape)
        start, position = start + size, position + 1 + rank


@dataclass
class _Additions:
    """What a graph gets: nodes in front of and behind all that it has."""

    before: list[onnx.NodeProto] = field(default_factory=list)
    after: list[onnx.NodeProto] = field(default_factory=list)

    def put(self, graph: onnx.GraphProto) -> None:
        for node in reversed(self.before):
            graph.node.insert(0, node)
        graph.node.extend(self.after)


class _Raising:
    """One model's rewrite, from the inside outwards."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._taken = set(_names(proto.graph))
        self._count = 0

    def graph(self, graph: onnx.GraphProto, wanted: Mapping[Address, Steps]) -> dict[Address, Raised]:
        """Pack what this graph computes, and fetch what its bodies do.

        Args:
            wanted: the rest of the way to each tensor, from this graph on.
        """
        added = _Additions()
        raised: dict[Address, Raised] = {}
        inner: dict[int, dict[str, dict[Address, Steps]]] = defaultdict(lambda: defaultdict(dict))
        for address, steps in wanted.items():
            if steps:
                (position, attribute), *rest = steps
                inner[position][attribute][address] = tuple(rest)
            else:
                raised[address] = self._pack(address.name, added)
        nodes = list(graph.node)  # what is put before them changes their positions
        cross = {"If": self._if, "Loop": self._loop, "Scan": self._scan}
        for position, bodies in sorted(inner.items()):
            node = nodes[position]
            # All bodies first: crossing one puts nodes into the others.
            below = {name: self.graph(_body(node, name), tensors) for name, tensors in sorted(bodies.items())}
            for name, tensors_below in below.items():
                for address, packed in tensors_below.items():
                    raised[address] = cross[node.op_type](node, name, packed, added)
        added.put(graph)
        return raised

    def _pack(self, name: str, added: _Additions) -> Raised:
        real, values, shape, rank, records = (self._new() for _ in range(5))
        flat = self._constant(np.array([-1], np.int64), added)
        added.after += [
            helper.make_node("Cast", [name], [real], to=TensorProto.FLOAT),
            helper.make_node("Reshape", [real, flat], [values]),
            helper.make_node("Shape", [name], [shape]),
            helper.make_node("Shape", [shape], [rank]),
            helper.make_node("Concat", [rank, shape], [records], axis=0),
        ]
        return Raised(values, records)

    def _if(self, node: onnx.NodeProto, attribute: str, below: Raised, added: _Additions) -> Raised:  # noqa: ARG002
        for branch in (item for item in node.attribute if item.type == onnx.AttributeProto.GRAPH):
            self._fill(node, len(branch.g.output))
            names = [below.values, below.records]
            if branch.name != attribute:
                nothing = _Additions()
                names = [self._empty(kind, nothing) for kind in _TYPES]
                nothing.put(branch.g)
            branch.g.output.extend(_value(name, kind) for name, kind in zip(names, _TYPES, strict=True))
        raised = Raised(self._new(), self._new())
        node.output.extend([raised.values, raised.records])
        return raised

    def _loop(self, node: onnx.NodeProto, attribute: str, below: Raised, added: _Additions) -> Raised:
        """Inputs: trip count, condition, carried …; outputs of the body: condition, carried …, stacked …"""
        body = _body(node, attribute)
        while len(node.input) < 2:
            node.input.append("")
        carried = len(body.input) - 2
        self._fill(node, len(body.output) - 1)
        inside = _Additions()
        raised = Raised(self._new(), self._new())
        for index, (kind, name) in enumerate(zip(_TYPES, (below.values, below.records), strict=True)):
            so_far, longer = self._new(), self._new()
            inside.after.append(helper.make_node("Concat", [so_far, name], [longer], axis=0))
            body.input.append(_value(so_far, kind))
            body.output.insert(1 + carried + index, _value(longer, kind))
            node.input.append(self._empty(kind, added))
            node.output.insert(carried + index, (raised.values, raised.records)[index])
        inside.put(body)
        return raised

    def _scan(self, node: onnx.NodeProto, attribute: str, below: Raised, added: _Additions) -> Raised:
        body = _body(node, attribute)
        self._fill(node, len(body.output))
        # Lists of axes and directions, where they are given, have an entry for each stacked output.
        for item in node.attribute:
            if item.name in ("scan_output_axes", "scan_output_directions"):
                item.ints.extend([0, 0])
        stacked = [self._new() for _ in _TYPES]
        names = (below.values, below.records)
        body.output.extend(_value(name, kind) for name, kind in zip(names, _TYPES, strict=True))
        node.output.extend(stacked)
        flat = self._constant(np.array([-1], np.int64), added)
        raised = Raised(self._new(), self._new())
        for rows, name in zip(stacked, (raised.values, raised.records), strict=True):
            added.after.append(helper.make_node("Reshape", [rows, flat], [name]))
        return raised

    def _empty(self, kind: int, added: _Additions) -> str:
        return self._constant(np.zeros(0, helper.tensor_dtype_to_np_dtype(kind)), added)

    def _constant(self, value: Array, added: _Additions) -> str:
        name = self._new()
        tensor = onnx.numpy_helper.from_array(value, name)
        added.before.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _fill(self, node: onnx.NodeProto, count: int) -> None:
        """Trailing outputs may be left out, or have no name."""
        while len(node.output) < count:
            node.output.append(self._new())

    def _new(self) -> str:
        self._count += 1
        while (name := f"onnxcomp_observed_{self._count}") in self._taken:
            self._count += 1
        return name


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _names(body)


def _body(node: onnx.NodeProto, attribute: str) -> onnx.GraphProto:
    body: onnx.GraphProto = next(item.g for item in node.attribute if item.name == attribute)
    return body


def _value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None])


def _opset(proto: onnx.ModelProto) -> int:
    return max(int(entry.version) for entry in proto.opset_import if entry.domain in _STANDARD)
