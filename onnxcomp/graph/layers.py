"""The layers of a model that carry weights: what compression is about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import nested_graphs
from onnxcomp.graph.constants import assign, is_constant, shape_of, value_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.stored import (
    STANDARD,
    dtype_name,
    integers_behind,
    is_restoring,
    is_small_integer,
    restored_shape,
)
from onnxcomp.model import Model

__all__ = ["WeightedLayer", "layer_name", "weighted_layers"]

Array = np.ndarray[Any, Any]
Kind = Literal["Conv", "ConvTranspose", "Gemm", "MatMul", "other"]

# A bias, a scale or a shape is no layer of its own; what is smaller than this is not worth a decision.
MIN_WEIGHTS = 16

# Their weight is a matrix even where one side is 1 wide; elsewhere (1, C, 1, 1) is a scale or a bias.
_MATRIX_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Where operators that compute with integers have their weight.
_INTEGER_WEIGHTS = {
    "QLinearConv": 3,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "MatMulInteger": 1,
    "QGemm": 3,
    "DynamicQuantizeLSTM": 1,
    "DynamicQuantizeMatMul": 1,
    "GatherBlockQuantized": 0,
    "MatMulIntegerToFloat": 1,
    "MatMulNBits": 1,
    "QAttention": 1,
}


@dataclass(frozen=True, eq=False)
class WeightedLayer:
    """One node and its weight.

    Attributes:
        name: unique in the model; the node's name where it has one.
        kind: how the weight is laid out; ``other`` is an operator whose weight no pass here understands
            (LSTM, Gather, contrib operators …).
        weight_index: which of the node's inputs the weight is.
        out_axis, in_axis: axes of the weight array that are output and input channels.
        groups: of a grouped or depthwise convolution, else 1, also where the calls of a function decide.
        nested: inside the body of an If, Loop or Scan, or inside a model-local function.
        function: name of that function, with its domain, or nothing.
        shared: several nodes, or several inputs of one node, use this weight tensor, or a graph gives it out.
        quantized: the weight is made of integers that the node computes with, or that reach it through
            DequantizeLinear, or Cast and Mul.
    """

    name: str
    node: gs.Node
    kind: Kind
    weight_index: int
    out_axis: int
    in_axis: int
    groups: int
    nested: bool
    shared: bool
    quantized: bool
    function: str = ""

    @property
    def place(self) -> str:
        """Where a nested layer stands, as the end of a sentence."""
        if self.function:
            return f"in the model-local function {self.function}"
        return "in the body of a control-flow node"

    @property
    def op(self) -> str:
        """The operator, with its domain when it is no standard one."""
        return f"{self.node.domain}.{self.node.op}" if self.node.domain else str(self.node.op)

    @property
    def weight(self) -> gs.Tensor:
        """The constant that holds the weight: the integers of a quantized one."""
        tensor = self.node.inputs[self.weight_index]
        return integers_behind(tensor) or tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight array, and not of the bytes that the codes of a quantized one may be packed into."""
        known = restored_shape(self.node.inputs[self.weight_index]) if self.quantized else None
        return known or tuple(int(dim) for dim in shape_of(self.weight) or ())  # type: ignore[arg-type]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Shape of a convolution's kernel; of a matrix, nothing."""
        return self.shape[2:] if self.kind in ("Conv", "ConvTranspose") else ()

    @property
    def bias(self) -> gs.Tensor | None:
        """The constant third input of Conv, ConvTranspose and Gemm."""
        if self.kind in ("Conv", "ConvTranspose", "Gemm") and len(self.node.inputs) > 2:
            tensor = self.node.inputs[2]
            return tensor if is_constant(tensor) else None
        return None

    def array(self) -> Array:
        """The weight as stored; not to be written into."""
        value = value_of(self.weight)
        assert value is not None
        return value

    @property
    def finite(self) -> bool:
        """Whether the weight and the bias are free of NaN and infinite values, which no code of few bits stands for."""
        arrays = [self.array(), *([] if self.bias is None else [value_of(self.bias)])]
        return all(array is not None and bool(np.isfinite(array).all()) for array in arrays)

    def set_array(self, value: Array) -> None:
        """Replace the weight (same dtype as before, any shape)."""
        assign(self.weight, value.astype(self.array().dtype, copy=False))

    def matrix(self) -> Array:
        """The weight as (groups, out / groups, in / groups · kernel), float64; a MatMul counts as one group."""
        array = np.asarray(self.array(), dtype=np.float64)
        if self.kind == "ConvTranspose":  # (in, out / groups, *kernel)
            array = array.reshape(self.groups, array.shape[0] // self.groups, *array.shape[1:]).swapaxes(1, 2)
            return array.reshape(self.groups, array.shape[1], -1)
        if self.kind == "Conv":  # (out, in / groups, *kernel)
            return array.reshape(self.groups, array.shape[0] // self.groups, -1)
        return np.moveaxis(array, (self.out_axis, self.in_axis), (0, 1))[None]

    def set_matrix(self, matrix: Array) -> None:
        """The inverse of ``matrix``: groups, outputs and inputs may have become fewer, the kernel not."""
        groups, outs, columns = matrix.shape
        kernel = self.kernel
        ins = columns // int(np.prod(kernel, dtype=int))
        array = matrix.reshape(groups, outs, ins, *kernel)
        if self.kind == "ConvTranspose":
            self.set_array(array.swapaxes(1, 2).reshape(groups * ins, outs, *kernel))
        elif self.kind == "Conv":
            self.set_array(array.reshape(groups * outs, ins, *kernel))
        else:
            self.set_array(np.moveaxis(array[0], (0, 1), (self.out_axis, self.in_axis)))


def weighted_layers(model: Model) -> list[WeightedLayer]:
    """Every node with a floating-point weight matrix (two axes or more), in graph order.

    Bodies of control-flow nodes are included, and behind all these the model-local functions, each once however
    often it is called; the names of layers in a function begin with its name.
    """
    layers: list[WeightedLayer] = []
    names: dict[str, int] = {}
    for root in (model.graph, *model.graph.functions):
        function = "" if root is model.graph else f"{root.domain}.{root.name}"
        outputs = output_ids(root)
        for graph in nested_graphs(root):
            for node in graph.nodes:
                layer = _layer(node, graph is not model.graph, function, outputs)
                if layer is not None:
                    count = names[layer.name] = names.get(layer.name, 0) + 1
                    if count > 1:
                        layer = replace(layer, name=f"{layer.name}#{count}")
                    layers.append(layer)
    return layers


def layer_name(node: gs.Node) -> str:
    """The node's name, or one made of its operator and first output."""
    return str(node.name) or f"{node.op}:{node.outputs[0].name if node.outputs else '?'}"


def _layer(node: gs.Node, nested: bool, function: str, outputs: set[int]) -> WeightedLayer | None:
    if node.op in ("Constant", "DequantizeLinear", "QuantizeLinear") or is_restoring(node):
        return None
    found = _find_weight(node)
    if found is None:
        return None
    index, quantized = found
    kind, out_axis, in_axis, groups = _layout(node, index)
    tensor = node.inputs[index]
    weight = integers_behind(tensor) or tensor
    return WeightedLayer(
        name=f"{function}/{layer_name(node)}" if function else layer_name(node),
        node=node,
        kind=kind,
        weight_index=index,
        out_axis=out_axis,
        in_axis=in_axis,
        groups=groups,
        nested=nested,
        shared=any(len(item.outputs) > 1 or id(item) in outputs for item in (weight, tensor)),
        quantized=quantized,
        function=function,
    )


def _find_weight(node: gs.Node) -> tuple[int, bool] | None:
    """Position of the largest constant with two axes or more, and whether it is made of integers."""
    best: tuple[int, bool] | None = None
    best_size = MIN_WEIGHTS - 1
    for index, tensor in enumerate(node.inputs):
        source = integers_behind(tensor)
        quantized = source is not None or _computes_with_integers(node, index)
        source = source or tensor
        if not is_constant(source) or not (quantized or _is_float(source)):
            continue
        shape = _shape(tensor)
        size = int(np.prod([dim for dim in shape if isinstance(dim, int)], dtype=np.int64))
        is_matrix = node.op in _MATRIX_OPS or len([dim for dim in shape if dim != 1]) >= 2
        if is_matrix and len(shape) >= 2 and size > best_size:
            best, best_size = (index, quantized), size
    return best


def _computes_with_integers(node: gs.Node, index: int) -> bool:
    """Whether the node multiplies with this input as integers, or looks up rows of integers to be dequantized."""
    tensor = integers_behind(node.inputs[index]) or node.inputs[index]
    if not is_constant(tensor) or not is_small_integer(tensor):
        return False
    if node.op == "Gather":
        readers = {reader.op for item in node.outputs for reader in item.outputs}
        return index == 0 and bool(readers) and readers <= {"DequantizeLinear", *_INTEGER_WEIGHTS}
    return _INTEGER_WEIGHTS.get(node.op) == index


def _shape(tensor: gs.Tensor) -> tuple[int | str | None, ...]:
    """Of a constant, or of what is restored from one."""
    source = integers_behind(tensor)
    return (source is not None and restored_shape(tensor)) or shape_of(source or tensor) or ()


def _is_float(tensor: gs.Tensor) -> bool:
    return dtype_name(tensor) in ("float16", "float32", "float64", "bfloat16")


def _layout(node: gs.Node, index: int) -> tuple[Kind, int, int, int]:
    group, transposed = (node.attrs.get(name) for name in ("group", "transB"))
    # In a function it may be what each call says.
    groups = group if isinstance(group, int) and node.op in ("Conv", "ConvTranspose") else 1
    if node.domain not in STANDARD:
        return "other", 0, 0, 1
    if node.op == "Conv" and index == 1:
        return "Conv", 0, 1, groups
    if node.op == "ConvTranspose" and index == 1:
        return "ConvTranspose", 1, 0, groups
    rank = len(_shape(node.inputs[index]))
    if node.op == "Gemm" and index == 1 and (transposed is None or isinstance(transposed, int)):
        return ("Gemm", 0, 1, 1) if transposed else ("Gemm", 1, 0, 1)
    if node.op == "MatMul" and index == 1 and rank == 2:
        return "MatMul", 1, 0, 1
    return "other", 0, 0, 1
