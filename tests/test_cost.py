"""Parameters and FLOPs against counts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.context import Context
from onnxcomp.graph.cost import Cost, cost, parameters
from onnxcomp.model import Model
from onnxcomp.passes.quant import Quant
from onnxcomp.runtime import shapes
from onnxcomp.runtime.profile import body_shapes
from onnxcomp.runtime.target import Target

Arrays = dict[str, np.ndarray[Any, Any]]


def _model(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, tuple[int, ...]], weights: Arrays, opset: int = 17
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def _cost(model: Model, **inputs: tuple[int, ...]) -> Cost:
    feeds = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    return cost(model, shapes.observed(model, feeds))


def _floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.full(shape, 0.5, np.float32)


@pytest.mark.parametrize(
    ("weight", "attributes", "macs"),
    [
        ((8, 4, 3, 3), {"pads": [1, 1, 1, 1]}, 8 * 10 * 10 * 4 * 9),
        ((8, 4, 3, 3), {"strides": [2, 2]}, 8 * 4 * 4 * 4 * 9),
        ((8, 2, 3, 3), {"group": 2}, 8 * 8 * 8 * 2 * 9),
        ((4, 1, 5, 5), {"group": 4, "dilations": [2, 2]}, 4 * 2 * 2 * 25),
    ],
)
def test_convolution(weight: tuple[int, ...], attributes: dict[str, Any], macs: int) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)
    model = _model([node], {"x": (1, 4, 10, 10)}, {"w": _floats(*weight), "b": _floats(weight[0])})
    counted = _cost(model, x=(1, 4, 10, 10))
    size = int(np.prod(weight)) + weight[0]
    assert (counted.parameters, counted.flops) == (size, 2 * macs)
    layer = counted.per_layer["conv"]
    assert (layer.op, layer.parameters, layer.macs, layer.flops) == ("Conv", size, macs, 2 * macs)


def test_transposed_convolution_spreads_every_input() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2], group=2)
    model = _model([node], {"x": (1, 4, 5, 5)}, {"w": _floats(4, 3, 2, 2)})
    assert _cost(model, x=(1, 4, 5, 5)).per_layer["up"].macs == 4 * 5 * 5 * 3 * 4


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(trans_a: int, trans_b: int) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc", transA=trans_a, transB=trans_b)
    x = (6, 2) if trans_a else (2, 6)
    weights = {"w": _floats(*((5, 6) if trans_b else (6, 5))), "b": _floats(5)}
    counted = _cost(_model([node], {"x": x}, weights), x=x)
    assert (counted.parameters, counted.flops) == (35, 2 * 2 * 5 * 6)


def test_matrix_products_of_activations_count_and_own_no_parameters() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="query"),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["y"], name="scores"),
    ]
    counted = _cost(_model(nodes, {"x": (1, 7, 6)}, {"w": _floats(6, 4)}), x=(1, 7, 6))
    assert counted.per_layer["query"].macs == 7 * 6 * 4
    assert counted.per_layer["scores"].macs == 7 * 7 * 4
    assert counted.per_layer["scores"].parameters == 0
    assert (counted.parameters, counted.flops) == (24, 2 * (7 * 6 * 4 + 7 * 7 * 4))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent(op: str, gates: int) -> None:
    hidden, inputs, steps = 3, 5, 7
    nodes = [helper.make_node(op, ["x", "w", "r"], ["y"], name="rnn", hidden_size=hidden, direction="bidirectional")]
    weights = {"w": _floats(2, gates * hidden, inputs), "r": _floats(2, gates * hidden, hidden)}
    counted = _cost(_model(nodes, {"x": (steps, 1, inputs)}, weights), x=(steps, 1, inputs))
    size = 2 * gates * hidden * (inputs + hidden)
    assert (counted.parameters, counted.flops) == (size, 2 * steps * size)


def test_einsum() -> None:
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], name="heads", equation="bid,dhk->bhik")]
    counted = _cost(_model(nodes, {"x": (1, 3, 4)}, {"w": _floats(4, 2, 5)}), x=(1, 3, 4))
    assert (counted.parameters, counted.flops) == (40, 2 * 3 * 4 * 2 * 5)


def test_quantized_model_counts_as_its_float_original() -> None:
    """Weights and bias behind DequantizeLinear are the layer's parameters; scales and zero points are not."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["bq", "ws", "bz"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["y"], name="conv"),
    ]
    weights: Arrays = {
        "xs": np.float32(0.1).reshape(()),
        "xz": np.uint8(128).reshape(()),
        "wq": np.ones((8, 4, 1, 1), np.int8),
        "ws": _floats(8),
        "wz": np.zeros(8, np.int8),
        "bq": np.ones(8, np.int32),
        "bz": np.zeros(8, np.int32),
    }
    counted = _cost(_model(nodes, {"x": (1, 4, 5, 5)}, weights), x=(1, 4, 5, 5))
    assert (counted.parameters, counted.flops) == (8 * 4 + 8, 2 * 8 * 4 * 25)
    assert list(counted.per_layer) == ["conv"]
    assert counted.per_layer["conv"].parameters == 40


def test_integer_operators_count_their_weights() -> None:
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    nodes = [
        helper.make_node("QuantizeLinear", ["f", "xs", "xz"], ["x"]),
        helper.make_node("QLinearConv", names, ["y"], name="conv"),
    ]
    weights: Arrays = {
        "xs": np.array(0.1, np.float32),
        "xz": np.array(0, np.uint8),
        "w": np.ones((3, 2, 2, 2), np.int8),
        "ws": _floats(3),
        "wz": np.zeros(3, np.int8),
        "ys": np.array(0.1, np.float32),
        "yz": np.array(0, np.uint8),
        "b": np.ones(3, np.int32),
    }
    counted = _cost(_model(nodes, {"f": (1, 2, 4, 4)}, weights), f=(1, 2, 4, 4))
    assert (counted.parameters, counted.flops) == (24 + 3, 2 * 3 * 9 * 2 * 4)


def test_shared_weights_count_once_and_scalars_and_shapes_not_at_all() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="second"),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    weights: Arrays = {
        "w": _floats(6, 6),
        "half": np.array(0.5, np.float32),
        "shape": np.array([6, 2], np.int64),
    }
    counted = _cost(_model(nodes, {"x": (2, 6)}, weights), x=(2, 6))
    assert counted.parameters == 36
    assert [entry.parameters for entry in counted.per_layer.values()] == [36, 0]
    assert counted.flops == 2 * 2 * (2 * 6 * 6)


def test_weights_in_constant_nodes_count() -> None:
    value = numpy_helper.from_array(_floats(6, 5))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    counted = _cost(_model(nodes, {"x": (1, 6)}, {}), x=(1, 6))
    assert counted.per_layer["fc"].parameters == counted.parameters == 30
    assert counted.flops == 60


def test_bodies_count_all_parameters_and_the_costlier_branch() -> None:
    def branch(name: str, width: int) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_h"], name=f"{name}_up"),
            helper.make_node("MatMul", [f"{name}_h", f"{name}_v"], [f"{name}_y"], name=f"{name}_down"),
        ]
        weights = {f"{name}_w": _floats(4, width), f"{name}_v": _floats(width, 4)}
        value = helper.make_tensor_value_info
        return helper.make_graph(
            nodes,
            name,
            [],
            [value(f"{name}_y", TensorProto.FLOAT, (2, 4))],
            [numpy_helper.from_array(array, key) for key, array in weights.items()],
            value_info=[value(f"{name}_h", TensorProto.FLOAT, (2, width))],
        )

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["cond"], to=TensorProto.BOOL),
        helper.make_node("If", ["cond"], ["y"], then_branch=branch("wide", 8), else_branch=branch("slim", 3)),
    ]
    counted = _cost(_model(nodes, {"x": (2, 4)}, {}), x=(2, 4))
    assert counted.parameters == 2 * 4 * 8 + 2 * 4 * 3
    assert counted.flops == 2 * (2 * 2 * 4 * 8)
    assert counted.per_layer["slim_up"].macs == 2 * 4 * 3


def test_layers_of_one_name_are_told_apart() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], name="fc"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="fc"),
    ]
    model = _model(nodes, {"x": (1, 4)}, {"v": _floats(4, 5), "w": _floats(5, 4)})
    counted = cost(model, {"x": (1, 4), "a": (1, 5), "y": (1, 4)})
    assert {name: layer.macs for name, layer in counted.per_layer.items()} == {"fc": 20, "fc#2": 20}


def test_unknown_shapes_count_no_operations_but_parameters() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    model = _model([node], {"x": (1, 4)}, {"w": _floats(4, 5)})
    counted = cost(model, {})
    assert (counted.parameters, counted.flops) == (20, 0)
    assert parameters(model) == 20


def test_a_tensor_of_a_body_has_not_the_shape_of_its_namesake_outside() -> None:
    """``a`` is (1, 7) in the main graph, (1, 4, 16) in one branch and (1, 4, 4) in the other."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4, 8] x, bool c) => (float[N, 4, 8] y, float[N, 64] z) {
            y = If(c) <
                then_branch = t () => (float[N, 4, 8] r) {
                    a = MatMul(x, w0)
                    r = MatMul(a, w1)
                },
                else_branch = e () => (float[N, 4, 8] r) {
                    a = MatMul(x, w2)
                    r = MatMul(a, w3)
                }
            >
            b = Flatten(x)
            a = MatMul(b, w4)
            z = MatMul(a, w5)
        }"""
    )
    shapes_of = {"w0": (8, 16), "w1": (16, 8), "w2": (8, 4), "w3": (4, 8), "w4": (32, 7), "w5": (7, 64)}
    proto.graph.initializer.extend(numpy_helper.from_array(_floats(*dims), name) for name, dims in shapes_of.items())
    model, outer = Model.from_proto(proto), 32 * 7 + 7 * 64
    x = np.zeros((1, 4, 8), np.float32)
    for taken, inner in ((True, 2 * 4 * 8 * 16), (False, 2 * 4 * 8 * 4)):
        feeds = {"x": x, "c": np.array(taken)}
        observed = shapes.observed(model, feeds)
        assert cost(model, observed).flops == 2 * outer, "nothing tells what the branches take"
        assert cost(model, observed, body_shapes(model, feeds)).flops == 2 * (outer + inner)


@pytest.mark.parametrize("mode", ["weights", "dynamic"])
@pytest.mark.filterwarnings("ignore:quant has no calibration data")
def test_weights_that_are_stored_or_looked_up_in_8_bits_are_as_many(mode: str) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((64, 32)).astype(np.float32),
        "w": rng.standard_normal((32, 40)).astype(np.float32),
        "k": rng.standard_normal((8, 1, 9, 9)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embedding"),
        helper.make_node("MatMul", ["rows", "w"], ["h"], name="fc"),
        helper.make_node("Unsqueeze", ["h", "axis"], ["image"]),
        helper.make_node("Conv", ["image", "k"], ["y"], name="conv"),
    ]
    model = _model(nodes, {"x": (2, 12)}, {**weights, "axis": np.array([1])})
    counted = _cost(model, x=(2, 12))
    context = Context(target=Target.parse("x86-vnni"), scope="quant")
    Quant.with_options({"mode": mode}).run(model, context)
    assert {decision.action for decision in context.decisions} <= {"stored", "quantized"}
    after = _cost(model, x=(2, 12))
    assert after.parameters == counted.parameters == sum(weight.size for weight in weights.values())
    assert after.per_layer["conv"].parameters == weights["k"].size
