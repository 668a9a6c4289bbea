"""Residual branches: what is computed beside a tensor only to be added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.edit import Names, output_ids
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = ["Branch", "residual_branches", "without"]

Array = np.ndarray[Any, Any]

# Between the last layer of a branch and its result: they neither move nor convert channels.
_KEEPS_CHANNELS = {"Add", "Mul", "Sub", "Div", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid"}
_KEEPS_CHANNELS |= {"HardSwish", "Tanh", "Gelu", "Dropout", "Identity", "BatchNormalization", "LayerNormalization"}


@dataclass(frozen=True, eq=False)
class Branch:
    """The nodes of the main graph that serve only one operand of an Add.

    Attributes:
        add: the Add.
        index: which of its two inputs the branch computes; the other one goes around it.
        layers: the weighted layers among its nodes, the last one first.
        axis: of the operand's channels.
        rank: of the operand.
    """

    add: gs.Node
    index: int
    layers: tuple[WeightedLayer, ...]
    axis: int
    rank: int

    @property
    def name(self) -> str:
        """Of the Add."""
        return layer_name(self.add)

    @property
    def result(self) -> gs.Tensor:
        """What the branch computes."""
        return self.add.inputs[self.index]


def residual_branches(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Branch]:
    """All of them that end in a layer, in graph order; a branch within a branch is one too.

    Args:
        model: with its nodes in topological order.
        shapes: of its tensors in one run: both operands of the Add have the same.
    """
    layers = {id(layer.node): layer for layer in weighted_layers(model) if not layer.nested}
    outputs = output_ids(model.graph)
    readers = _body_readers(model)
    found: list[Branch] = []
    for node in model.graph.nodes:
        if node.op != "Add" or node.domain not in (None, "", "ai.onnx") or node.inputs[0] is node.inputs[1]:
            continue
        known = [shapes.get(tensor.name) for tensor in node.inputs]
        if known[0] is None or known[0] != known[1] or any(is_constant(tensor) for tensor in node.inputs):
            continue
        for index in (0, 1):
            nodes = _serving(node.inputs[index], node, outputs | readers)
            inside = tuple(layers[key] for key in nodes if key in layers)
            last = _last_layer(nodes, layers)
            if last is not None:
                axis = 1 if last.kind in ("Conv", "ConvTranspose") else len(known[0]) - 1
                found.append(Branch(node, index, inside, axis, len(known[0])))
    return found


def _last_layer(nodes: Mapping[int, gs.Node], layers: Mapping[int, WeightedLayer]) -> WeightedLayer | None:
    """The layer whose channels, and whose type, the branch's result has; None where that is not plain."""
    if any(isinstance(value, gs.Graph) for node in nodes.values() for value in node.attrs.values()):
        return None  # what a body reads would go too
    for key, node in nodes.items():
        if key in layers:
            return None if layers[key].kind == "other" else layers[key]
        if node.op not in _KEEPS_CHANNELS:
            return None
    return None


def _serving(tensor: gs.Tensor, reader: gs.Node, visible: set[int]) -> dict[int, gs.Node]:
    """The nodes that nothing needs but the tensor, if only ``reader`` reads it; by ``id``, last first."""
    serving: dict[int, gs.Node] = {}
    waiting = [tensor]
    while waiting:
        item = waiting.pop(0)
        producer = item.inputs[0] if len(item.inputs) == 1 else None
        if producer is None or id(producer) in serving:
            continue
        if all(_only_for(output, serving, tensor, reader, visible) for output in producer.outputs):
            serving[id(producer)] = producer
            waiting += producer.inputs
    return serving


def _only_for(
    output: gs.Tensor, serving: Mapping[int, gs.Node], tensor: gs.Tensor, reader: gs.Node, visible: set[int]
) -> bool:
    if id(output) in visible:
        return False
    return all(id(user) in serving or (output is tensor and user is reader) for user in output.outputs)


def _body_readers(model: Model) -> set[int]:
    """``id`` of every tensor that the body of an If, Loop or Scan reads: its readers are not listed."""
    seen: set[int] = set()
    for node in model.graph.nodes:
        for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
            seen |= {id(tensor) for inner in body.nodes for tensor in inner.inputs}
            seen |= {id(tensor) for tensor in body.outputs}
    return seen


def without(model: Model, branch: Branch, constant: Array) -> None:
    """Add a constant in the place of what the branch computes, and drop its nodes.

    Args:
        model: of the branch.
        constant: one value for each channel.
    """
    values = constant.reshape([-1 if axis == branch.axis else 1 for axis in range(branch.rank)])
    dtype = branch.layers[0].array().dtype
    name = Names(model.graph).new(f"{branch.name}/mean")
    branch.add.inputs[branch.index] = gs.Constant(name, values.astype(dtype))
    model.graph.cleanup()
