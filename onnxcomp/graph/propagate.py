"""Follows channels through a graph: which positions of which tensors are the same channel.

Every channel that a layer produces gets a number. The numbers travel along one axis of each activation: past
elementwise operators, repeated by Flatten, put side by side by Concat. Where two numbers must stay together
(the two sides of an Add) they are tied; where an operator stands in the way of moving them they are pinned,
with the reason. What each operator does to the numbers is told by its rule, in ``rules`` and ``shape_rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import is_constant, shape_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = ["Extent", "Labels", "Pin", "Place", "Propagation", "Role", "Rule", "propagate"]

Array = np.ndarray[Any, Any]
Role = Literal["out", "in", "along"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The channels of an activation: one number for each position along ``axis``."""

    axis: int
    ids: Array


@dataclass(frozen=True, eq=False)
class Place:
    """Where channels appear on a constant: the input ``index`` of ``node``, along ``axis``."""

    node: gs.Node
    index: int
    axis: int
    ids: Array
    role: Role
    layer: WeightedLayer | None


@dataclass(frozen=True, eq=False)
class Extent:
    """A number in the graph that counts channels: that entry must say how many of ``ids`` there are.

    Attributes:
        source: which input of the node (a constant of integers), or the name of an attribute.
        entry: position in it; None where it is a single number.
    """

    node: gs.Node
    source: int | str
    entry: int | None
    ids: Array


@dataclass(frozen=True, eq=False)
class Pin:
    """Channels that may not be removed and, unless ``movable``, not permuted either."""

    ids: Array
    reason: str
    movable: bool


class Propagation:
    """What is known so far, for the rules to read and to add to.

    Attributes:
        opset: version of the standard operators.
        count: how many channels have been numbered.
    """

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.opset = model.opset
        self.count = 0
        self.places: list[Place] = []
        self.extents: list[Extent] = []
        self.pins: list[Pin] = []
        self.ties: list[tuple[Array, Array]] = []
        self.labelled: list[tuple[gs.Tensor, Labels]] = []
        self._labels: dict[int, Labels] = {}
        self._shapes = shapes
        self._layers = {id(layer.node): layer for layer in weighted_layers(model)}
        self._outputs = output_ids(model.graph)
        self._seen: set[int] = set()

    # -- to ask ----------------------------------------------------------------------------------------

    def labels(self, tensor: gs.Tensor) -> Labels | None:
        """The tensor's channels, or None when it has none that can be followed."""
        return self._labels.get(id(tensor))

    def labelled_inputs(self, node: gs.Node) -> Iterator[tuple[gs.Tensor, Labels]]:
        """The node's inputs whose channels are followed."""
        for tensor in node.inputs:
            if (labels := self.labels(tensor)) is not None:
                yield tensor, labels

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The tensor's shape, or None when neither the run nor the graph tells it."""
        if is_constant(tensor):
            return tuple(int(dim) for dim in shape_of(tensor) or ())  # type: ignore[arg-type]
        return self._shapes.get(tensor.name)

    def layer(self, node: gs.Node) -> WeightedLayer | None:
        """The node as a weighted layer."""
        return self._layers.get(id(node))

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether the tensor is an output of the model, or of the body of a control flow operator."""
        return id(tensor) in self._outputs

    # -- to tell ---------------------------------------------------------------------------------------

    def fresh(self, size: int) -> Array:
        """Numbers for so many new channels."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def give(self, tensor: gs.Tensor, axis: int, ids: Array) -> None:
        """These are the tensor's channels. A single channel is nothing to choose from and is not followed."""
        if len(ids) < 2:
            return
        labels = Labels(axis, ids)
        self._labels[id(tensor)] = labels
        self.labelled.append((tensor, labels))
        if any(id(consumer) in self._seen for consumer in tensor.outputs):
            self.pin(ids, f"the nodes are not sorted: {tensor.name} is used before it is computed")

    def tie(self, first: Array, second: Array) -> None:
        """Channel by channel, these are to be moved and removed together."""
        if first is not second:
            self.ties.append((first, second))

    def pin(self, ids: Array, reason: str, movable: bool = False) -> None:
        """These may not be removed nor, unless ``movable``, permuted."""
        self.pins.append(Pin(ids, reason, movable))

    def pin_inputs(self, node: gs.Node, reason: str) -> None:
        """The node stands in the way of all channels it reads; those it computes are not followed."""
        for _, labels in self.labelled_inputs(node):
            self.pin(labels.ids, f"{layer_name(node)}: {reason}")

    def place(self, node: gs.Node, index: int, axis: int, ids: Array, role: Role) -> None:
        """The channels lie along ``axis`` of this constant input."""
        shape = self.shape(node.inputs[index]) or ()
        if axis >= len(shape) or shape[axis] != len(ids):
            self.pin(ids, f"{layer_name(node)}: its constant {node.inputs[index].name} has other channels")
            return
        if self.is_output(node.inputs[index]):
            self.pin(ids, f"{layer_name(node)}: its constant {node.inputs[index].name} is an output of the model")
        self.places.append(Place(node, index, axis, ids, role, self.layer(node)))

    def extent(self, node: gs.Node, source: int | str, entry: int | None, ids: Array) -> None:
        """That number counts these channels."""
        self.extents.append(Extent(node, source, entry, ids))

    def finish(self, node: gs.Node) -> None:
        """The node's rule has been applied."""
        self._seen.add(id(node))


Rule: TypeAlias = Callable[[Propagation, gs.Node], None]


def propagate(model: Model, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule]) -> Propagation:
    """Apply the rule of every node of the main graph, in order; a node without one pins what it reads."""
    flow = Propagation(model, shapes)
    for node in model.graph.nodes:
        rule = rules.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        if rule is None:
            flow.pin_inputs(node, f"no rule tells how {node.op} treats channels")
        else:
            rule(flow, node)
        flow.finish(node)
    for tensor in model.graph.outputs:
        if (labels := flow.labels(tensor)) is not None:
            flow.pin(labels.ids, f"{tensor.name} is an output of the model")
    _pin_nested(model, flow)
    return flow


def _pin_nested(model: Model, flow: Propagation) -> None:
    """The bodies of If, Loop and Scan read outer tensors by name; their channels stay as they are."""
    for graph in nested_graphs(model.graph):
        if graph is model.graph:
            continue
        used = [tensor for node in graph.nodes for tensor in node.inputs] + list(graph.outputs)
        for tensor in used:
            if (labels := flow.labels(tensor)) is not None:
                flow.pin(labels.ids, f"{tensor.name} is used inside a control flow body")
