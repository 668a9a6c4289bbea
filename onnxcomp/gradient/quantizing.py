"""Straight-through derivatives of QuantizeLinear and DequantizeLinear.

The gradient of a quantized tensor is carried in units of its codes, as if they were real numbers. Both rules together
are those of learned step sizes (Esser et al. 2020, arXiv:1902.08153): with v = x / scale + zero point and codes
c = round(v) held in their range, the derivative of (c - zero point) scale by x is 1 where v lies in the range, else 0;
that by scale is c - zero point, less v - zero point where v lies in the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Shape, Tape

__all__: list[str] = []

_TYPES = onnx.TensorProto
_BITS = {f"{sign}INT{bits}": bits for sign in ("", "U") for bits in (2, 4, 8, 16)}


@dataclass(frozen=True)
class _Grid:
    """How scales lie over a tensor: one, one for each position of an axis, or one for each block of it."""

    shape: Shape
    scale: Shape
    axis: int
    block: int

    @classmethod
    def of(cls, operation: Operation) -> _Grid:
        shape, scale = operation.shape(), operation.shape(1)
        axis, block = operation.axis(1), int(operation.attr("block_size", 0))
        if block and shape[axis] % block:
            raise NotDifferentiableError("its last block is not whole")
        return cls(shape, scale, axis, block)

    def spread(self, tape: Tape, tensor: str) -> str:
        """A tensor of the shape of the scales, laid so that it is broadcast over the values."""
        if math.prod(self.scale) == 1 and not self.block:
            return tape.reshape(tensor, []) if self.scale else tensor
        if not self.block:
            return tape.reshape(tensor, [-1 if axis == self.axis else 1 for axis in range(len(self.shape))])
        apart = [*self.scale[: self.axis + 1], self.block, *self.scale[self.axis + 1 :]]
        single = [1 if axis == self.axis + 1 else size for axis, size in enumerate(apart)]
        return tape.reshape(tape.broadcast(tape.reshape(tensor, single), tuple(apart)), self.shape)

    def sums(self, tape: Tape, tensor: str) -> str:
        """Sums of a tensor of the shape of the values over what shares a scale."""
        if self.block:
            apart = [*self.scale[: self.axis + 1], self.block, *self.scale[self.axis + 1 :]]
            return tape.reduce_sum(tape.reshape(tensor, apart), [self.axis + 1], keepdims=False)
        if math.prod(self.scale) == 1:
            return tape.reshape(tape.reduce_sum(tensor, range(len(self.shape)), keepdims=False), self.scale)
        return tape.reduce_sum(tensor, [axis for axis in range(len(self.shape)) if axis != self.axis], keepdims=False)


@register("DequantizeLinear")
def dequantize(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of y = (codes - zero point) scale: by codes, scale; by scale, codes - zero point."""
    grid = _Grid.of(operation)
    by_codes = tape.emit("Mul", grad, grid.spread(tape, operation.input(1)))
    by_scale = None
    if 1 in operation.wanted:
        codes = tape.emit("Cast", operation.input(), to=_TYPES.FLOAT)
        if operation.has(2):
            codes = tape.emit("Sub", codes, grid.spread(tape, tape.emit("Cast", operation.input(2), to=_TYPES.FLOAT)))
        by_scale = grid.sums(tape, tape.emit("Mul", grad, codes))
    return [by_codes, by_scale]


@register("QuantizeLinear")
def quantize(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of codes = x / scale + zero point: by x, 1 / scale; by scale, -x / scale². Both where that is in the range."""
    grid = _Grid.of(operation)
    low, high = _range(operation)
    scale = grid.spread(tape, operation.input(1))
    value = tape.emit("Div", operation.input(), scale)
    if operation.has(2):
        point = grid.spread(tape, tape.emit("Cast", operation.input(2), to=_TYPES.FLOAT))
        value = tape.emit("Add", value, point)
    inside = tape.between(value, tape.number(low), tape.number(high))
    by_x = tape.emit("Div", tape.emit("Mul", grad, inside), scale)
    by_scale = None
    if 1 in operation.wanted:
        product = grid.sums(tape, tape.emit("Mul", by_x, operation.input()))
        by_scale = tape.emit("Neg", tape.emit("Div", product, operation.input(1)))
    return [by_x, by_scale]


def _range(operation: Operation) -> tuple[float, float]:
    """Lowest and highest code."""
    kind = int(operation.attr("output_dtype", 0)) or operation.types.get(operation.output(), _TYPES.UINT8)
    name = _TYPES.DataType.Name(kind)
    if name not in _BITS:
        raise NotDifferentiableError(f"codes of type {name} are not covered")
    bits = _BITS[name]
    if name.startswith("U"):
        return 0.0, float(2**bits - 1)
    return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
