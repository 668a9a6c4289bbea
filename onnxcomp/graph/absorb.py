"""Per-channel affine maps absorbed into the layer before them.

``BatchNormalization`` (inference form, Ioffe and Szegedy 2015), and Mul, Div, Add, Sub by a constant that is
one value per channel, follow a Conv, ConvTranspose or Gemm as y = f · x + g; then W' = f · W and b' = f · b
+ g are the same layer without them. Computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.bodies import graphs_of_nodes
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.edit import Names, detach, output_ids, sole_consumer
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = ["Absorbed", "absorb_affine", "bias_of", "clip_hard_sigmoids", "obstacle", "per_channel", "set_bias"]

Array = np.ndarray[Any, Any]

_KINDS = ("Conv", "ConvTranspose", "Gemm")
_AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
# Rounded again, a half-precision weight would differ by more than float tolerance.
_WIDE = ("float32", "float64")


@dataclass(frozen=True)
class Absorbed:
    """What became of the affine node after a layer: absorbed, or why it was not."""

    layer_node: gs.Node
    description: str  # the affine node: "BatchNormalization bn1"
    obstacle: str = ""


def absorb_affine(model: Model) -> list[Absorbed]:
    """Absorb whatever follows each layer in its graph, the main one or a body, as far as it goes; edits ``model``.

    A layer of a model-local function is left alone, and so is one whose weight or bias is shared or not constant,
    whose output something else reads, or whose weights are in half precision.
    """
    graph = model.graph
    outputs = output_ids(graph)
    graph_of = graphs_of_nodes(graph)
    names = Names(graph)
    results = []
    for layer in weighted_layers(model):
        if layer.kind not in _KINDS or layer.function:
            continue
        while (follower := sole_consumer(layer.node.outputs[0], outputs)) is not None:
            beside = graph_of.get(id(follower)) is graph_of[id(layer.node)]
            if not beside or follower.op not in _AFFINE or follower.domain:
                break
            affine = _affine(follower, layer)
            if affine is None:
                break
            description = f"{follower.op} {layer_name(follower)}"
            if reason := obstacle(layer):
                results.append(Absorbed(layer.node, description, reason))
                break
            _apply(layer, *affine, names, outputs)
            result = follower.outputs[0]
            detach(follower)
            layer.node.outputs[0] = result
            results.append(Absorbed(layer.node, description))
    return results


def clip_hard_sigmoids(graph: gs.Graph, layers: Iterable[WeightedLayer]) -> None:
    """HardSigmoid(x) = Clip(a · x + b, 0, 1): where it alone follows a layer, the layer computes a · x + b.

    An integer kernel then clips by the levels it has.

    Args:
        graph: the main graph.
        layers: those that may change.
    """
    names, outputs, graph_of = Names(graph), output_ids(graph), graphs_of_nodes(graph)
    for layer in layers:
        follower = sole_consumer(layer.node.outputs[0], outputs)
        if layer.kind not in _KINDS or follower is None or follower.op != "HardSigmoid" or follower.domain:
            continue
        if graph_of.get(id(follower)) is not graph_of[id(layer.node)] or obstacle(layer):
            continue
        channels = _channels(layer)
        slope, offset = float(follower.attrs.pop("alpha", 0.2)), float(follower.attrs.pop("beta", 0.5))
        _apply(layer, np.full(channels, slope), np.full(channels, offset), names, outputs)
        follower.op = "Clip"
        follower.inputs += [gs.Constant(names.new(f"limit_{limit}"), np.array(limit, np.float32)) for limit in (0, 1)]


def obstacle(layer: WeightedLayer) -> str:
    """Why nothing can be absorbed into this layer, or nothing."""
    if layer.quantized:
        return "the weight is quantized already"
    if layer.shared:
        return "the weight is shared with another node or output"
    if str(layer.array().dtype) not in _WIDE:
        return f"its {layer.array().dtype} weights would be rounded again"
    inputs = layer.node.inputs
    if len(inputs) > 2 and inputs[2].name and layer.bias is None:
        return "the bias is computed at run time"
    return ""


# -- what follows ------------------------------------------------------------------------------------------


def _affine(node: gs.Node, layer: WeightedLayer) -> tuple[Array, Array] | None:
    """Factor and offset, one value per output channel each, or None when the node is no such map."""
    channels = _channels(layer)
    if node.op == "BatchNormalization":
        return _batch_normalization(node, layer, channels)
    position = 1 if node.inputs[0] is layer.node.outputs[0] else 0
    if position == 0 and node.op in ("Sub", "Div"):  # constant - x, constant / x
        return None
    value = value_of(node.inputs[position])
    rank = 2 if layer.kind == "Gemm" else len(layer.shape)
    if value is None or (vector := per_channel(value, rank, channels)) is None:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op == "Mul":
        return vector, zeros
    if node.op == "Div":
        return (1.0 / vector, zeros) if np.all(vector != 0) else None
    return ones, vector if node.op == "Add" else -vector


def _batch_normalization(node: gs.Node, layer: WeightedLayer, channels: int) -> tuple[Array, Array] | None:
    if node.inputs[0] is not layer.node.outputs[0] or node.attrs.get("training_mode", 0):
        return None
    if any(tensor.outputs for tensor in node.outputs[1:]) or node.attrs.get("spatial", 1) != 1:
        return None
    parameters = [value_of(tensor) for tensor in node.inputs[1:5]]
    arrays = [np.asarray(value, np.float64) for value in parameters if value is not None]
    if len(arrays) != 4 or any(array.shape != (channels,) for array in arrays):
        return None
    scale, shift, mean, variance = arrays
    factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return (factor, shift - factor * mean) if np.all(np.isfinite(factor)) else None


def per_channel(value: Array, rank: int, channels: int) -> Array | None:
    """A constant as one value per channel, shape (channels,), when it broadcasts over (N, channels, ...) so.

    Args:
        rank: of what it is combined with.
    """
    if value.ndim > rank or value.dtype.kind != "f":
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), (channels,))


def _channels(layer: WeightedLayer) -> int:
    size = layer.shape[layer.out_axis]
    return size * layer.groups if layer.kind == "ConvTranspose" else size


# -- the layer ---------------------------------------------------------------------------------------------


def _apply(layer: WeightedLayer, factor: Array, offset: Array, names: Names, outputs: set[int]) -> None:
    matrix = layer.matrix()
    layer.set_matrix(matrix * factor.reshape(matrix.shape[0], matrix.shape[1], 1))
    set_bias(layer, bias_of(layer, len(factor)) * factor + offset, names, outputs)


def bias_of(layer: WeightedLayer, channels: int) -> Array:
    """What a Conv, ConvTranspose or Gemm adds to each output channel, float64, shape (channels,)."""
    if layer.bias is None:
        return np.zeros(channels)
    beta = float(layer.node.attrs.get("beta", 1.0)) if layer.kind == "Gemm" else 1.0
    return np.broadcast_to(np.asarray(value_of(layer.bias), np.float64).reshape(-1) * beta, (channels,))


def set_bias(layer: WeightedLayer, bias: Array, names: Names, outputs: set[int]) -> None:
    """Let the layer add ``bias``, shape (channels,), to its output channels.

    Args:
        outputs: what ``edit.output_ids`` gave; a bias that is one stays what it is there.
    """
    inputs = layer.node.inputs
    if layer.kind == "Gemm":
        layer.node.attrs.pop("beta", None)
    folded = bias.astype(layer.array().dtype)
    if layer.bias is not None and len(inputs[2].outputs) == 1 and id(inputs[2]) not in outputs:
        assign(inputs[2], folded)
    elif layer.bias is not None or np.any(folded):
        constant = gs.Constant(names.new(f"{layer_name(layer.node)}.bias"), folded)
        if len(inputs) > 2:
            inputs[2] = constant
        else:
            inputs.append(constant)
