"""Weights of few bits as constants of a graph, and the nodes that restore them.

ONNX Runtime computes these nodes once, when it loads the model, because all they read is constant. What comes out is a
constant like any other: integer kernels read it, and float kernels too. (DequantizeLinear of a constant it would
compute in every run.)
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.graph.edit import Names
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rows import RowLayout
from onnxcomp.linalg.codebooks import Codebooks
from onnxcomp.linalg.weights import QuantizedWeights

__all__ = ["Restorer", "obstacle_to_codes", "obstacle_to_few_bits"]

Array = np.ndarray[Any, Any]

_TYPED_OPSETS = {4: 21, 2: 25}  # have types of so many bits
_TYPES = {4: ml_dtypes.int4, 2: ml_dtypes.int2}
_UNSIGNED = {8: np.uint8, 4: ml_dtypes.uint4, 2: ml_dtypes.uint2}
_PACKED_OPSET = 10  # has Mod
_SPLIT = 64  # places of rows in codebooks that are saved, to be worth a Reshape
_FLOAT, _INT8, _INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.INT32


def obstacle_to_codes(layer: WeightedLayer, bits: int, opset: int, width: int = 1) -> str:
    """Why numbers of 8, 4 or 2 bits cannot be stored for a layer of a graph with this operator set, or nothing.

    Args:
        width: weights that a number stands for.
    """
    if bits < 8 and opset < _TYPED_OPSETS[bits] and int(np.prod(layer.shape)) // width % (8 // bits):
        return f"codes of {bits} bits, {8 // bits} to a byte, do not fill the last one"
    return ""


def obstacle_to_few_bits(layer: WeightedLayer, bits: int, opset: int) -> str:
    """Why codes of 4 bits or 2 cannot be stored for a layer of a graph with this operator set, or nothing."""
    if opset < _PACKED_OPSET:
        return f"operator set {opset} cannot take codes out of a byte"
    return obstacle_to_codes(layer, bits, opset)


class Restorer:
    """Makes the constants and nodes of one graph; whoever asks for them puts the nodes in their places.

    Codes of 4 bits are of type INT4 from operator set 21 on, those of 2 bits of INT2 from 25 on; else two or four are
    in each byte of a UINT8 tensor, the first in the lowest bits, shifted by 8 or 2 to be above zero.
    """

    def __init__(self, names: Names, opset: int) -> None:
        self._names = names
        self._opset = opset
        self._numbers: dict[tuple[str, int | tuple[int, ...]], gs.Constant] = {}
        self._tables: dict[int, gs.Constant] = {}

    def integers(self, weights: QuantizedWeights, layout: RowLayout, name: str) -> tuple[gs.Tensor, list[gs.Node]]:
        """What an integer kernel reads, int8 in this layout, and the nodes that make it."""
        if weights.grid.bits == 8:
            return gs.Constant(self._names.new(name + "_int8"), layout.array(weights.codes)), []
        nodes: list[gs.Node] = []
        return self._restored(nodes, weights, layout, name + "_int8", _INT8), nodes

    def floats(self, weights: QuantizedWeights, layout: RowLayout, name: str) -> tuple[gs.Tensor, list[gs.Node]]:
        """The weight, float32, and the nodes that make it."""
        nodes: list[gs.Node] = []
        if weights.grid.bits == 8:
            codes = gs.Constant(self._names.new(name + "_int8"), layout.array(weights.codes))
            real = self._node(nodes, "Cast", [codes], name + "_codes", to=_FLOAT)
        else:
            real = self._restored(nodes, weights, layout, name + "_codes", _FLOAT)
        scales = gs.Constant(self._names.new(name + "_scales"), layout.scales(weights.scales))
        return _typed(self._node(nodes, "Mul", [real, scales], name + "_restored"), np.float32, layout.shape), nodes

    def halves(self, array: Array, name: str) -> tuple[gs.Tensor, list[gs.Node]]:
        """The weight rounded to float16, as float32."""
        nodes: list[gs.Node] = []
        half = gs.Constant(self._names.new(name + "_float16"), array.astype(np.float16))
        restored = self._node(nodes, "Cast", [half], name + "_restored", to=_FLOAT)
        return _typed(restored, np.float32, array.shape), nodes

    def shared(self, books: Codebooks, codes: Array, layout: RowLayout, name: str) -> tuple[gs.Tensor, list[gs.Node]]:
        """The weight, float32, of codes (channels, inputs) that count values of codebooks, and the nodes.

        Where books have equally many channels, these get an axis of their own, so that a place is stored for each book
        and not for each channel. Vectors lie along the inputs, so channels come first until all are picked.
        """
        nodes: list[gs.Node] = []
        number, size, width = books.values.shape
        place = layout if width == 1 else RowLayout(codes.shape, (0,))
        array = place.array(codes)
        first = place.scales(books.book_of(len(codes)) * size)
        if number > 1 and len(codes) == number * books.rows and len(codes) - number >= _SPLIT:
            array, first = place.split(array, number), np.take(place.split(first, number), [0], place.kept[0] + 1)
        index = self._numbers_of(nodes, array, {4: 2, 16: 4}.get(size, 8), name + "_codes")
        if number > 1:
            offsets = gs.Constant(self._names.new(name + "_books"), first.astype(np.int32))
            index = self._node(nodes, "Add", [index, offsets], name + "_places")
        shape = (number * size, width)[: 1 if width == 1 else 2]
        values = gs.Constant(self._names.new(name + "_codebook"), books.values.reshape(shape).astype(np.float32))
        restored = self._node(nodes, "Gather", [values, index], name + "_restored", axis=0)
        moved = layout.shape if width == 1 else tuple(layout.shape[axis] for axis in layout.order)
        if width > 1 or array.shape != moved:
            restored = self._node(nodes, "Reshape", [restored, self._number(moved, np.int64)], name)
        if width > 1 and (back := np.argsort(layout.order).tolist()) != sorted(back):
            restored = self._node(nodes, "Transpose", [restored], name, perm=back)
        return _typed(restored, np.float32, layout.shape), nodes

    def _numbers_of(self, nodes: list[gs.Node], codes: Array, bits: int, name: str) -> gs.Tensor:
        """Codes from zero on, of so many bits, as int32.

        Those of which a byte holds several are looked up in a table of all bytes: ONNX Runtime does that faster than
        it divides, and operator sets before Mod can do it too.
        """
        if bits == 8 or self._has_type(bits):
            packed = gs.Constant(self._names.new(f"{name}_uint{bits}"), codes.astype(_UNSIGNED[bits]))
            return self._node(nodes, "Cast", [packed], name, to=_INT32)
        packed = gs.Constant(self._names.new(f"{name}_uint{bits}"), _bytes(codes.reshape(-1), bits))
        whole = self._node(nodes, "Cast", [packed], name + "_bytes", to=_INT32)
        parts = self._node(nodes, "Gather", [self._parts(bits), whole], name + "_parts", axis=0)
        shaped = self._node(nodes, "Reshape", [parts, self._number(codes.shape, np.int64)], name + "_shaped")
        return self._node(nodes, "Cast", [shaped], name, to=_INT32)

    def _parts(self, bits: int) -> gs.Constant:
        """The numbers of so many bits that each byte holds, (256, numbers)."""
        if bits not in self._tables:
            table = np.arange(256)[:, None] // np.array(_shifts(bits)) % 2**bits
            self._tables[bits] = gs.Constant(self._names.new(f"parts_of_{bits}_bits"), table.astype(np.uint8))
        return self._tables[bits]

    def _restored(
        self, nodes: list[gs.Node], weights: QuantizedWeights, layout: RowLayout, name: str, target: int
    ) -> gs.Tensor:
        """Codes of 4 bits or 2 times their factors."""
        dtype = np.int8 if target == _INT8 else np.float32
        if weights.grid.factors is None:
            codes = self._codes(nodes, layout.array(weights.codes), weights.grid.bits, name, target)
            return _typed(codes, dtype, layout.shape)
        middle = _INT8 if self._has_type(weights.grid.bits) else _INT32
        split, alone = layout.blocks(weights.codes, weights.grid.factors)
        pair = [self._codes(nodes, split, weights.grid.bits, name, middle), self._factors(nodes, alone, name, middle)]
        scaled = self._node(nodes, "Mul", pair, name + "_scaled")
        result = self._node(nodes, "Reshape", [scaled, self._number(layout.shape, np.int64)], name)
        if target != middle:
            result = self._node(nodes, "Cast", [result], name, to=target)
        return _typed(result, dtype, layout.shape)

    def _has_type(self, bits: int) -> bool:
        return self._opset >= _TYPED_OPSETS[bits]

    def _codes(self, nodes: list[gs.Node], codes: Array, bits: int, name: str, target: int) -> gs.Tensor:
        """Of so many bits, as numbers of a type."""
        if self._has_type(bits):
            packed = gs.Constant(self._names.new(f"{name}_int{bits}"), codes.astype(_TYPES[bits]))
            return self._node(nodes, "Cast", [packed], name, to=target)
        zero = 2 ** (bits - 1)
        raised = self._parts_of_bytes(nodes, codes.reshape(-1) + zero, bits, name)
        flat = self._node(nodes, "Sub", [raised, self._number(zero)], name)
        shaped = self._node(nodes, "Reshape", [flat, self._number(codes.shape, np.int64)], name)
        return shaped if target == _INT32 else self._node(nodes, "Cast", [shaped], name, to=target)

    def _factors(self, nodes: list[gs.Node], factors: Array, name: str, target: int) -> gs.Tensor:
        """From 1 to 15."""
        dtype = ml_dtypes.uint4 if self._has_type(4) else np.uint8
        packed = gs.Constant(self._names.new(name + "_factors"), factors.astype(dtype))
        return self._node(nodes, "Cast", [packed], name + "_factors", to=target)

    def _parts_of_bytes(self, nodes: list[gs.Node], values: Array, bits: int, name: str) -> gs.Tensor:
        """Numbers of so many bits, several to a byte, as int32, (bytes, codes of a byte)."""
        packed = gs.Constant(self._names.new(f"{name}_uint{bits}"), _bytes(values, bits)[:, None])
        whole = self._node(nodes, "Cast", [packed], name + "_bytes", to=_INT32)
        shifted = self._node(nodes, "Div", [whole, self._number(_shifts(bits))], name + "_shifted")
        return self._node(nodes, "Mod", [shifted, self._number(2**bits)], name + "_raised")

    def _number(self, value: int | tuple[int, ...], dtype: Any = np.int32) -> gs.Constant:
        key = (str(np.dtype(dtype)), value)
        if key not in self._numbers:
            array = np.array(value, dtype)
            self._numbers[key] = gs.Constant(self._names.new("_".join(map(str, array.reshape(-1)))), array)
        return self._numbers[key]

    def _node(self, nodes: list[gs.Node], op: str, inputs: list[gs.Tensor], name: str, **attrs: Any) -> gs.Tensor:
        output = gs.Variable(self._names.new(name))
        nodes.append(gs.Node(op, self._names.new(f"{output.name}_{op}"), attrs, inputs=inputs, outputs=[output]))
        return output


def _shifts(bits: int) -> tuple[int, ...]:
    """What the numbers of so many bits in a byte are times, the first in the lowest bits."""
    return tuple(2**place for place in range(0, 8, bits))


def _bytes(values: Array, bits: int) -> Array:
    """Numbers of so many bits, several to a byte."""
    bytes_: Array = values.astype(np.uint8).reshape(-1, 8 // bits) @ np.array(_shifts(bits), np.uint8)
    return bytes_


def _typed(tensor: gs.Tensor, dtype: Any, shape: tuple[int, ...]) -> gs.Tensor:
    tensor.dtype, tensor.shape = np.dtype(dtype), list(shape)
    return tensor
