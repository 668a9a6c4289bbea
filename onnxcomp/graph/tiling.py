"""The weights of a model as matrices to be tiled, and the dependency groups that move their lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.masks import kept_mask
from onnxcomp.linalg.coupling import Binding, Operand
from onnxcomp.linalg.tiles import Block, fitted_block

__all__ = ["nonzero", "operands_of", "salience", "untileable"]

Array = np.ndarray[Any, Any]

_LARGEST = 1e15  # sums of squares are to stay within float32


def salience(layer: WeightedLayer) -> Array:
    """|w| summed over the kernel: (outputs, inputs), float32."""
    weight = np.abs(_kernels(layer).astype(np.float32, copy=False))
    summed: Array = weight.sum(axis=2)
    return summed


def nonzero(layer: WeightedLayer) -> Array:
    """Whether any weight of the kernel differs from zero: (outputs, inputs), boolean."""
    different: Array = (_kernels(layer) != 0).any(axis=2)
    return different


def _kernels(layer: WeightedLayer) -> Array:
    """The weight as (outputs, inputs, kernel)."""
    weight = np.moveaxis(layer.array(), (layer.out_axis, layer.in_axis), (0, 1))
    return weight.reshape(*weight.shape[:2], -1)


def untileable(layer: WeightedLayer) -> str | None:
    """Why a layer's weight is no matrix that could be cut into tiles, or None."""
    if layer.kind == "other":
        return f"{layer.op} has no weight matrix whose channels are known"
    if layer.groups > 1:
        return "a grouped or depthwise kernel has no tiles of its own"
    if layer.nested:
        return f"it lies {layer.place}, where channels are not followed"
    if layer.quantized:
        return "its weight is quantized already"
    if layer.shared:
        return "its weight is shared"
    if min(layer.shape) == 0:
        return "its weight is empty"
    if not float(np.abs(layer.array()).max()) < _LARGEST:  # NaN is not, either
        return "its weight holds values that are not finite, or too large to add up"
    return None


def operands_of(
    layers: Sequence[WeightedLayer], groups: Sequence[Group], block: Block
) -> tuple[list[Operand], list[WeightedLayer]]:
    """The layers that some group moves, as operands of ``match_coupled``.

    Of a layer that is sparse already, as many tiles are to be masked as weights are zero.

    Args:
        layers: those that can be tiled.
        groups: those that may be permuted; their position is their number in the bindings.
        block: outputs and inputs of a tile; smaller for layers that it would not cut.

    Returns:
        Operands, and the layer of each.
    """
    bindings: dict[tuple[int, bool], list[Binding]] = {}
    for number, group in enumerate(groups):
        for slot in group.slots:
            layer = slot.layer
            if layer is not None and slot.index == layer.weight_index and slot.role in ("out", "in"):
                bindings.setdefault((id(slot.node), slot.role == "in"), []).append(Binding(number, slot.positions))
    operands, tiled = [], []
    for layer in layers:
        rows, columns = (tuple(bindings.get((id(layer.node), side), ())) for side in (False, True))
        if rows or columns:
            matrix = salience(layer)
            weights = layer.array().size / matrix.size
            kept = kept_mask(layer)
            rate = None if kept is None else 1.0 - float(kept.mean())
            operands.append(Operand(matrix, rows, columns, fitted_block(matrix.shape, block), weights, rate=rate))
            tiled.append(layer)
    return operands, tiled
