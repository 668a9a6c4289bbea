"""Small graphs to test on: a builder, and hypothesis strategies that draw whole networks with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.model import Model

Array = np.ndarray[Any, Any]

ZERO_PRESERVING = ("Relu", "LeakyRelu", "PRelu", "HardSwish", "Identity")
ACTIVATIONS = (*ZERO_PRESERVING, "Clip", "Sigmoid", "HardSigmoid")


class Net:
    """Builds a graph node by node; every method returns the name of its output.

    Weights are drawn with the variance that keeps activations near 1, in float32.

    Args:
        seed: of the weights.
        shape: of the input without its batch axis, which stays open; named ``x``.
        constant_nodes: put weights into Constant nodes instead of initializers.
    """

    def __init__(
        self, seed: int = 0, shape: Sequence[int] = (3, 8, 8), constant_nodes: bool = False, opset: int = 17
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.input_shape = tuple(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {"x": shape[0]}
        self._constant_nodes = constant_nodes
        self._opset = opset

    def node(self, op: str, *inputs: str, channels: int | None = None, outputs: int = 1, **attributes: Any) -> str:
        """Append any node; it has the channels of its first input unless told otherwise."""
        name = f"{op.lower()}{len(self.nodes)}"
        names = [name] + [f"{name}.{index}" for index in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"/{name}", **attributes))
        for output in names:
            self.channels[output] = self.channels[inputs[0]] if channels is None else channels
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant tensor."""
        name = f"c{len(self.nodes)}.{len(self.initializers)}"
        tensor = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        if self._constant_nodes:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"/{name}", value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.constant(self.rng.standard_normal(shape) * np.sqrt(2.0 / fan_in))

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> str:
        return self.constant(self.rng.uniform(low, high, size))

    def conv(self, x: str, out: int, kernel: int = 3, groups: int = 1, stride: int = 1, bias: bool = True) -> str:
        """Conv with padding that keeps the size, of any number of spatial axes."""
        ins, rank = self.channels[x] // groups, len(self.input_shape) - 1
        weight = self.weight(out, ins, *[kernel] * rank, fan_in=ins * kernel**rank)
        inputs = [x, weight, self.vector(out)] if bias else [x, weight]
        pads, strides = [kernel // 2] * (2 * rank), [stride] * rank
        return self.node("Conv", *inputs, channels=out, pads=pads, strides=strides, group=groups)

    def depthwise(self, x: str, kernel: int = 3, multiplier: int = 1) -> str:
        return self.conv(x, self.channels[x] * multiplier, kernel, groups=self.channels[x])

    def conv_transpose(self, x: str, out: int, kernel: int = 2, groups: int = 1) -> str:
        ins, rank = self.channels[x], len(self.input_shape) - 1
        weight = self.weight(ins, out // groups, *[kernel] * rank, fan_in=ins // groups)
        strides = [kernel] * rank
        inputs = (x, weight, self.vector(out))
        return self.node("ConvTranspose", *inputs, channels=out, strides=strides, group=groups)

    def batch_norm(self, x: str) -> str:
        size = self.channels[x]
        ranges = ((0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 2.0))
        return self.node("BatchNormalization", x, *[self.vector(size, *limits) for limits in ranges])

    def activation(self, x: str, op: str = "Relu") -> str:
        if op == "Clip":
            return self.node(op, x, self.constant(-0.2), self.constant(2.0))
        if op == "PRelu":
            return self.node(op, x, self.constant(self.rng.uniform(0, 0.5, (self.channels[x], 1, 1))))
        return self.node(op, x)

    def add(self, *inputs: str) -> str:
        return self.node("Add", *inputs)

    def concat(self, *inputs: str) -> str:
        return self.node("Concat", *inputs, channels=sum(self.channels[x] for x in inputs), axis=1)

    def gate(self, x: str, hidden: int) -> str:
        """Squeeze and excite."""
        pooled = self.node("GlobalAveragePool", x)
        squeezed = self.activation(self.conv(pooled, hidden, kernel=1))
        return self.node("Mul", x, self.node("Sigmoid", self.conv(squeezed, self.channels[x], kernel=1)))

    def flatten(self, x: str, positions: int) -> str:
        return self.node("Flatten", x, channels=self.channels[x] * positions)

    def gemm(self, x: str, out: int, transposed: bool = True) -> str:
        ins = self.channels[x]
        weight = self.weight(*((out, ins) if transposed else (ins, out)), fan_in=ins)
        return self.node("Gemm", x, weight, self.vector(out), channels=out, transB=int(transposed))

    def matmul(self, x: str, out: int, bias: bool = True) -> str:
        ins = self.channels[x]
        product = self.node("MatMul", x, self.weight(ins, out, fan_in=ins), channels=out)
        return self.node("Add", product, self.vector(out)) if bias else product

    def gelu(self, x: str) -> str:
        """As exporters decompose it."""
        erf = self.node("Erf", self.node("Div", x, self.constant(2.0**0.5)))
        scaled = self.node("Mul", x, self.node("Add", erf, self.constant(1.0)))
        return self.node("Mul", scaled, self.constant(0.5))

    def __repr__(self) -> str:
        return " ".join(node.op_type for node in self.nodes)

    def proto(self, *outputs: str) -> onnx.ModelProto:
        """The model, checked, with inferred shapes declared; its outputs are by default the last node's."""
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input_shape])
        results = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in outputs or (self.nodes[-1].output[0],)
        ]
        graph = helper.make_graph(self.nodes, "net", [given], results, self.initializers)
        opsets = [helper.make_opsetid("", self._opset)]
        proto = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=8))
        onnx.checker.check_model(proto, full_check=True)
        return proto

    def model(self, *outputs: str) -> Model:
        return Model.from_proto(self.proto(*outputs))

    def feeds(self, samples: int = 2, seed: int = 1) -> dict[str, Array]:
        rng = np.random.default_rng(seed)
        return {"x": rng.standard_normal((samples, *self.input_shape)).astype(np.float32)}


BLOCKS = (
    "conv",
    "norm",
    "activation",
    "residual",
    "projection",
    "concat",
    "depthwise",
    "grouped",
    "gate",
    "split",
)


@st.composite
def networks(draw: st.DrawFn, activations: Sequence[str] = ACTIVATIONS) -> Net:
    """A convolutional network of a few random blocks with a classifier; ``model()`` gives it one output."""
    net = Net(draw(st.integers(0, 2**16)), (3, 4, 4), constant_nodes=draw(st.booleans()))
    x = net.conv("x", 4 * draw(st.integers(1, 4)))
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6)):
        x = _block(draw, net, x, block, activations)
    if draw(st.booleans()):
        x = net.gemm(net.flatten(x, positions=16), 5, transposed=draw(st.booleans()))
    else:
        x = net.matmul(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    return net


def _block(draw: st.DrawFn, net: Net, x: str, block: str, activations: Sequence[str]) -> str:
    act = draw(st.sampled_from(activations))
    width, size = 4 * draw(st.integers(1, 4)), net.channels[x]
    if block == "norm":
        return net.batch_norm(x)
    if block == "activation":
        return net.activation(x, act)
    if block == "residual":
        return net.add(x, net.conv(net.activation(net.conv(x, width), act), size))
    if block == "projection":
        return net.add(net.conv(x, width, kernel=1), net.batch_norm(net.conv(x, width, bias=False)))
    if block == "concat":
        return net.concat(net.activation(net.conv(x, width), act), x, net.conv(x, 4, kernel=1))
    if block == "depthwise":
        return net.depthwise(x, multiplier=draw(st.integers(1, 2)))
    if block == "grouped":
        return net.activation(net.conv(x, width, groups=2), act)
    if block == "gate":
        return net.gate(x, hidden=4)
    if block == "split":
        half = size // 4 * 2  # even, as a grouped convolution may follow
        sizes = net.constant([half, size - half], np.int64)
        first = net.node("Split", x, sizes, channels=half, outputs=2, axis=1)
        net.channels[f"{first}.1"] = size - half
        return net.concat(net.conv(first, width), net.activation(f"{first}.1", act))
    return net.conv(x, width)
