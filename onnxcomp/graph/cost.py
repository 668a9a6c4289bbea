"""What a model costs: parameters to store, floating-point operations to compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxcomp.codec import all_graphs, nested_graphs
from onnxcomp.graph.constants import is_constant, shape_of
from onnxcomp.graph.layers import layer_name, weighted_layers
from onnxcomp.graph.stored import (
    dtype_name,
    integers_behind,
    is_restoring,
    is_small_integer,
    producer_of,
    restored_shape,
)
from onnxcomp.model import Model

__all__ = ["Cost", "LayerCost", "cost", "parameters"]

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class LayerCost:
    """Of one node.

    Attributes:
        op: its operator.
        parameters: elements of its weights; a shared weight counts where it is used first.
        macs: multiply-accumulates of one run; 0 where shapes are not known.
    """

    op: str
    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Two for each multiply-accumulate."""
        return 2 * self.macs


@dataclass(frozen=True)
class Cost:
    """Of a model.

    Attributes:
        parameters: elements of all weights, each once.
        flops: of one run.
        per_layer: every node that has weights, its own or shared ones, or multiplies matrices, by layer name, in
            graph order.
    """

    parameters: int
    flops: int
    per_layer: dict[str, LayerCost] = field(default_factory=dict)


def cost(model: Model, shapes: Shapes, inner: Mapping[int, Shape] | None = None) -> Cost:
    """Parameters and FLOPs of a model.

    FLOPs are two for each multiply-accumulate of convolutions, matrix products (of two activations as well)
    and recurrent layers, float or quantized. Element-wise operators, pooling and normalization count nothing,
    as in the literature. Of an ``If`` the costlier branch counts, the body of a ``Loop`` or ``Scan`` once.

    Of a model-local function the weights count once, and its operations not at all: how often it runs, and on
    what shapes, its calls decide.

    Parameters are the elements of floating-point constants with an axis at least, and of quantized weights
    and biases; scales and zero points are none, nor are shapes, indices and other integers.

    Args:
        model: any model.
        shapes: of the tensors of the main graph in one run on one sample, as ``runtime.shapes.observed`` returns
            them. Tensors that are not in it have their declared shape.
        inner: of tensors inside bodies, as ``runtime.profile.body_shapes`` returns them.
    """
    sizes = _Sizes.of(model.graph, shapes, inner or {})
    owned = _parameters_by_node(model)
    names = _names(model)
    per_layer: dict[str, LayerCost] = {}
    macs: dict[int, int] = {}
    weighted = {id(layer.node) for layer in weighted_layers(model)}
    in_functions = {id(node) for function in model.graph.functions for node in _nodes(function)}
    for graph in all_graphs(model.graph):
        for node in graph.nodes:
            macs[id(node)] = 0 if id(node) in in_functions else _macs_or_none(node, sizes)
            if macs[id(node)] or owned.get(id(node)) or id(node) in weighted:
                per_layer[names[id(node)]] = LayerCost(node.op, owned.get(id(node), 0), macs[id(node)])
    return Cost(sum(owned.values()), 2 * _total(model.graph, macs), per_layer)


def parameters(model: Model) -> int:
    """Elements of all weights, as ``cost`` counts them."""
    return sum(_parameters_by_node(model).values())


def _nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    return (node for nested in nested_graphs(graph) for node in nested.nodes)


def _names(model: Model) -> dict[int, str]:
    """By node: the names that ``weighted_layers`` gives, and like them for every other node."""
    names = {id(layer.node): layer.name for layer in weighted_layers(model)}
    taken = set(names.values())
    for graph in all_graphs(model.graph):
        for node in graph.nodes:
            if id(node) not in names:
                name = base = layer_name(node)
                count = 1
                while name in taken:
                    count += 1
                    name = f"{base}#{count}"
                taken.add(name)
                names[id(node)] = name
    return names


def _total(graph: gs.Graph, macs: Mapping[int, int]) -> int:
    """Multiply-accumulates of a graph with what runs of its bodies."""
    total = 0
    for node in graph.nodes:
        bodies = [_total(body, macs) for body in node.attrs.values() if isinstance(body, gs.Graph)]
        total += macs[id(node)] + max(bodies, default=0)
    return total


# -- parameters --------------------------------------------------------------------------------------------

# Inputs that are integers and weights or biases all the same.
_INTEGER_WEIGHTS = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "ConvInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "MatMulInteger": (0, 1),
    "QGemm": (3, 6),
    "DynamicQuantizeMatMul": (1,),
    "MatMulIntegerToFloat": (1,),
}
# Inputs that are weights where they are integers of a byte at most: stored ones are cast at load, tables are looked up.
_SMALL_WEIGHTS = {"Cast": 0, "Gather": 0}
# Inputs that are floating-point and no weights: scales, and the sizes of Resize.
_NO_WEIGHTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "QGemm": (1, 4, 7),
    "DynamicQuantizeMatMul": (2,),
    "MatMulIntegerToFloat": (2, 3),
    "MatMulNBits": (2, 3),
    "Resize": (1, 2),
    "Upsample": (1,),
}


def _parameters_by_node(model: Model) -> dict[int, int]:
    """Elements of the weights that each node is the first to use, by the id of the node."""
    owned: dict[int, int] = {}
    seen: set[int] = set()
    for graph in all_graphs(model.graph):
        for node in graph.nodes:
            for index, tensor in enumerate(node.inputs):
                if id(tensor) not in seen and (size := _weight_size(node, index)):
                    seen.add(id(tensor))
                    owner = _reader(node)
                    owned[id(owner)] = owned.get(id(owner), 0) + size
    return owned


def _weight_size(node: gs.Node, index: int) -> int:
    """Elements of this input where it is a weight, else 0."""
    tensor = node.inputs[index]
    if index in _NO_WEIGHTS.get(node.op, ()) or not is_constant(tensor):
        return 0
    if node.op == "MatMulNBits" and index == 1:  # packed: several elements a byte
        rows, columns = node.attrs.get("N"), node.attrs.get("K")
        return rows * columns if isinstance(rows, int) and isinstance(columns, int) else 0
    shape = shape_of(tensor) or ()
    if is_restoring(node):
        end = _restored(node)
        if integers_behind(end) is not tensor:  # a scale, or a factor
            return 0
        shape = restored_shape(end) or shape
    else:
        small = _SMALL_WEIGHTS.get(node.op) == index and is_small_integer(tensor)
        if not (small or index in _INTEGER_WEIGHTS.get(node.op, ()) or "float" in dtype_name(tensor)):
            return 0
        if node.op == "Mul" and any(_is_scale(other) for other in node.inputs if other is not tensor):
            return 0
    return math.prod(int(dim) for dim in shape if dim is not None) if shape else 0


def _restored(node: gs.Node) -> gs.Tensor:
    """What the node and those behind it restore."""
    while (readers := node.outputs[0].outputs) and is_restoring(readers[0]):
        node = readers[0]
    tensor: gs.Tensor = node.outputs[0]
    return tensor


def _is_scale(tensor: gs.Tensor) -> bool:
    """Whether it is the scale of an activation that is quantized in every run: what it is multiplied by is one too."""
    producer = producer_of(tensor)
    return producer is not None and producer.op == "DynamicQuantizeLinear" and tensor is producer.outputs[1]


def _reader(node: gs.Node) -> gs.Node:
    """The node that computes with a weight which this node dequantizes."""
    while node.outputs and node.outputs[0].outputs and _dequantizes(node):
        node = node.outputs[0].outputs[0]
    return node


def _dequantizes(node: gs.Node) -> bool:
    if node.op == "Mul":
        return is_restoring(node) or any(map(_is_scale, node.inputs))
    return node.op in ("DequantizeLinear", "QuantizeLinear") or is_restoring(node)


@dataclass(frozen=True)
class _Sizes:
    """Shapes that a run showed.

    Attributes:
        named: of tensors of the main graph, by name; a body may have another tensor of that name.
        main: ``id`` of the tensors of the main graph.
        inner: of tensors of bodies, by ``id``.
    """

    named: Shapes
    main: set[int]
    inner: Mapping[int, Shape]

    @classmethod
    def of(cls, graph: gs.Graph, named: Shapes, inner: Mapping[int, Shape]) -> _Sizes:
        tensors = [tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)]
        return cls(named, {id(tensor) for tensor in (*graph.inputs, *tensors)}, inner)

    def seen(self, tensor: gs.Tensor) -> Shape | None:
        shape = self.inner.get(id(tensor))
        return self.named.get(tensor.name) if shape is None and id(tensor) in self.main else shape


# -- operations --------------------------------------------------------------------------------------------


def _macs_or_none(node: gs.Node, sizes: _Sizes) -> int:
    try:
        return _macs(node, sizes)
    except (KeyError, IndexError, TypeError, ValueError):  # a node without what its operator requires
        return 0


def _macs(node: gs.Node, sizes: _Sizes) -> int:
    count = _COUNTERS.get(node.op)
    if count is None or node.domain not in _DOMAINS:
        return 0
    inputs = [_shape(tensor, sizes) for tensor in node.inputs]
    output = _shape(node.outputs[0], sizes) if node.outputs else None
    try:
        return count(node, inputs, output)
    except (IndexError, TypeError):  # a shape that nobody knows is None
        return 0


def _shape(tensor: gs.Tensor, sizes: _Sizes) -> Shape | None:
    if (seen := sizes.seen(tensor)) is not None:
        return tuple(seen)
    if not is_constant(tensor) and tensor.inputs and tensor.inputs[0].op in ("DequantizeLinear", "QuantizeLinear"):
        return _shape(tensor.inputs[0].inputs[0], sizes)
    declared = shape_of(tensor)
    if declared is None or not all(isinstance(dim, int) for dim in declared):
        return None
    return tuple(int(dim) for dim in declared)  # type: ignore[arg-type]


# Each takes the shapes of all inputs and of the first output; None, where one is not known, raises TypeError.
_Counter = Callable[[gs.Node, list[Shape | None], Shape | None], int]


def _conv(weight: int) -> _Counter:
    def count(node: gs.Node, inputs: list[Shape | None], output: Shape | None) -> int:  # noqa: ARG001
        """Every output element sums over (in / groups, *kernel)."""
        return math.prod(_known(output)) * math.prod(_known(inputs[weight])[1:])

    return count


def _conv_transpose(node: gs.Node, inputs: list[Shape | None], output: Shape | None) -> int:  # noqa: ARG001
    """Every input element is spread over (out / groups, *kernel)."""
    return math.prod(_known(inputs[0])) * math.prod(_known(inputs[1])[1:])


def _matmul(node: gs.Node, inputs: list[Shape | None], output: Shape | None) -> int:
    """Every output element sums over the last axis of the first factor."""
    transposed = bool(node.attrs.get("transA", 0))  # Gemm, FusedMatMul
    return math.prod(_known(output)) * _known(inputs[0])[-2 if transposed else -1]


def _recurrent(node: gs.Node, inputs: list[Shape | None], output: Shape | None) -> int:  # noqa: ARG001
    """W and R, (directions, gates · hidden, …), are applied once at every step to every sample."""
    steps_and_batch = math.prod(_known(inputs[0])[:2])
    return steps_and_batch * (math.prod(_known(inputs[1])) + math.prod(_known(inputs[2])))


def _einsum(node: gs.Node, inputs: list[Shape | None], output: Shape | None) -> int:  # noqa: ARG001
    """Every combination of indices is one product."""
    terms = str(node.attrs["equation"]).replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2 or any("." in term for term in terms):
        return 0
    sizes = dict(_labelled(terms, inputs))
    return math.prod(sizes.values())


def _labelled(terms: list[str], inputs: list[Shape | None]) -> Iterator[tuple[str, int]]:
    for term, shape in zip(terms, inputs, strict=True):
        yield from zip(term, _known(shape), strict=True)


def _known(shape: Shape | None) -> Shape:
    if shape is None:
        raise TypeError
    return shape


# A function of the model may have any of these names.
_DOMAINS = (None, "", "ai.onnx", "com.microsoft", "com.microsoft.nchwc")
_COUNTERS: dict[str, _Counter] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _matmul,
    "FusedGemm": _matmul,
    "QGemm": _matmul,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulNBits": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
}
