"""Upsampling by whole factors: recognized, so that it can be written in faster operators.

ONNX Runtime computes convolutions of integers with the channels last. In that layout Resize works value by value, and
DepthToSpace does so in any. Both are a matter of copying rows of channels there, which is many times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, shape_of, value_of
from onnxcomp.graph.edit import Names
from onnxcomp.graph.inferred import infer_types
from onnxcomp.model import Model

__all__ = ["Upsampling", "name_all_axes", "upsampling"]

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
    """Give each Resize of some axes the scales of all, as it had before operator set 18.

    ONNX Runtime (seen with 1.32) moves the channels of integers last across such a Resize, and then fails to run it.
    """
    nodes = [node for node in model.graph.nodes if node.op == "Resize" and node.domain in _STANDARD]
    if not any("axes" in node.attrs for node in nodes):
        return
    types, names = infer_types(model), Names(model.graph)
    for node in nodes:
        known = types.get(node.inputs[0].name)
        if "axes" not in node.attrs or known is None or known.shape is None:
            continue
        scales, sizes = (value_of(node.inputs[index]) if len(node.inputs) > index else None for index in (2, 3))
        everything = np.ones(len(known.shape), np.float32)
        if scales is not None and scales.size:
            everything[list(node.attrs["axes"])] = scales
            node.inputs[2] = gs.Constant(names.new(f"{node.inputs[2].name}_all"), everything)
        elif sizes is not None and known.static is not None:
            full = np.array(known.static, np.int64)
            full[list(node.attrs["axes"])] = sizes
            node.inputs[3] = gs.Constant(names.new(f"{node.inputs[3].name}_all"), full)
        else:
            continue
        del node.attrs["axes"]


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
