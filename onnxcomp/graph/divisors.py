"""Channels of an activation divided or kept apart, and the layers behind it changed to make up for it. Exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.edit import Names, sole_consumer
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["divide_channels"]

Array = np.ndarray[Any, Any]


def divide_channels(
    root: gs.Graph,
    graph: gs.Graph,
    layers: Sequence[WeightedLayer],
    divisors: Array,
    apart: Array,
    outputs: set[int],
) -> None:
    """Let MatMuls or Gemms of one activation read it divided, without the channels that are kept apart.

    The part of the result that these make is computed on its own and added, behind the bias of the layer if there is
    one, which ONNX Runtime fuses with it.

    Args:
        root: the main graph, for names.
        graph: where the layers stand: it, or a body of it.
        layers: all read one tensor, each has its weight for itself.
        divisors: above zero, (channels,) of the last axis.
        apart: channels.
        outputs: ``id`` of every tensor that a graph gives out.
    """
    names, source = Names(root), layers[0].node.inputs[0]
    factors = (1.0 / divisors).astype(np.float32)
    # What float32 makes of the factors is what the weights make up for.
    exact = 1.0 / factors.astype(np.float64)
    factors[apart] = exact[apart] = 0.0
    divided = gs.Variable(names.new(f"{source.name}_smoothed"), np.dtype(np.float32))
    constant = gs.Constant(names.new(f"{source.name}_factors"), factors)
    added = [gs.Node("Mul", names.new(f"{divided.name}_Mul"), inputs=[source, constant], outputs=[divided])]
    if len(apart):
        picked = gs.Variable(names.new(f"{source.name}_apart"), np.dtype(np.float32))
        indices = gs.Constant(names.new(f"{source.name}_channels"), apart.astype(np.int64))
        pick = gs.Node("Gather", names.new(f"{picked.name}_Gather"), {"axis": -1}, [source, indices], [picked])
        added.append(pick)
        for layer in layers:
            _add_part(graph, layer, picked, layer.matrix()[0][:, apart], names, outputs)
    for layer in layers:
        layer.node.inputs[0] = divided
        layer.set_matrix(layer.matrix() * exact)
    ids = {id(layer.node) for layer in layers}
    first = next(index for index, other in enumerate(graph.nodes) if id(other) in ids)
    graph.nodes[first:first] = added


def _add_part(
    graph: gs.Graph, layer: WeightedLayer, picked: gs.Tensor, columns: Array, names: Names, outputs: set[int]
) -> None:
    """Add what these channels make of the result to it."""
    last = _behind_bias(graph, layer.node, outputs)
    result = last.outputs[0]
    rest = gs.Variable(names.new(f"{result.name}_rest"), np.dtype(np.float32))
    part = gs.Variable(names.new(f"{result.name}_part"), np.dtype(np.float32))
    weight = gs.Constant(names.new(f"{layer.weight.name}_apart"), np.ascontiguousarray(columns.T, np.float32))
    last.outputs[0] = rest
    added = [
        gs.Node("MatMul", names.new(f"{part.name}_MatMul"), inputs=[picked, weight], outputs=[part]),
        gs.Node("Add", names.new(f"{result.name}_Add"), inputs=[rest, part], outputs=[result]),
    ]
    position = next(index for index, node in enumerate(graph.nodes) if node is last)
    graph.nodes[position + 1 : position + 1] = added


def _behind_bias(graph: gs.Graph, node: gs.Node, outputs: set[int]) -> gs.Node:
    reader = sole_consumer(node.outputs[0], outputs)
    if reader is None or reader.op != "Add" or not any(is_constant(tensor) for tensor in reader.inputs):
        return node
    # One in a body may never run.
    return reader if any(member is reader for member in graph.nodes) else node
