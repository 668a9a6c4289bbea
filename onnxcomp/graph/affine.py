"""Weighted layers as y = W x + b: which inputs and outputs a unit is, and how to change b."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, replace_input, value_of
from onnxcomp.graph.edit import Names, output_ids, sole_consumer
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.model import Model

__all__ = ["input_columns", "output_rows", "shift_outputs"]

Array = np.ndarray[Any, Any]


def input_columns(layer: WeightedLayer, positions: Array) -> Array:
    """Columns of ``layer.matrix()`` that belong to units at these positions on the weight's input axis.

    Args:
        positions: (units, multiplicity); in a grouped ConvTranspose the same places of every group.

    Returns:
        (units, columns of each); the same in every group.
    """
    kernel = math.prod(layer.kernel)
    if layer.kind == "ConvTranspose":
        positions = np.unique(positions % (layer.shape[0] // layer.groups), axis=1)
    columns: Array = (positions[:, :, None] * kernel + np.arange(kernel)).reshape(len(positions), -1)
    return columns


def output_rows(layer: WeightedLayer, kept: Array) -> Array:
    """Rows of ``layer.matrix()`` of the outputs that are kept, (groups, rows).

    Args:
        kept: mask over the weight's output axis.
    """
    if layer.kind == "ConvTranspose":  # its output axis is that of one group
        return np.tile(np.flatnonzero(kept), (layer.groups, 1))
    return np.stack([np.flatnonzero(part) for part in kept.reshape(layer.groups, -1)])


def shift_outputs(model: Model, layer: WeightedLayer, shift: Array) -> None:
    """Add a constant to each output y, in whatever holds the layer's bias; one is made where there is none.

    Args:
        shift: (groups, outputs of a group), of W x (a Gemm scales it as it scales its product).
    """
    values, node = shift.reshape(-1), layer.node
    if layer.kind == "Gemm":
        values = values * float(node.attrs.get("alpha", 1.0))
    if layer.kind in ("Conv", "ConvTranspose", "Gemm") and _shift_bias(model, layer, values):
        return
    addend = _following_addend(model, node) if layer.kind in ("Gemm", "MatMul") else None
    if addend is None:
        _append_add(model, layer, values)
        return
    consumer, index, old = addend
    replace_input(consumer, index, (old + values).astype(old.dtype))


def _shift_bias(model: Model, layer: WeightedLayer, values: Array) -> bool:
    """The third input of Conv, ConvTranspose and Gemm."""
    node = layer.node
    dtype = layer.array().dtype
    if len(node.inputs) > 2 and is_constant(node.inputs[2]):
        beta = float(node.attrs.get("beta", 1.0)) if layer.kind == "Gemm" else 1.0
        old = value_of(node.inputs[2])
        if beta == 0.0 or old is None:
            return False
        if id(node.inputs[2]) in output_ids(model.graph):  # what the model gives out stays
            node.inputs[2] = gs.Constant(Names(model.graph).new(f"{layer.name}/bias"), old)
        replace_input(node, 2, (old + values / beta).astype(dtype))
        return True
    if len(node.inputs) > 2 and node.inputs[2].name:
        return False
    if layer.kind == "Gemm":
        node.attrs["beta"] = 1.0
    bias = gs.Constant(Names(model.graph).new(f"{layer.name}/bias"), values.astype(dtype))
    if len(node.inputs) > 2:
        node.inputs[2] = bias
    else:
        node.inputs.append(bias)
    return True


def _following_addend(model: Model, node: gs.Node) -> tuple[gs.Node, int, Array] | None:
    """The constant that an Add, the only reader, adds along the last axis of the node's output alone."""
    outputs = output_ids(model.graph)
    reader = sole_consumer(node.outputs[0], outputs)
    if reader is None or reader.op != "Add" or reader.domain not in (None, "", "ai.onnx"):
        return None
    index = 1 if reader.inputs[0] is node.outputs[0] else 0
    value = value_of(reader.inputs[index])
    if value is None or value.shape[-1:] != (value.size,) or id(reader.inputs[index]) in outputs:
        return None
    return reader, index, value


def _append_add(model: Model, layer: WeightedLayer, values: Array) -> None:
    """An Add right behind the layer; whoever read the layer's output reads its."""
    node, output = layer.node, layer.node.outputs[0]
    if layer.kind in ("Conv", "ConvTranspose"):
        values = values.reshape(-1, *[1] * (len(layer.shape) - 2))
    names = Names(model.graph)
    raw = gs.Variable(names.new(f"{layer.name}/unshifted"), dtype=output.dtype, shape=output.shape)
    node.outputs[0] = raw
    constant = gs.Constant(names.new(f"{layer.name}/shift"), values.astype(layer.array().dtype))
    add = gs.Node("Add", names.new(f"{layer.name}/Add"), inputs=[raw, constant], outputs=[output])
    place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
    model.graph.nodes.insert(place + 1, add)
