"""Upsampling by whole factors: recognized, so that it can be written in faster operators.

ONNX Runtime computes convolutions of integers with the channels last. In that layout Resize works value by value, and
DepthToSpace does so in any. Both are a matter of copying rows of channels there, which is many times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import PassError
from onnxcomp.graph.constants import is_constant, shape_of, value_of
from onnxcomp.graph.edit import Names
from onnxcomp.graph.inferred import infer_types
from onnxcomp.graph.layers import layer_name
from onnxcomp.model import Model

__all__ = ["Upsampling", "name_all_axes", "upsampling"]

Array = np.ndarray[Any, Any]

_STANDARD = (None, "", "ai.onnx")
_KEEP_CHANNELS = {
    "Add",
    "AveragePool",
    "Clip",
    "HardSigmoid",
    "LeakyRelu",
    "MaxPool",
    "Mul",
    "Relu",
    "Resize",
    "Sigmoid",
}


@dataclass(frozen=True)
class Upsampling:
    """Every pixel of (N, C, H, W) becomes a square.

    Attributes:
        factor: the side of the square.
        channels: of the result.
        shuffled: the channels of a pixel are those of all pixels of the square, row by row; else it is repeated.
    """

    factor: int
    channels: int
    shuffled: bool


def upsampling(node: gs.Node) -> Upsampling | None:
    """What a Resize or DepthToSpace does, if that is such an upsampling and its channels are known."""
    if node.domain not in _STANDARD or node.op not in ("Resize", "DepthToSpace"):
        return None
    return _nearest(node) if node.op == "Resize" else _shuffle(node)


def _shuffle(node: gs.Node) -> Upsampling | None:
    side, channels = int(node.attrs.get("blocksize", 1)), _channels(node.inputs[0])
    if side < 2 or channels is None or channels % side**2 or str(node.attrs.get("mode", "DCR")) != "DCR":
        return None
    return Upsampling(side, channels // side**2, shuffled=True)


def _nearest(node: gs.Node) -> Upsampling | None:
    if "axes" in node.attrs or len(node.inputs) < 3:
        return None
    scales = value_of(node.inputs[2]) if node.inputs[2].name else None
    if scales is None or scales.shape != (4,) or np.any(scales[:2] != 1) or scales[2] != scales[3]:
        return None
    factor, channels = float(scales[2]), _channels(node.inputs[0])
    if channels is None or factor < 2 or factor != int(factor) or not _repeats(node, int(factor)):
        return None
    return Upsampling(int(factor), channels, shuffled=False)


def name_all_axes(model: Model) -> None:
    """Give each Resize of some axes the scales or sizes of all, as it had before operator set 18.

    ONNX Runtime (seen with 1.32) moves the channels of integers last across such a Resize, and then fails to run it.

    Raises:
        PassError: one crops, or keeps the ratio of its axes, which means something else for all of them.
    """
    nodes = [node for node in model.graph.nodes if node.op == "Resize" and node.domain in _STANDARD]
    nodes = [node for node in nodes if "axes" in node.attrs]
    if not nodes:
        return
    types, names = infer_types(model), Names(model.graph)
    for node in nodes:
        if why := _needs_axes(node):
            raise PassError(f"Resize {layer_name(node)} {why} on some axes, which does not run beside integer kernels")
        axes = np.array(node.attrs["axes"], np.int64)
        known = types.get(node.inputs[0].name)
        scales, sizes = (_given(node, index) for index in (2, 3))
        if scales is not None:
            values = value_of(scales)
            if values is None or known is None or known.shape is None:
                continue
            everything = np.ones(len(known.shape), np.float32)
            everything[axes] = values
            node.inputs[2] = gs.Constant(names.new(f"{scales.name}_all"), everything)
        elif sizes is not None:
            node.inputs[3] = _all_sizes(model.graph, node, sizes, axes, names)
        else:
            continue
        del node.attrs["axes"]


def _needs_axes(node: gs.Node) -> str:
    """What a Resize does that it can do on some axes only, or nothing."""
    if str(node.attrs.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        return "keeps the aspect ratio"
    if str(node.attrs.get("coordinate_transformation_mode", "half_pixel")) == "tf_crop_and_resize":
        return "crops"
    return ""


def _given(node: gs.Node, index: int) -> gs.Tensor | None:
    """An optional input, if it is there and not empty."""
    tensor = node.inputs[index] if len(node.inputs) > index and node.inputs[index].name else None
    value = None if tensor is None else value_of(tensor)
    return None if value is not None and not value.size else tensor


def _all_sizes(graph: gs.Graph, node: gs.Node, sizes: gs.Tensor, axes: Array, names: Names) -> gs.Tensor:
    """Those of the input, with these in the places of the axes, as a run tells them."""
    shape, full = (gs.Variable(names.new(f"{sizes.name}_{what}"), np.dtype(np.int64)) for what in ("before", "all"))
    places = gs.Constant(names.new(f"{sizes.name}_axes"), axes)
    added = [
        gs.Node("Shape", names.new(f"{shape.name}_Shape"), inputs=[node.inputs[0]], outputs=[shape]),
        gs.Node("ScatterElements", names.new(f"{full.name}_S"), inputs=[shape, places, sizes], outputs=[full]),
    ]
    position = next(index for index, member in enumerate(graph.nodes) if member is node)
    graph.nodes[position:position] = added
    return full


def _repeats(node: gs.Node, factor: int) -> bool:
    """Whether position i of the result is position i // factor before."""
    if str(node.attrs.get("mode", "nearest")) != "nearest":
        return False
    position = str(node.attrs.get("coordinate_transformation_mode", "half_pixel"))
    rounding = str(node.attrs.get("nearest_mode", "round_prefer_floor"))
    if position == "asymmetric":  # i / factor
        return rounding == "floor" or (rounding == "round_prefer_floor" and factor == 2)
    # (i + 1/2) / factor - 1/2 is less than half a step away from it.
    return position in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer")


def _channels(tensor: gs.Tensor) -> int | None:
    """The second dimension, as declared or as the weights of the convolutions before tell it.

    What is combined has one channel, which is repeated, or as many as the result.
    """
    pending, seen = [tensor], set[int]()
    while pending:
        item = pending.pop()
        node = item.inputs[0] if len(item.inputs) == 1 else None
        shape = shape_of(item)
        if shape is not None and len(shape) == 4 and isinstance(shape[1], int):
            count: int | str | None = shape[1]
        elif node is not None and node.op == "Conv" and node.domain in _STANDARD:
            count = (shape_of(node.inputs[1]) or (None,))[0]
        else:
            count = None
            if node is not None and node.op in _KEEP_CHANNELS and node.domain in _STANDARD and id(item) not in seen:
                pending += [other for other in node.inputs if not is_constant(other)]
        seen.add(id(item))
        if isinstance(count, int) and count > 1:
            return count
    return None
