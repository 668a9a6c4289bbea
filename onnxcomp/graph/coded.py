"""Weights that are restored from codes: read as codes on a grid, and written back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import assign, is_constant, value_of
from onnxcomp.graph.stored import is_small_integer, producer_of
from onnxcomp.linalg.code_grid import CodeGrid
from onnxcomp.model import Model

__all__ = ["CodedBias", "CodedWeight", "coded_biases", "coded_weights"]

Array = np.ndarray[Any, Any]

_READERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Transpose", "Reshape")
_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_FEW = 15  # codes of so many levels may all be used
_ROOM = 8.0  # times the largest bias
_LARGEST = 2.0**31 - 2**7  # that float32 holds


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A constant tensor that is made of codes.

    Attributes:
        tensor: float32, what is restored.
        codes: in its layout, whole numbers as float32, the zero point taken off.
        grid: what they count.
    """

    tensor: gs.Variable
    codes: Array
    grid: CodeGrid
    _scale: gs.Tensor
    _store: Callable[[Array], None]

    @property
    def value(self) -> Array:
        """The weight, float32."""
        value: Array = (self.codes * self.grid.factors * self.grid.scales).astype(np.float32)
        return value

    def write(self, codes: Array, scales: Array) -> None:
        """Replace codes and scales, of the shapes that they have."""
        stored = value_of(self._scale)
        assert stored is not None
        self._store(codes)
        assign(self._scale, scales.reshape(stored.shape).astype(stored.dtype))


@dataclass(frozen=True, eq=False)
class CodedBias:
    """A bias in whole numbers on the grid of an integer kernel's sums.

    Attributes:
        tensor: float32, what is restored.
        weight: the tensor whose scales the bias's follow.
    """

    tensor: gs.Variable
    weight: gs.Tensor

    @property
    def value(self) -> Array:
        """The bias, float32."""
        codes, scale = (value_of(item) for item in self._node.inputs[:2])
        assert codes is not None
        value: Array = (codes * np.asarray(scale, np.float64)).astype(np.float32)
        return value

    def write(self, value: Array, stretch: Array) -> None:
        """Replace the bias, for scales of the weight that are so many times what they were."""
        codes, scale = self._node.inputs[:2]
        scales = (self._scales * stretch.reshape(-1)).astype(self._scales.dtype)
        counts = np.divide(value, scales, out=np.zeros(value.shape), where=scales > 0, dtype=np.float64)
        assign(scale, scales)
        assign(codes, np.rint(np.clip(counts, -_LARGEST, _LARGEST)).astype(np.int32))

    @property
    def movable(self) -> Array:
        """Which elements 32 bits hold wherever training takes them: those of channels without weights have no room."""
        room: Array = self._scales.astype(np.float64) * _LARGEST >= _ROOM * max(1.0, float(np.abs(self.value).max()))
        return np.broadcast_to(room, self.value.shape)

    @property
    def _scales(self) -> Array:
        scales = value_of(self._node.inputs[1])
        assert scales is not None
        return scales

    @property
    def _node(self) -> gs.Node:
        node: gs.Node = self.tensor.inputs[0]
        return node


def coded_weights(model: Model) -> list[CodedWeight]:
    """Weights of layers of the main graph that DequantizeLinear, or Cast and Mul, restore from constant codes.

    Left out are those with scales of blocks, with several readers of their codes or scales, and tables.
    """
    found = (_coded(tensor) for tensor in _inputs(model, _READERS, slice(0, 2)))
    return [weight for weight in found if weight is not None]


def coded_biases(model: Model) -> list[CodedBias]:
    """Biases of layers of the main graph in 32 bits with a scale for each channel, each of one layer."""
    found = []
    for tensor in _inputs(model, _WITH_BIAS, slice(2, 3)):
        node = producer_of(tensor)
        if node is None or node.op != "DequantizeLinear" or len(tensor.outputs) != 1:
            continue
        constants = [value_of(item) for item in node.inputs]
        if any(value is None for value in constants) or str(constants[0].dtype) != "int32":  # type: ignore[union-attr]
            continue
        # One scale for all channels could not follow those of the weight.
        if all(len(item.outputs) == 1 for item in node.inputs[:2]) and constants[1].shape == constants[0].shape:  # type: ignore[union-attr]
            found.append(CodedBias(tensor, tensor.outputs[0].inputs[1]))
    return found


def _inputs(model: Model, ops: tuple[str, ...], positions: slice) -> Iterator[gs.Variable]:
    """Computed tensors that nodes of the main graph read there, each once."""
    seen: set[int] = set()
    for node in model.graph.nodes:
        for tensor in node.inputs[positions] if node.op in ops else ():
            if id(tensor) not in seen and not is_constant(tensor) and producer_of(tensor) is not None:
                seen.add(id(tensor))
                yield tensor


@dataclass(frozen=True, eq=False)
class _Integers:
    """A tensor of integers: codes times factors, which codes its type holds, and how to store others."""

    codes: Array
    factors: Array
    limits: tuple[int, int]
    store: Callable[[Array], None]

    def reshaped(self, shape: tuple[int, ...]) -> _Integers:
        before, store = self.codes.shape, self.store
        factors = np.broadcast_to(self.factors, before).reshape(shape) if self.factors.size > 1 else self.factors
        return _Integers(self.codes.reshape(shape), factors, self.limits, lambda codes: store(codes.reshape(before)))


def _coded(tensor: gs.Variable) -> CodedWeight | None:
    """None where a tensor is not made of codes, or not in a way that is known."""
    node = producer_of(tensor)
    if node is None:
        return None
    if node.op == "DequantizeLinear":
        return _dequantized(tensor, node)
    if node.op == "Mul":
        codes, scale = node.inputs
        producer = producer_of(codes)
        restored = _integers(codes) if producer is not None and producer.op in ("Cast", "Reshape") else None
        scales = value_of(scale)
        if restored is not None and scales is not None and scales.dtype == np.float32 and len(scale.outputs) == 1:
            return _weight(tensor, restored, scales, scale)
    return None


def _dequantized(tensor: gs.Variable, node: gs.Node) -> CodedWeight | None:
    scale = node.inputs[1]
    restored, scales = _integers(node.inputs[0]), value_of(scale)
    if restored is None or scales is None or scales.dtype != np.float32 or len(scale.outputs) != 1:
        return None
    if node.attrs.get("block_size", 0) or scales.ndim > 1:
        return None
    rank, axis = restored.codes.ndim, int(node.attrs.get("axis", 1))
    along = [-1 if place == axis % rank else 1 for place in range(rank)] if scales.size > 1 else [1] * rank
    point = value_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.int8)
    if point is None:
        return None
    zero = point.astype(np.float32).reshape(along if point.size > 1 else [1] * rank)
    return _weight(tensor, restored, scales.reshape(along), scale, zero)


def _weight(
    tensor: gs.Variable, integers: _Integers, scales: Array, scale: gs.Tensor, zero: Array | float = 0.0
) -> CodedWeight:
    codes: Array = integers.codes.astype(np.float32) - np.float32(zero)
    low, high = (np.asarray(limit, np.float32) - np.float32(zero) for limit in integers.limits)
    if integers.limits[1] - integers.limits[0] > _FEW:
        # Of 8 bits a channel may use fewer levels, so that sums of its products fit 16 bits.
        axes = tuple(axis for axis in range(codes.ndim) if scales.ndim <= axis or scales.shape[axis] == 1)
        most = np.abs(codes).max(axis=axes, keepdims=True, initial=0.0)
        low, high = np.maximum(low, -most), np.minimum(high, most)
    grid = CodeGrid(scales, integers.factors.astype(np.float32), low, high)

    def store(changed: Array) -> None:
        integers.store(changed + np.float32(zero))

    return CodedWeight(tensor, codes, grid, scale, store)


def _integers(tensor: gs.Tensor) -> _Integers | None:
    """A tensor that nodes of ``packed``, or none at all, make of constant codes that nobody else reads."""
    if is_constant(tensor):
        return _stored(tensor)
    node = producer_of(tensor)
    if node is None or len(tensor.outputs) != 1:
        return None
    if node.op == "Cast":
        return _integers(node.inputs[0])
    if node.op == "Reshape":
        inner, shape = _integers(node.inputs[0]), value_of(node.inputs[1])
        return None if inner is None or shape is None else inner.reshaped(tuple(map(int, shape)))
    if node.op == "Mul":
        inner, factors = _integers(node.inputs[0]), _factors(node.inputs[1])
        return None if inner is None or factors is None else replace(inner, factors=factors)
    return _packed(node) if node.op == "Sub" else None


def _stored(tensor: gs.Tensor) -> _Integers | None:
    value = value_of(tensor)
    if value is None or not is_small_integer(tensor) or len(tensor.outputs) != 1 or value.ndim < 2:
        return None
    dtype = value.dtype
    limits = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]

    def store(codes: Array) -> None:
        assign(tensor, codes.astype(np.int8 if str(dtype).startswith("int") else np.uint8).astype(dtype))

    return _Integers(value.astype(np.float32), np.ones(1, np.float32), (int(limits.min), int(limits.max)), store)


def _factors(tensor: gs.Tensor) -> Array | None:
    """A constant of small integers, behind a Cast perhaps."""
    node = producer_of(tensor)
    if not is_constant(tensor) and node is not None and node.op == "Cast":
        tensor = node.inputs[0]
    value = value_of(tensor)
    return None if value is None or not is_small_integer(tensor) else value.astype(np.float32)


def _packed(node: gs.Node) -> _Integers | None:
    """Codes of which a byte holds several: Sub(Mod(Div(Cast(bytes), shifts), count), zero)."""
    chain, tensor = [node], node.inputs[0]
    for op in ("Mod", "Div", "Cast"):
        producer = producer_of(tensor)
        if producer is None or producer.op != op:
            return None
        chain.append(producer)
        tensor = producer.inputs[0]
    zero, count, shifts = (value_of(item.inputs[1]) for item in chain[:3])
    stored = value_of(tensor)
    if zero is None or count is None or shifts is None or stored is None or stored.dtype != np.uint8:
        return None
    if len(tensor.outputs) != 1 or chain[3].attrs.get("to") != onnx.TensorProto.INT32:
        return None
    parts = stored.astype(np.int32) // shifts % count - zero

    def store(codes: Array) -> None:
        raised = np.rint(codes).astype(np.int64) + int(zero)
        assign(tensor, (raised * shifts).sum(axis=-1, keepdims=True).reshape(stored.shape).astype(np.uint8))

    low = -int(zero)
    return _Integers(parts.astype(np.float32), np.ones(1, np.float32), (low, low + int(count) - 1), store)
