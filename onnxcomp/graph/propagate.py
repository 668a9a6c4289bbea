"""Follows channels through a graph: which positions of which tensors are the same channel.

Every channel that a layer produces gets a number. The numbers travel along with the activations: past
elementwise operators, repeated by Flatten, put side by side by Concat. A Reshape that splits the axis of the
channels arranges them in a *lattice*, an array of numbers over several axes. Where two numbers must stay
together (the two sides of an Add) they are tied; where an operator stands in the way of moving them they are
pinned, with the reason. What each operator does to the numbers is told by its rule, in the modules ``*_rules``.

A lattice must stay a rectangle when channels go, so it may lose positions along one of its axes only, and
along the others its channels are tied. An operator that needs all positions of an axis says so (``hold``);
``lattices.decide`` finds an axis where no operator did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import is_constant, shape_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = ["Claim", "Extent", "Labels", "Picks", "Pin", "Place", "Propagation", "Role", "Rule", "propagate"]

Array = np.ndarray[Any, Any]
Role = Literal["out", "in", "along"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The channels of an activation: a number for each position along ``axes``, which ascend."""

    axes: tuple[int, ...]
    ids: Array

    def at(self, axis: int) -> int | None:
        """Which axis of ``ids`` that axis of the tensor is; None where it has no channels."""
        return self.axes.index(axis) if axis in self.axes else None


@dataclass(frozen=True, eq=False)
class Place:
    """Where channels appear on a constant: the input ``index`` of ``node``.

    Attributes:
        axes: for each axis of ``ids``, the constant's axis; -1 where the constant is the same all along it.
    """

    node: gs.Node
    index: int
    axes: tuple[int, ...]
    ids: Array
    role: Role
    layer: WeightedLayer | None


@dataclass(frozen=True, eq=False)
class Extent:
    """A number in the graph that counts channels: positions ``start`` to ``stop`` along ``axis`` of ``ids``.

    Attributes:
        source: which input of the node (a constant of integers), or the name of an attribute.
        entry: position in it; None where it is a single number.
    """

    node: gs.Node
    source: int | str
    entry: int | None
    ids: Array
    axis: int = 0
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, eq=False)
class Picks:
    """Constant indices (input 1 of ``node``) into ``axis`` of ``ids``."""

    node: gs.Node
    ids: Array
    axis: int


@dataclass(frozen=True, eq=False)
class Claim:
    """What a size in the graph, which several nodes may use, means to one of them.

    Attributes:
        ids, axis: it counts the positions along that axis; None where it does not count channels.
    """

    node: gs.Node
    source: int | str
    entry: int
    ids: Array | None
    axis: int


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
        read: what ``dims.is_read`` found, by the ids of tensors.
        through_norms: whether channels may go that a LayerNormalization averages over.
    """

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]], through_norms: bool = False) -> None:
        self.opset = model.opset
        self.through_norms = through_norms
        self.count = 0
        self.places: list[Place] = []
        self.extents: list[Extent] = []
        self.picks: list[Picks] = []
        self.pins: list[Pin] = []
        self.holds: list[tuple[Array, str]] = []
        self.lattices: list[tuple[gs.Node, Array]] = []
        self.ties: list[tuple[Array, Array]] = []
        self.labelled: list[tuple[gs.Tensor, Labels]] = []
        self.read: dict[int, bool] = {}
        self._claims: dict[tuple[int, int | str, int], list[Claim]] = {}
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

    def give(self, tensor: gs.Tensor, axes: int | Sequence[int], ids: Array) -> None:
        """These are the tensor's channels, ``ids`` over these axes.

        A single channel is nothing to choose from and is not followed.
        """
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if ids.size < 2:
            return
        if 1 in ids.shape:
            axes = tuple(axis for axis, size in zip(axes, ids.shape, strict=True) if size > 1)
            ids = ids.reshape([size for size in ids.shape if size > 1])
        if list(axes) != sorted(axes):
            order = np.argsort(axes)
            axes, ids = tuple(axes[index] for index in order), ids.transpose(order)
        labels = Labels(axes, ids)
        self._labels[id(tensor)] = labels
        self.labelled.append((tensor, labels))
        if any(id(consumer) in self._seen for consumer in tensor.outputs):
            self.pin(ids, f"the nodes are not sorted: {tensor.name} is used before it is computed")

    def tie(self, first: Array, second: Array) -> None:
        """Channel by channel, these are to be moved and removed together; arrays that broadcast."""
        if first.shape == second.shape:
            if first is not second:
                self.ties.append((first.reshape(-1), second.reshape(-1)))
        else:
            shape = np.broadcast_shapes(first.shape, second.shape)
            pair = np.broadcast_to(first, shape).reshape(-1), np.broadcast_to(second, shape).reshape(-1)
            self.ties.append(pair)

    def pin(self, ids: Array, reason: str, movable: bool = False) -> None:
        """These may not be removed nor, unless ``movable``, permuted."""
        self.pins.append(Pin(ids, reason, movable))

    def lattice(self, node: gs.Node, ids: Array) -> None:
        """The node arranges channels so; they must stay a rectangle."""
        if sum(size > 1 for size in ids.shape) > 1:
            self.lattices.append((node, ids))

    def hold(self, ids: Array, axis: int, reason: str, movable: bool = False) -> None:
        """No position along that axis may go: where there are other axes, the channels along it are tied."""
        if ids.ndim == 1:
            self.pin(ids, reason, movable)
        else:
            self.tie(ids.take([0], axis), ids)
            self.holds.append((ids, reason))

    def over(self, node: gs.Node, labels: Labels, axes: Collection[int], reason: str, movable: bool = False) -> Labels:
        """The node needs all positions along these axes of the tensor at once.

        Returns:
            the channels along the others (which may be no axes).
        """
        touched = [axis for axis in labels.axes if axis in axes]
        if not touched:
            return labels
        reason = f"{layer_name(node)}: {reason}"
        if len(touched) == len(labels.axes):
            self.pin(labels.ids, reason, movable)
            return Labels((), labels.ids.reshape(-1)[0])
        ids = labels.ids
        for axis in touched:
            self.hold(labels.ids, labels.axes.index(axis), reason)
        ids = ids[tuple(0 if axis in touched else slice(None) for axis in labels.axes)]
        return Labels(tuple(axis for axis in labels.axes if axis not in touched), ids)

    def single(self, node: gs.Node, labels: Labels, axis: int, reason: str) -> Array | None:
        """The channels along one axis, for a node that knows of no other; None, and pinned, if it has none."""
        rest = self.over(node, labels, [other for other in labels.axes if other != axis], reason)
        return rest.ids if rest.axes else None

    def pin_inputs(self, node: gs.Node, reason: str) -> None:
        """The node stands in the way of all channels it reads; those it computes are not followed."""
        for _, labels in self.labelled_inputs(node):
            self.pin(labels.ids, f"{layer_name(node)}: {reason}")

    def place(self, node: gs.Node, index: int, axes: int | Sequence[int], ids: Array, role: Role) -> None:
        """The channels lie along these axes of this constant input, one for each axis of ``ids``; see ``Place``."""
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        shape = self.shape(node.inputs[index]) or ()
        sizes = [
            ids.shape[at] if axis < 0 else (shape[axis] if axis < len(shape) else -1) for at, axis in enumerate(axes)
        ]
        name = node.inputs[index].name
        if sizes != list(ids.shape):
            self.pin(ids, f"{layer_name(node)}: its constant {name} has other channels")
            return
        if self.is_output(node.inputs[index]):
            self.pin(ids, f"{layer_name(node)}: its constant {name} is an output of the model")
        self.places.append(Place(node, index, axes, ids, role, self.layer(node)))

    def extent(
        self,
        node: gs.Node,
        source: int | str,
        entry: int | None,
        ids: Array,
        axis: int = 0,
        stretch: tuple[int, int | None] = (0, None),
    ) -> None:
        """That number counts the channels in a stretch along an axis; see ``Extent``."""
        self.extents.append(Extent(node, source, entry, ids, axis, *stretch))

    def pick(self, node: gs.Node, ids: Array, axis: int) -> None:
        """The node's constant indices pick positions along that axis."""
        self.picks.append(Picks(node, ids, axis))

    def claim(self, node: gs.Node, source: int | str, entry: int, ids: Array | None, axis: int = 0) -> None:
        """That size counts the positions along ``axis``, or with None: no channels."""
        claim = Claim(node, source, entry, ids, axis)
        self._claims.setdefault((id(node), source, entry), []).append(claim)

    def settle(self) -> None:
        """All nodes are done: sizes that several of them use must mean the same to all."""
        for claims in self._claims.values():
            counted = [(claim.ids, claim.axis) for claim in claims if claim.ids is not None]
            if not counted:
                continue
            first, axis = counted[0]
            if len(counted) == len(claims) and all((ids.shape, at) == (first.shape, axis) for ids, at in counted):
                self.extent(claims[0].node, claims[0].source, claims[0].entry, first, axis)
                for ids, _ in counted[1:]:
                    self.tie(first, ids)
                continue
            for ids, at in counted:
                self.hold(ids, at, f"{layer_name(claims[0].node)}: it gives a size that is used for other axes too")

    def finish(self, node: gs.Node) -> None:
        """The node's rule has been applied."""
        self._seen.add(id(node))


Rule: TypeAlias = Callable[[Propagation, gs.Node], None]


def propagate(
    model: Model, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule], through_norms: bool = False
) -> Propagation:
    """Apply the rule of every node of the main graph, in order; a node without one pins what it reads."""
    flow = Propagation(model, shapes, through_norms)
    for node in model.graph.nodes:
        standard = node.domain in (None, "", "ai.onnx")
        rule = rules.get(node.op if standard else f"{node.domain}.{node.op}")
        if rule is None:
            flow.pin_inputs(node, f"no rule tells how {node.op} treats channels")
        else:
            rule(flow, node)
        flow.finish(node)
    flow.settle()
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
