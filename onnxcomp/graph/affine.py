"""Weighted layers as y = W x + b: which inputs and outputs a unit is, and how to change b."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, replace_input, value_of
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
    kernel = _kernel_size(layer)
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
    if layer.kind in ("Conv", "ConvTranspose", "Gemm") and _shift_bias(layer, values):
        return
    for consumer, index in _following_addend(model, node):
        old = value_of(consumer.inputs[index])
        assert old is not None
        replace_input(consumer, index, (old + values).astype(old.dtype))
        return
    _append_add(model, layer, values)


def _shift_bias(layer: WeightedLayer, values: Array) -> bool:
    """The third input of Conv, ConvTranspose and Gemm."""
    node = layer.node
    dtype = layer.array().dtype
    if len(node.inputs) > 2 and is_constant(node.inputs[2]):
        beta = float(node.attrs.get("beta", 1.0)) if layer.kind == "Gemm" else 1.0
        old = value_of(node.inputs[2])
        if beta == 0.0 or old is None:
            return False
        replace_input(node, 2, (old + values / beta).astype(dtype))
        return True
    if len(node.inputs) > 2 and node.inputs[2].name:
        return False
    if layer.kind == "Gemm":
        node.attrs["beta"] = 1.0
    bias = gs.Constant(f"{layer.name}/bias", values.astype(dtype))
    if len(node.inputs) > 2:
        node.inputs[2] = bias
    else:
        node.inputs.append(bias)
    return True


def _following_addend(model: Model, node: gs.Node) -> list[tuple[gs.Node, int]]:
    """The constant vector that an Add, the only reader, adds to the node's output."""
    output = node.outputs[0]
    if len(output.outputs) != 1 or any(tensor is output for tensor in model.graph.outputs):
        return []
    reader = output.outputs[0]
    if reader.op != "Add" or len(reader.inputs) != 2:
        return []
    index = 1 if reader.inputs[0] is output else 0
    value = value_of(reader.inputs[index])
    return [] if value is None or value.ndim != 1 else [(reader, index)]


def _append_add(model: Model, layer: WeightedLayer, values: Array) -> None:
    """An Add right behind the layer; whoever read the layer's output reads its."""
    node, output = layer.node, layer.node.outputs[0]
    if layer.kind in ("Conv", "ConvTranspose"):
        values = values.reshape(-1, *[1] * (len(layer.shape) - 2))
    raw = gs.Variable(f"{layer.name}/unshifted", dtype=output.dtype, shape=output.shape)
    node.outputs[0] = raw
    constant = gs.Constant(f"{layer.name}/shift", values.astype(layer.array().dtype))
    add = gs.Node("Add", f"{layer.name}/Add", inputs=[raw, constant], outputs=[output])
    place = next(index for index, other in enumerate(model.graph.nodes) if other is node)
    model.graph.nodes.insert(place + 1, add)


def _kernel_size(layer: WeightedLayer) -> int:
    return math.prod(layer.shape[2:]) if layer.kind in ("Conv", "ConvTranspose") else 1
