"""Follows scales through a graph: which channels may be multiplied by a number without any output noticing.

Every channel that a layer makes gets a number, as in ``propagate``, but what is followed is not the place of the
channel but its scale: s·x instead of x, for any s > 0. Operators that are positively homogeneous in each channel
(Relu, pooling, Concat …) pass it on; those that add channels tie their scales; constants of one entry for each
channel (weights, biases, parameters of normalizations) are where scales begin and end; all others, Sigmoid say,
*pin* what they read to its present scale. So one scale for each channel that is not pinned, multiplied into the
constants that make it and divided out of those that read it, leaves the model's outputs as they were.
(Cross-layer equalization: Nagel et al. 2019, "Data-free quantization through weight equalization and bias
correction", arXiv:1906.04721.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import is_constant, shape_of, value_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = [
    "FIXED",
    "Cap",
    "Factor",
    "Rule",
    "ScaleFlow",
    "fits",
    "follow_scales",
    "is_shared",
    "lifted",
    "scale_constant",
]

Array = np.ndarray[Any, Any]

FIXED = 0
"""The number of everything whose scale is 1."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A constant that takes part in a rescaling: the input ``index`` of ``node``, times s[ids] ** power.

    ``ids`` broadcasts to the constant.
    """

    node: gs.Node
    index: int
    ids: Array
    power: int


@dataclass(frozen=True, eq=False)
class Cap:
    """A Clip whose limits are not zero or infinite: exact where no scaled value reaches them.

    A channel that reaches a limit must keep its scale.
    """

    tensor: gs.Tensor
    ids: Array
    low: float
    high: float


class ScaleFlow:
    """What is known so far, for the rules to read and to add to.

    The labels of a tensor are numbers in an array of the tensor's rank that broadcasts to its shape: axes along
    which the scale is the same have length 1.
    """

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]], caps: bool) -> None:
        self.opset = model.opset
        self.allows_caps = caps
        self.count = 1
        self.factors: list[Factor] = []
        self.caps: list[Cap] = []
        self.pins: list[tuple[Array, str]] = []
        self.ties: list[tuple[Array, Array]] = []
        self.refusals: dict[int, str] = {}  # by ``id`` of a node, why no scale passes it
        self._labels: dict[int, Array] = {}
        self._shapes = shapes
        self._given_out = output_ids(model.graph)
        self._layers = {id(layer.node): layer for layer in weighted_layers(model)}

    # -- to ask ----------------------------------------------------------------------------------------

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...] | None:
        """The tensor's shape, or None when neither the run nor the graph tells it."""
        if is_constant(tensor):
            return tuple(int(dim) for dim in shape_of(tensor) or ())  # type: ignore[arg-type]
        return self._shapes.get(tensor.name)

    def dims(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """The tensor's shape, known to a rule of every node that has it."""
        return self.shape(tensor) or ()

    def labels(self, tensor: gs.Tensor) -> Array:
        """The numbers of the tensor's channels; FIXED where nothing may be scaled."""
        found = self._labels.get(id(tensor))
        if found is not None:
            return found
        return np.full((1,) * len(self.shape(tensor) or ()), FIXED)

    def is_free(self, tensor: gs.Tensor) -> bool:
        """Whether any channel of the tensor has a scale that is followed."""
        return bool(self.labels(tensor).any())

    def layer(self, node: gs.Node) -> WeightedLayer | None:
        """The node as a weighted layer."""
        return self._layers.get(id(node))

    # -- to tell ---------------------------------------------------------------------------------------

    def fresh(self, *shape: int) -> Array:
        """Numbers for so many new channels."""
        size = int(np.prod(shape))
        self.count += size
        return np.arange(self.count - size, self.count).reshape(shape)

    def give(self, tensor: gs.Tensor, ids: Array) -> None:
        """These are the tensor's channels."""
        self._labels[id(tensor)] = ids

    def tie(self, first: Array, second: Array) -> None:
        """These have the same scales, element by element after broadcasting."""
        a, b = np.broadcast_arrays(first, second)
        different = a != b
        if different.any():
            self.ties.append((a[different], b[different]))

    def uniform(self, ids: Array, axes: Iterable[int]) -> Array:
        """One scale along each of these axes, which become 1 long."""
        for axis in axes:
            if ids.shape[axis] > 1:
                first = np.take(ids, [0], axis)
                self.tie(first, ids)
                ids = first
        return ids

    def pin(self, ids: Array, reason: str) -> None:
        """These keep their scale."""
        self.pins.append((np.unique(ids), reason))

    def pin_inputs(self, node: gs.Node, reason: str) -> None:
        """What the node reads keeps its scale; nothing it computes is followed."""
        for tensor in node.inputs:
            if self.is_free(tensor):
                self.pin(self.labels(tensor), f"{layer_name(node)}: {reason}")

    def factor(self, node: gs.Node, index: int, ids: Array, power: int) -> None:
        """The constant is to be multiplied by s[ids] ** power."""
        tensor = node.inputs[index]
        value = value_of(tensor)
        assert value is not None
        if str(value.dtype) not in ("float32", "float64"):
            reason = f"its constant {tensor.name} is {value.dtype}"
        elif id(tensor) in self._given_out:
            reason = f"its constant {tensor.name} is an output of the model"
        elif not np.isfinite(value).all():
            reason = f"its constant {tensor.name} holds NaN or infinite values"
        else:
            np.broadcast_to(ids, value.shape)  # or raises
            self.factors.append(Factor(node, index, ids, power))
            return
        self.refusals[id(node)] = reason
        self.pin(ids, f"{layer_name(node)}: {reason}")


Rule: TypeAlias = Callable[[ScaleFlow, gs.Node], str | None]
"""Passes labels on, and returns None, or why it cannot."""


def follow_scales(
    model: Model, shapes: Mapping[str, tuple[int, ...]], rules: Mapping[str, Rule], caps: bool = False
) -> ScaleFlow:
    """Apply the rule of every node of the main graph, in order; a node without one pins what it reads."""
    flow = ScaleFlow(model, shapes, caps)
    for node in model.graph.nodes:
        rule = rules.get(node.op) if node.domain in (None, "", "ai.onnx") else None
        known = all(flow.shape(tensor) is not None for tensor in (*node.inputs, *node.outputs) if tensor.name)
        reason: str | None = f"{node.op} does not pass a scale on"
        if rule is not None:
            reason = rule(flow, node) if known else "the shape of an operand is not known"
        if reason:
            flow.refusals[id(node)] = reason
            flow.pin_inputs(node, reason)
    for graph in nested_graphs(model.graph):
        inner = graph is not model.graph
        used = [tensor for node in graph.nodes for tensor in node.inputs] if inner else []
        where = "used inside a control flow body" if inner else "an output of the model"
        for tensor in [*used, *graph.outputs]:
            if id(tensor) in flow._labels:
                flow.pin(flow.labels(tensor), f"{tensor.name} is {where}")
    return flow


def lifted(ids: Array, rank: int) -> Array:
    """The labels of a tensor of higher rank that this one is broadcast to."""
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)


def scale_constant(flow: ScaleFlow, node: gs.Node, index: int, ids: Array, power: int) -> str | None:
    """The constant takes the scales of ``ids``, whose rank is at least its own."""
    value = value_of(node.inputs[index])
    if value is None:
        return "the value of its constant is not known"
    if not value.any():
        return None
    if not fits(ids, value.shape):
        return f"its constant {node.inputs[index].name} has one value for all channels"
    flow.factor(node, index, ids.reshape(ids.shape[ids.ndim - value.ndim :]), power)
    return None


def fits(ids: Array, shape: tuple[int, ...]) -> bool:
    """Whether a constant of that shape has an entry of its own for each of ids."""
    lead = ids.ndim - len(shape)
    own = (1,) * lead + tuple(shape)
    return lead >= 0 and all(size == 1 or size == dim for size, dim in zip(ids.shape, own, strict=True))


def is_shared(tensor: gs.Tensor) -> bool:
    """Whether several nodes, or several inputs of one, read the tensor."""
    return len(tensor.outputs) > 1
