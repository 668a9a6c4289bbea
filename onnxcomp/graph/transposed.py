"""Transposed convolutions whose kernels do not overlap, as ordinary ones.

Where the stride is the size of the kernel, each input pixel alone makes a square of output pixels: that is a pointwise
convolution with the outputs of all pixels of the square, which DepthToSpace then puts in their places (the sub-pixel
convolution of Shi et al. 2016, "Real-time single image and video super-resolution using an efficient sub-pixel
convolutional neural network", arXiv:1609.05158, and of their note arXiv:1609.07009).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.absorb import obstacle
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import Names, detach, sole_consumer
from onnxcomp.graph.integer_ops import behind_rectifier
from onnxcomp.graph.layers import WeightedLayer, layer_name

__all__ = ["makes_squares", "write_as_convolution", "write_as_transposed"]

Array = np.ndarray[Any, Any]

# Integer kernels for fewer outputs are no faster than the float one that is there.
_LEAST_OUTPUTS = 32


def makes_squares(layer: WeightedLayer) -> bool:
    """Whether the layer is a ConvTranspose of images in which each input pixel makes a square of its own.

    And whether it has outputs enough for its form as a convolution to pay.
    """
    attributes, shape = layer.node.attrs, layer.shape
    if layer.kind != "ConvTranspose" or layer.groups != 1 or len(shape) != 4 or shape[2] != shape[3] or shape[2] < 2:
        return False
    if list(attributes.get("strides", [1, 1])) != list(shape[2:]):
        return False
    if shape[1] * shape[2] ** 2 < _LEAST_OUTPUTS:
        return False
    padded = any(attributes.get("pads", [])) or any(attributes.get("output_padding", []))
    spread = any(step != 1 for step in attributes.get("dilations", []))
    placed = "output_shape" in attributes or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return not (padded or spread or placed or obstacle(layer))


def write_as_convolution(graph: gs.Graph, layer: WeightedLayer, names: Names, outputs: set[int]) -> None:
    """Replace a layer that ``makes_squares``, in its graph; a rectifier behind it comes before DepthToSpace.

    The node stays, with another operator, and keeps the name that reports give it.
    """
    node, weight = layer.node, np.asarray(layer.array())
    ins, outs, side, _ = weight.shape
    node.name = layer_name(node)
    rows = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(side * side * outs, ins, 1, 1)
    node.inputs[1] = gs.Constant(names.new(f"{layer.weight.name}_squares"), rows)
    if layer.bias is not None:
        bias = np.tile(np.asarray(value_of(layer.bias)).reshape(-1), side * side)
        node.inputs[2] = gs.Constant(names.new(f"{layer.weight.name}_bias"), bias)
    result = behind_rectifier(node, outputs, {id(member) for member in graph.nodes})
    last = result.inputs[0]
    stacked = gs.Variable(names.new(f"{result.name}_stacked"), result.dtype)
    last.outputs[0] = stacked
    if last is not node:
        node.outputs[0].shape = None  # it has other channels now, and no more pixels than the input
    node.op = "Conv"
    node.attrs.clear()
    attributes = {"blocksize": side, "mode": "DCR"}
    shuffle = gs.Node("DepthToSpace", names.new(f"{result.name}_D"), attributes, inputs=[stacked], outputs=[result])
    position = next(index for index, member in enumerate(graph.nodes) if member is last)
    graph.nodes.insert(position + 1, shuffle)


def write_as_transposed(graph: gs.Graph, layer: WeightedLayer, names: Names, outputs: set[int]) -> bool:
    """The inverse of ``write_as_convolution``, which is faster in float; returns whether the layer had that form."""
    node = layer.node
    members = {id(member) for member in graph.nodes}
    last = behind_rectifier(node, outputs, members).inputs[0]
    shuffle = sole_consumer(last.outputs[0], outputs)
    if shuffle is None or id(shuffle) not in members:
        return False
    if shuffle.op != "DepthToSpace" or str(shuffle.attrs.get("mode", "DCR")) != "DCR":
        return False
    if layer.kind != "Conv" or layer.groups != 1 or layer.shape[2:] != (1, 1) or node.attrs or obstacle(layer):
        return False
    side, ins = int(shuffle.attrs["blocksize"]), layer.shape[1]
    bias = None if layer.bias is None else np.asarray(value_of(layer.bias)).reshape(side * side, -1)
    if bias is not None and np.any(bias != bias[0]):
        return False
    weight = np.asarray(layer.array()).reshape(side, side, -1, ins).transpose(3, 2, 0, 1)
    node.inputs[1] = gs.Constant(names.new(f"{layer.weight.name}_transposed"), np.ascontiguousarray(weight))
    if bias is not None:
        node.inputs[2] = gs.Constant(names.new(f"{layer.weight.name}_bias"), bias[0].copy())
    node.op = "ConvTranspose"
    node.attrs["strides"] = [side, side]
    node.outputs[0].shape = None  # where a rectifier follows, it has fewer channels now, and more pixels
    result = shuffle.outputs[0]
    detach(shuffle)
    last.outputs[0] = result
    return True
