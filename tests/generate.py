"""Small graphs to test on: a builder, and hypothesis strategies that draw whole networks with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.model import Model
from tests.blocks import BLOCKS, append

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
            self.channels[output] = self.channels.get(inputs[0], 0) if channels is None else channels
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


@st.composite
def networks(draw: st.DrawFn, activations: Sequence[str] = ACTIVATIONS, blocks: Sequence[str] = BLOCKS) -> Net:
    """A convolutional network of a few random blocks with a classifier; ``model()`` gives it one output."""
    net = Net(draw(st.integers(0, 2**16)), (3, 4, 4), constant_nodes=draw(st.booleans()))
    x = net.conv("x", 4 * draw(st.integers(1, 4)))
    for block in draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=6)):
        x = append(draw, net, x, block, activations)
    if draw(st.booleans()):
        x = net.gemm(net.flatten(x, positions=16), 5, transposed=draw(st.booleans()))
    else:
        x = net.matmul(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    return net


# -- networks with bodies --------------------------------------------------------------------------------------

Statement = tuple[Any, ...]
"""("dense",), ("if", then statements, else statements), ("loop", trips, statements), ("scan", statements)."""


def statements(depth: int = 2) -> st.SearchStrategy[list[Statement]]:
    """Programs whose bodies are nested at most so deep; see ``Program``."""
    simple: st.SearchStrategy[Statement] = st.just(("dense",))
    if depth:
        inner = statements(depth - 1)
        simple |= st.tuples(st.just("if"), inner, inner)
        simple |= st.tuples(st.just("loop"), st.integers(0, 3), inner)
        simple |= st.tuples(st.just("scan"), inner)
    return st.lists(simple, min_size=1, max_size=2)


class Program:
    """A network of If, Loop and Scan around dense layers, and what each of its layers is fed.

    The value that is passed on has the shape (rows, width), or (width,) inside a Scan. A dense layer is
    clip(value · W, -8, 8); an If asks whether the sum of the value is positive. ``run`` executes the program in
    Python, where loops are loops. Integral weights and inputs make all arithmetic exact.

    Names of the tensors in bodies repeat from body to body.

    Attributes:
        products: by the steps to its graph and its name, each product of a dense layer.
    """

    def __init__(
        self,
        program: Sequence[Statement],
        seed: int = 0,
        width: int = 4,
        integral: bool = False,
        outer_weights: bool = False,
        opset: int = 17,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._width, self._integral, self._outer, self._opset = width, integral, outer_weights, opset
        self._count = 0
        self._initializers = [
            numpy_helper.from_array(np.float32(limit), name) for limit, name in ((-8, "low"), (8, "high"), (0, "zero"))
        ]
        self._initializers.append(numpy_helper.from_array(np.array(True), "true"))
        self._weights: dict[tuple[Any, str], Array] = {}
        self.products: list[tuple[Any, str]] = []
        self._program = list(program)
        self._nodes: list[onnx.NodeProto] = []
        self._output = self._emit(self._program, "x", (), self._nodes, self._initializers, "")

    def proto(self) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", self._width])
        result = helper.make_tensor_value_info(self._output, TensorProto.FLOAT, ["N", self._width])
        graph = helper.make_graph(self._nodes, "program", [given], [result], self._initializers)
        opsets = [helper.make_opsetid("", self._opset)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(proto)
        return proto

    def model(self) -> Model:
        return Model.from_proto(self.proto())

    def inputs(self, samples: int, seed: int = 1) -> Array:
        rng = np.random.default_rng(seed)
        if self._integral:
            return rng.integers(-2, 3, (samples, self._width)).astype(np.float32)
        return rng.standard_normal((samples, self._width)).astype(np.float32)

    def run(self, x: Array) -> tuple[Array, dict[tuple[Any, str], list[Array]]]:
        """The output, and every value of each product in the order of time."""
        seen: dict[tuple[Any, str], list[Array]] = {key: [] for key in self.products}
        return self._execute(self._program, x, (), seen), seen

    # -- the graph --

    def _emit(
        self,
        program: Sequence[Statement],
        x: str,
        steps: tuple[tuple[int, str], ...],
        nodes: list[onnx.NodeProto],
        initializers: list[onnx.TensorProto],
        prefix: str,
    ) -> str:
        for index, statement in enumerate(program):
            # Bodies of one node do not see each other's names, and use the same ones.
            name = f"{prefix}{index}"
            if statement[0] == "dense":
                x = self._dense(x, name, steps, nodes, initializers)
            elif statement[0] == "if":
                x = self._if(statement, x, name, steps, nodes)
            elif statement[0] == "loop":
                x = self._loop(statement, x, name, steps, nodes)
            else:
                x = self._scan(statement, x, name, steps, nodes)
        return x

    def _dense(self, x: str, name: str, steps: Any, nodes: list[Any], initializers: list[Any]) -> str:
        self._count += 1
        shape = (self._width, self._width)
        weight = self._rng.integers(-1, 2, shape) if self._integral else self._rng.standard_normal(shape) * 0.3
        tensor = numpy_helper.from_array(weight.astype(np.float32), f"w{self._count}")
        (self._initializers if self._outer else initializers).append(tensor)
        nodes.append(helper.make_node("MatMul", [x, tensor.name], [f"{name}.p"], name=f"dense{self._count}"))
        nodes.append(helper.make_node("Clip", [f"{name}.p", "low", "high"], [f"{name}.y"]))
        self._weights[steps, f"{name}.p"] = weight.astype(np.float32)
        self.products.append((steps, f"{name}.p"))
        return f"{name}.y"

    def _body(self, program: Sequence[Statement], x: str, name: str, steps: Any) -> tuple[onnx.GraphProto, str]:
        nodes: list[onnx.NodeProto] = []
        initializers: list[onnx.TensorProto] = []
        result = self._emit(program, x, steps, nodes, initializers, f"{name}.")
        nodes.append(helper.make_node("Identity", [result], [f"{name}.r"]))
        return helper.make_graph(nodes, name, [], [], initializers), f"{name}.r"

    def _if(self, statement: Statement, x: str, name: str, steps: Any, nodes: list[Any]) -> str:
        nodes.append(helper.make_node("ReduceSum", [x], [f"{name}.s"], keepdims=0))
        nodes.append(helper.make_node("Greater", [f"{name}.s", "zero"], [f"{name}.c"]))
        bodies = {}
        for branch, program in zip(("then_branch", "else_branch"), statement[1:], strict=True):
            body, result = self._body(program, x, name, (*steps, (len(nodes), branch)))
            body.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, None))
            bodies[branch] = body
        nodes.append(helper.make_node("If", [f"{name}.c"], [f"{name}.y"], **bodies))
        return f"{name}.y"

    def _loop(self, statement: Statement, x: str, name: str, steps: Any, nodes: list[Any]) -> str:
        trips = numpy_helper.from_array(np.array(statement[1]), "")
        nodes.append(helper.make_node("Constant", [], [f"{name}.t"], value=trips))
        body, result = self._body(statement[2], f"{name}.h", name, (*steps, (len(nodes), "body")))
        body.node.append(helper.make_node("Identity", [f"{name}.c"], [f"{name}.d"]))
        for item, kind in (("i", TensorProto.INT64), ("c", TensorProto.BOOL), ("h", TensorProto.FLOAT)):
            body.input.append(helper.make_tensor_value_info(f"{name}.{item}", kind, None if item == "h" else []))
        for item, kind in ((f"{name}.d", TensorProto.BOOL), (result, TensorProto.FLOAT), (result, TensorProto.FLOAT)):
            body.output.append(helper.make_tensor_value_info(item, kind, [] if kind == TensorProto.BOOL else None))
        body.output[2].name = f"{name}.stack"  # a stacked output besides
        body.node.append(helper.make_node("ReduceSum", [result], [f"{name}.stack"], keepdims=0))
        outputs = [f"{name}.y", f"{name}.sums"]
        nodes.append(helper.make_node("Loop", [f"{name}.t", "true", x], outputs, body=body))
        return f"{name}.y"

    def _scan(self, statement: Statement, x: str, name: str, steps: Any, nodes: list[Any]) -> str:
        """Over the rows; inside a Scan, where there are none, over rows made of the one value."""
        axis = numpy_helper.from_array(np.array([-1, self._width]), "")
        nodes.append(helper.make_node("Constant", [], [f"{name}.a"], value=axis))
        nodes.append(helper.make_node("Reshape", [x, f"{name}.a"], [f"{name}.rows"]))
        body, result = self._body(statement[1], f"{name}.h", name, (*steps, (len(nodes), "body")))
        body.input.append(helper.make_tensor_value_info(f"{name}.h", TensorProto.FLOAT, None))
        body.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, [self._width]))
        nodes.append(helper.make_node("Scan", [f"{name}.rows"], [f"{name}.all"], body=body, num_scan_inputs=1))
        nodes.append(helper.make_node("Shape", [x], [f"{name}.shape"]))
        nodes.append(helper.make_node("Reshape", [f"{name}.all", f"{name}.shape"], [f"{name}.y"]))
        return f"{name}.y"

    # -- the oracle --

    def _execute(self, program: Sequence[Statement], x: Array, steps: Any, seen: Any, prefix: str = "") -> Array:
        position = 0
        for index, statement in enumerate(program):
            name = f"{prefix}{index}"
            if statement[0] == "dense":
                product = x @ self._weights[steps, f"{name}.p"]
                seen[steps, f"{name}.p"].append(product)
                x, position = np.clip(product, -8, 8), position + 2
            elif statement[0] == "if":
                branch, chosen = ("then_branch", statement[1]) if x.sum() > 0 else ("else_branch", statement[2])
                x = self._execute(chosen, x, (*steps, (position + 2, branch)), seen, f"{name}.")
                position += 3
            elif statement[0] == "loop":
                for _ in range(statement[1]):
                    x = self._execute(statement[2], x, (*steps, (position + 1, "body")), seen, f"{name}.")
                position += 2
            else:
                inner = (*steps, (position + 2, "body"))
                rows = [self._execute(statement[1], row, inner, seen, f"{name}.") for row in x.reshape(-1, self._width)]
                x, position = np.reshape(rows, x.shape), position + 5
        return x
