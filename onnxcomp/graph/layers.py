"""The layers of a model that carry weights: what compression is about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import nested_graphs
from onnxcomp.graph.constants import assign, is_constant, shape_of, value_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.model import Model

__all__ = ["WeightedLayer", "casts_stored_weight", "layer_name", "weighted_layers"]

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
_STANDARD = (None, "", "ai.onnx")


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
        return _integers_behind(tensor) or tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight array."""
        return tuple(int(dim) for dim in shape_of(self.weight) or ())  # type: ignore[arg-type]

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
        kernel = self.shape[2:] if self.kind in ("Conv", "ConvTranspose") else ()
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
    if node.op in ("Constant", "DequantizeLinear", "QuantizeLinear"):
        return None
    found = _find_weight(node)
    if found is None:
        return None
    index, quantized = found
    kind, out_axis, in_axis, groups = _layout(node, index)
    tensor = node.inputs[index]
    weight = _integers_behind(tensor) or tensor
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
        source = _integers_behind(tensor)
        quantized = source is not None or _computes_with_integers(node, index)
        source = source or tensor
        if not is_constant(source) or not (quantized or _is_float(source)):
            continue
        shape = shape_of(source) or ()
        size = int(np.prod([dim for dim in shape if isinstance(dim, int)], dtype=np.int64))
        is_matrix = node.op in _MATRIX_OPS or len([dim for dim in shape if dim != 1]) >= 2
        if is_matrix and len(shape) >= 2 and size > best_size:
            best, best_size = (index, quantized), size
    return best


def _integers_behind(tensor: gs.Tensor) -> gs.Tensor | None:
    """The constant that DequantizeLinear, or Cast and Mul by a constant, make this tensor of."""
    producer = _producer(tensor)
    if producer is None:
        return None
    if producer.op == "DequantizeLinear":
        source: gs.Tensor = producer.inputs[0]
        return source if is_constant(source) else None
    if producer.op != "Mul" or len(producer.inputs) != 2 or sum(map(is_constant, producer.inputs)) != 1:
        return None
    cast = _producer(next(item for item in producer.inputs if not is_constant(item)))
    if cast is None or cast.op != "Cast" or not is_constant(cast.inputs[0]):
        return None
    source = cast.inputs[0]
    return source if _is_small_integer(source) else None


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    """The standard operator that computes a tensor of something."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    return node if node is not None and node.domain in _STANDARD and node.inputs else None


def casts_stored_weight(node: gs.Node) -> bool:
    """Whether the node is the Cast of a weight that Cast and Mul restore from small integers."""
    if node.op != "Cast" or not node.outputs or not node.outputs[0].outputs:
        return False
    return all(_integers_behind(item) is not None for reader in node.outputs[0].outputs for item in reader.outputs)


def _computes_with_integers(node: gs.Node, index: int) -> bool:
    """Whether the node multiplies with this input as integers, or looks up rows of integers to be dequantized."""
    tensor = node.inputs[index]
    if not is_constant(tensor) or not _is_small_integer(tensor):
        return False
    if node.op == "Gather":
        readers = {reader.op for item in node.outputs for reader in item.outputs}
        return index == 0 and bool(readers) and readers <= {"DequantizeLinear", *_INTEGER_WEIGHTS}
    return _INTEGER_WEIGHTS.get(node.op) == index


def _is_float(tensor: gs.Tensor) -> bool:
    return _dtype_name(tensor) in ("float16", "float32", "float64", "bfloat16")


def _is_small_integer(tensor: gs.Tensor) -> bool:
    return _dtype_name(tensor) in ("int8", "uint8", "int4", "uint4", "int2", "uint2")


def _dtype_name(tensor: gs.Tensor) -> str:
    dtype = tensor.dtype if isinstance(tensor, gs.Constant) else getattr(value_of(tensor), "dtype", None)
    if isinstance(dtype, int):  # types that NumPy lacks are ONNX's numbers
        dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return str(dtype)


def _layout(node: gs.Node, index: int) -> tuple[Kind, int, int, int]:
    group, transposed = (node.attrs.get(name) for name in ("group", "transB"))
    # In a function it may be what each call says.
    groups = group if isinstance(group, int) and node.op in ("Conv", "ConvTranspose") else 1
    if node.domain not in _STANDARD:
        return "other", 0, 0, 1
    if node.op == "Conv" and index == 1:
        return "Conv", 0, 1, groups
    if node.op == "ConvTranspose" and index == 1:
        return "ConvTranspose", 1, 0, groups
    rank = len(shape_of(_integers_behind(node.inputs[index]) or node.inputs[index]) or ())
    if node.op == "Gemm" and index == 1 and (transposed is None or isinstance(transposed, int)):
        return ("Gemm", 0, 1, 1) if transposed else ("Gemm", 1, 0, 1)
    if node.op == "MatMul" and index == 1 and rank == 2:
        return "MatMul", 1, 0, 1
    return "other", 0, 0, 1
