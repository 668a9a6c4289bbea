"""Grids that tensors have in a model already, from QuantizeLinear and DequantizeLinear that somebody else wrote."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import sole_consumer

__all__ = ["GivenGrid", "given_grid", "grid_beside", "is_quantized_behind"]

_STANDARD = (None, "", "ai.onnx")


@dataclass(frozen=True)
class GivenGrid:
    """Of a tensor that DequantizeLinear makes of integers, with one scale for all.

    Attributes:
        scale: between neighbouring levels.
        zero: the level of 0 when the lowest one counts as 0, as it does where the integers are unsigned.
        signed: whether the integers are int8, not uint8.
        dequantize: the node.
    """

    scale: float
    zero: int
    signed: bool
    dequantize: gs.Node

    @property
    def codes(self) -> gs.Tensor:
        """The integers."""
        tensor: gs.Tensor = self.dequantize.inputs[0]
        return tensor


def given_grid(tensor: gs.Tensor) -> GivenGrid | None:
    """The grid of what a DequantizeLinear computes, weights aside."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    if node is None or not _is(node, "DequantizeLinear") or is_constant(node.inputs[0]):
        return None
    return _grid(node)


def grid_beside(tensor: gs.Tensor, members: Container[int]) -> GivenGrid | None:
    """The grid on which some readers get the tensor, through QuantizeLinear and DequantizeLinear.

    Args:
        tensor: any.
        members: ``id`` of the nodes of the graph that both must stand in.
    """
    pairs = (
        (quantize, dequantize)
        for quantize in tensor.outputs
        if _is(quantize, "QuantizeLinear") and quantize.inputs[0] is tensor
        for dequantize in quantize.outputs[0].outputs
        if _is(dequantize, "DequantizeLinear")
    )
    for pair in pairs:
        movable = all(isinstance(item, gs.Constant) for node in pair for item in node.inputs[1:])
        grids = {_scalar_grid(node) for node in pair}
        if movable and len(grids) == 1 and all(id(node) in members for node in pair):
            return _grid(pair[1])
    return None


def is_quantized_behind(tensor: gs.Tensor, outputs: set[int], members: Container[int]) -> bool:
    """Whether nothing but a QuantizeLinear with one scale sees the tensor, so that it needs no other.

    Args:
        tensor: any.
        outputs: what ``edit.output_ids`` gave.
        members: ``id`` of the nodes of the graph that it must stand in.
    """
    node = sole_consumer(tensor, outputs)
    if node is None or id(node) not in members or not _is(node, "QuantizeLinear"):
        return False
    return _scalar_grid(node) is not None


def _is(node: gs.Node, op: str) -> bool:
    return node.op == op and node.domain in _STANDARD and len(node.inputs) > 1


def _grid(node: gs.Node) -> GivenGrid | None:
    found = _scalar_grid(node)
    if found is None:
        return None
    scale, zero, dtype = found
    return GivenGrid(scale, zero + 128 if dtype == "int8" else zero, dtype == "int8", node)


def _scalar_grid(node: gs.Node) -> tuple[float, int, str] | None:
    """Scale, zero point and type of the integers of a QuantizeLinear or DequantizeLinear to 8 bits."""
    values = [value_of(tensor) if tensor.name else None for tensor in node.inputs[1:]]
    scale, zero = values[0], values[1] if len(values) > 1 else None
    if scale is None or scale.size != 1 or str(scale.dtype) != "float32" or not scale.reshape(-1)[0] > 0:
        return None
    if zero is None or zero.size != 1:  # it would tell the type of the integers
        return None
    dtype = str(zero.dtype)
    return (float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), dtype) if dtype in ("uint8", "int8") else None
