"""quant's placement of integers: gates, grids that are shared, heads, models that are quantized in part."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime import quantization as ort_quantization

from onnxcomp import compress
from onnxcomp.data import Dataset
from onnxcomp.evaluate import compare
from onnxcomp.graph import integer_grids
from onnxcomp.graph.inferred import infer_types
from onnxcomp.graph.integer_plan import make_plans, unsuitable
from onnxcomp.graph.integer_preparation import prepare
from onnxcomp.graph.integer_writer import write_plans
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.products import merge_biases
from onnxcomp.graph.rounding import round_to_nearest
from onnxcomp.linalg.rounding import Precision
from onnxcomp.model import Model
from onnxcomp.runtime import latency, session
from onnxcomp.runtime.calibration import calibrate
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target
from tests.blocks import CONVOLUTIONAL
from tests.generate import Net, networks
from tests.quantizing import VNNI, kernels, quantize
from tests.zoo import calibration, zoo_model

Array = np.ndarray[Any, Any]

FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def data_for(model: Model, net: Net, samples: int = 16) -> Dataset:
    return Dataset.from_arrays(net.feeds(samples), model=model)


def sqnr(original: Any, model: Model, data: Dataset, optimize: bool = True) -> float:
    return compare(original, session.create(model, optimize=optimize), data).fidelity.sqnr_db


def place(model: Model, data: Dataset) -> int:
    """All layers that can on integers, with plain ranges, whatever it costs; returns how many."""
    merge_biases(model.graph, infer_types(model))
    layers = [layer for layer in weighted_layers(model) if not unsuitable(layer)]
    layers = prepare(model, layers)
    plans = make_plans(model.graph, layers)
    tensors = [tensor for plan in plans for tensor in plan.tensors if not plan.is_known(tensor)]
    limits = {key: pair for plan in plans for key, pair in plan.limits.items()}
    found = calibrate(model, data, tensors, [], limits=limits)
    grids = {id(root): found.grid(root, "minmax") for plan in plans for root in plan.distinct_roots()}
    write_plans(model.graph, plans, grids, {layer.name: round_to_nearest(layer, Precision()) for layer in layers})
    return len(layers)


# -- gates -------------------------------------------------------------------------------------------------


def swish(net: Net, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", x))


def test_a_hard_swish_is_an_addition_and_a_product_of_integers() -> None:
    net = Net(shape=(3, 8, 8))
    net.conv(net.activation(net.conv("x", 16), "HardSwish"), 8)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data)
    fused = kernels(model)
    assert fused["QLinearConv"] == 2
    assert fused["QLinearAdd"] == fused["QLinearMul"] == fused["QuantizeLinear"] == fused["DequantizeLinear"] == 1
    assert not {"HardSigmoid", "HardSwish", "Mul", "Add"} & set(fused)
    assert sqnr(original, model, data) > 30


def test_a_swish_is_a_table_and_a_product_of_integers() -> None:
    net = Net(shape=(3, 8, 8))
    net.conv(swish(net, net.conv("x", 16)), 8)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data)
    fused = kernels(model)
    assert (fused["QLinearConv"], fused["QLinearSigmoid"], fused["QLinearMul"]) == (2, 1, 1)
    assert fused["QuantizeLinear"] == fused["DequantizeLinear"] == 1
    assert sqnr(original, model, data) > 30


def test_a_gate_behind_a_layer_alone_costs_nothing() -> None:
    net = Net(shape=(3, 8, 8))
    x = net.conv("x", 16)
    gate = net.node("HardSigmoid", net.conv(net.node("GlobalAveragePool", x), 16, kernel=1), alpha=0.3, beta=0.4)
    net.conv(net.node("Mul", x, gate), 8)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data)
    fused = kernels(model)
    assert fused["QLinearConv"] == 3
    assert not {"QLinearAdd", "HardSigmoid", "Clip"} & set(fused)
    assert fused["QuantizeLinear"] == fused["DequantizeLinear"] == 1
    assert sqnr(original, model, data) > 30


def test_values_that_a_hard_swish_sets_to_zero_take_no_levels() -> None:
    """One channel is far below -3, where the result is 0: the other channels keep all levels."""
    net = Net(shape=(3, 8, 8))
    hidden = net.conv("x", 16)
    net.conv(net.activation(hidden, "HardSwish"), 8)
    proto = net.proto()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == net.nodes[0].input[2])
    low = onnx.numpy_helper.to_array(bias).copy()
    low[0] = -1000.0
    bias.CopyFrom(onnx.numpy_helper.from_array(low, bias.name))
    model = Model.from_proto(proto)
    data, original = data_for(model, net), session.create(model)
    quantize(model, data, ranges="minmax")
    assert kernels(model)["QLinearConv"] == 2
    assert sqnr(original, model, data) > 30


def test_a_sigmoid_that_no_integer_kernel_reads_stays_in_float() -> None:
    net = Net(shape=(3, 8, 8))
    net.node("Sigmoid", net.conv(net.activation(net.conv("x", 16)), 4))
    model = net.model()
    data = data_for(model, net)
    quantize(model, data)
    assert kernels(model)["Sigmoid"] == 1


def test_what_follows_a_matmul_stays_in_float() -> None:
    """MatMulIntegerToFloat gives float32; rounding it before the bias is added would gain nothing."""
    net = Net(shape=(4, 16))
    net.channels["x"] = 16
    net.matmul(swish(net, net.matmul("x", 64)), 8)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data, mode="static")
    fused = kernels(model)
    assert fused["MatMulIntegerToFloat"] == 2
    assert not {"QLinearMatMul", "QLinearAdd", "QLinearSigmoid", "QLinearMul"} & set(fused)
    assert sqnr(original, model, data) > 30


# -- one tensor's integers for another ---------------------------------------------------------------------


def test_adding_and_multiplying_by_one_constant_costs_no_kernel() -> None:
    net = Net(shape=(3, 8, 8))
    x = net.activation(net.conv("x", 16), "HardSwish")
    net.conv(net.node("Add", net.node("Mul", x, net.constant([1.7])), net.constant(-0.3)), 8)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data)
    fused = kernels(model)
    assert fused["QLinearAdd"] == fused["QLinearMul"] == 1, "of the hard swish"
    assert fused["QuantizeLinear"] == fused["DequantizeLinear"] == 1
    assert sqnr(original, model, data) > 30


@settings(max_examples=40, deadline=None)
@given(
    slope=st.floats(0.05, 20),
    offset=st.floats(-40, 40),
    scale=st.floats(1e-3, 1.0),
    zero=st.integers(0, 255),
)
def test_integers_read_on_another_grid_are_the_affine_map_but_for_what_is_missing(
    slope: float, offset: float, scale: float, zero: int
) -> None:
    net = Net(shape=(3, 4, 4))
    x = net.conv("x", 4)
    net.conv(net.node("Add", net.node("Mul", x, net.constant(slope)), net.constant(offset)), 4)
    model = net.model()
    (plan,) = make_plans(model.graph, weighted_layers(model))
    tensors = {str(tensor.name): tensor for tensor in plan.tensors}
    source, result = tensors[x], plan.sites[1].source
    settled = integer_grids.settle(plan, {id(root): (scale, zero) for root in plan.distinct_roots()})
    codes = np.arange(256)
    (s, z), (t, w) = settled.grids[id(source)], settled.grids[id(result)]
    wanted = np.float32(slope) * s * (codes - z) + np.float32(offset)
    assert 0 <= z <= 255
    assert 0 <= w <= 255
    if id(result) in settled.shared:
        missing = settled.missing.get(id(result), 0.0)
        np.testing.assert_allclose(t * (codes - w) + missing, wanted, rtol=1e-5, atol=1e-5 * abs(offset))
        assert abs(missing) <= 0.5001 * t
    else:  # zero would not be a level
        assert not wanted.min() <= 0 <= wanted.max()
        assert t * (255 - w) >= wanted.max() - t
        assert -t * w <= wanted.min() + t
    assert s <= scale * (1 + 1 / 16) * (1 + 1e-6), "a range grows a little at most"


def test_what_an_offset_misses_is_in_the_bias() -> None:
    """Half a level of the first layer would shift every output of the second."""
    rng = np.random.default_rng(0)
    net = Net(shape=(16, 8, 8))
    hidden = net.conv("x", 64, kernel=1)
    x = rng.uniform(0, 1, (64, 16, 8, 8)).astype(np.float32)
    level = np.ptp(next(iter(session.run(session.create(net.model(hidden)), {"x": x}).values()))) / 255
    net.conv(net.node("Add", hidden, net.constant(2.5 * level)), 64, kernel=1)
    model = net.model()
    original = session.create(model)
    quantize(model, Dataset.from_arrays({"x": x}, model=model), ranges="minmax")
    exact, rounded = (next(iter(session.run(item, {"x": x}).values())) for item in (original, session.create(model)))
    weight = onnx.numpy_helper.to_array(net.initializers[-2]).reshape(64, 64)
    shift = np.abs(0.5 * level * weight.sum(axis=1)).mean()
    assert np.abs((rounded - exact).mean(axis=(0, 2, 3))).mean() < 0.3 * shift


def test_a_rectifier_keeps_its_integer_kernel_where_a_constant_is_added_behind_it() -> None:
    """Zero is the lowest level behind it, and stays that: reading the sum on another grid is no choice there."""
    net = Net(shape=(3, 8, 8))
    net.conv(net.node("Add", net.activation(net.conv("x", 16)), net.constant(0.02)), 16)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    quantize(model, data)
    assert (kernels(model)["QLinearConv"], kernels(model)["QLinearAdd"]) == (2, 1)
    assert sqnr(original, model, data) > 30


# -- upsampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "position", "rounding", "tiles"),
    [
        (2, "asymmetric", "floor", True),
        (3, "asymmetric", "floor", True),
        (2, "half_pixel", "round_prefer_floor", True),
        (5, "pytorch_half_pixel", "round_prefer_ceil", True),
        (2, "asymmetric", "round_prefer_floor", True),
        (3, "asymmetric", "round_prefer_floor", False),
        (2, "half_pixel", "floor", False),
        (2, "align_corners", "round_prefer_floor", False),
        (1.5, "asymmetric", "floor", False),
    ],
)
def test_upsampling_by_whole_factors_copies_rows_of_integers(
    factor: float, position: str, rounding: str, tiles: bool
) -> None:
    """The values are those of Resize, whatever form it gets."""
    net = Net(shape=(3, 6, 4))
    hidden = net.activation(net.conv("x", 16))
    scales = net.constant([1, 1, factor, factor])
    modes = {"coordinate_transformation_mode": position, "nearest_mode": rounding}
    net.conv(net.node("Resize", hidden, "", scales, mode="nearest", **modes), 16)
    proto = net.proto()
    del proto.graph.value_info[:]  # the channels are those of the convolution
    model = Model.from_proto(proto)
    data, original = data_for(model, net), session.create(model)
    assert place(model, data) == 2
    found = kernels(model)
    assert (found["Tile"], found["Resize"]) == ((1, 0) if tiles else (0, 1))
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert sqnr(original, model, data) > 30
    assert sqnr(original, model, data, optimize=False) > 30


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("rectified", [True, False])
def test_a_transposed_convolution_without_overlap_runs_on_integers(rectified: bool, declared: bool) -> None:
    net = Net(shape=(3, 6, 4))
    x = net.conv_transpose(net.activation(net.conv("x", 16)), 8, kernel=3)
    net.conv_transpose(net.activation(x) if rectified else x, 8, kernel=2)
    proto = net.proto()
    if not declared:
        del proto.graph.value_info[:]
    model = Model.from_proto(proto)
    data, original = data_for(model, net), session.create(model)
    assert place(model, data) == 3
    found = kernels(model)
    assert found["QLinearConv"] == 3
    assert not {"ConvTranspose", "DepthToSpace", "Relu"} & set(found)
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert sqnr(original, model, data) > 30
    assert sqnr(original, model, data, optimize=False) > 30


def test_a_transposed_convolution_that_returns_to_float_is_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = latency.LatencyComparison(0.5, 0.5, 0.5, 1.0, 2.0, 5, 1)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: slower)
    net = Net(shape=(3, 6, 4))
    net.activation(net.conv_transpose(net.activation(net.conv("x", 16)), 16, kernel=2))
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    decisions = quantize(model, data, target=Target.host())
    assert Counter(decision.action for decision in decisions.values()) == {"stored": 1, "skipped": 1}
    assert kernels(model)["ConvTranspose"] == 1
    assert not {"DepthToSpace", "QLinearConv"} & set(kernels(model))
    assert sqnr(original, model, data) > 40


def test_transposed_convolutions_that_overlap_are_stored() -> None:
    rng = np.random.default_rng(0)
    net = Net(shape=(8, 6, 6))
    x = net.activation(net.conv("x", 16))
    weight = net.constant(0.1 * rng.standard_normal((16, 16, 3, 3)))
    y = net.node("ConvTranspose", x, weight, strides=[2, 2], pads=[1] * 4)
    model = net.model(y)
    decisions = quantize(model, data_for(model, net))
    assert decisions[f"/{y}"].action == "stored"
    assert "no integer kernel for ConvTranspose" in decisions[f"/{y}"].reason


# -- heads -------------------------------------------------------------------------------------------------


def detection_head(corners: bool) -> tuple[Model, Dataset]:
    """Boxes of 0 … 640 and scores of 0 … 1 in one output, and perhaps a layer that reads the boxes from there."""
    rng = np.random.default_rng(0)
    net = Net(shape=(3, 16, 16))
    features = net.activation(net.conv(net.activation(net.conv("x", 32)), 32))
    boxes = net.node("Mul", net.node("Sigmoid", net.conv(features, 4, kernel=1)), net.constant(640.0))
    scores = net.node("Sigmoid", net.conv(features, 2, kernel=1))
    joined = net.node("Reshape", net.concat(boxes, scores), net.constant([0, 6, 256], np.int64))
    head = net.node("Transpose", joined, perm=[0, 2, 1], channels=6)
    outputs = [head]
    if corners:
        bounds = [net.constant([value], np.int64) for value in (0, 4, 2)]
        net.channels[head] = 4
        outputs.append(net.matmul(net.node("Slice", head, *bounds), 16, bias=False))
    model = net.model(*outputs)
    return model, Dataset.from_arrays({"x": rng.standard_normal((16, 3, 16, 16)).astype(np.float32)}, model=model)


@pytest.mark.parametrize("corners", [True, False])
def test_a_detection_head_keeps_its_scores(corners: bool) -> None:
    model, data = detection_head(corners)
    original = session.create(model)
    quantize(model, data, mode="static")
    assert kernels(model)["QLinearConv"] == 4
    assert kernels(model)["MatMulIntegerToFloat"] == corners
    before, after = (
        next(iter(session.run(item, data.sample()).values())) for item in (original, session.create(model))
    )
    error = np.abs(after - before).max(axis=(0, 1))
    assert before[..., 4:].max() > 0.5
    assert error[4:].max() < 0.03, "scores"
    assert error[:4].max() < 640 * 0.03, "boxes"


def test_a_concatenation_of_equal_ranges_runs_on_integers() -> None:
    net = Net(shape=(3, 8, 8))
    x = net.activation(net.conv("x", 8))
    net.conv(net.concat(net.activation(net.conv(x, 8)), net.activation(net.conv(x, 8))), 4)
    model = net.model()
    quantize(model, data_for(model, net))
    assert kernels(model)["QLinearConcat"] == 1


# -- quantized already -------------------------------------------------------------------------------------


class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Dataset) -> None:
        self._feeds = data.feeds()

    def get_next(self) -> Any:
        return next(self._feeds, None)


def three_layers() -> Net:
    net = Net(shape=(8, 8, 8))
    first = net.activation(net.conv("x", 32))
    second = net.activation(net.conv(first, 32))
    net.add(first, net.conv(second, 32))
    return net


def partly(tmp_path: Path, left: list[str], **options: Any) -> tuple[Model, Dataset, Any]:
    """Three layers of which ONNX Runtime's quantizer leaves some; their data, and a session of the original."""
    net = three_layers()
    model = net.model()
    data = data_for(model, net)
    source, target = tmp_path / "float.onnx", tmp_path / "partly.onnx"
    onnx.save(net.proto(), source)
    ort_quantization.quantize_static(source, target, Reader(data), per_channel=True, nodes_to_exclude=left, **options)
    return Model.load(target), data, session.create(model)


@pytest.mark.parametrize("left", ["/conv0", "/conv2", "/conv4"])
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
def test_the_layers_that_another_quantizer_left_are_quantized_on_its_grids(
    left: str, weights: str, tmp_path: Path
) -> None:
    kind = ort_quantization.QuantType
    model, data, original = partly(tmp_path, [left], activation_type=kind.QUInt8, weight_type=getattr(kind, weights))
    before = sqnr(original, model, data)
    pairs = Counter(str(node.op) for node in model.graph.nodes)
    kept = [layer.weight.name for layer in weighted_layers(model) if layer.quantized]
    decisions = quantize(model, data)
    reasons = {name: decision.reason for name, decision in decisions.items() if decision.action == "skipped"}
    assert reasons == dict.fromkeys(set(decisions) - {left}, "the weight is quantized already")
    assert decisions[left].action == "quantized"
    assert kernels(model)["QLinearConv"] == 3
    assert {layer.weight.name for layer in weighted_layers(model)} > set(kept)
    new = Counter(str(node.op) for node in model.graph.nodes) - pairs
    # Only the first layer reads something that had no grid, the input.
    assert new == Counter({"DequantizeLinear": 3 if left == "/conv0" else 2, "QuantizeLinear": int(left == "/conv0")})
    assert sqnr(original, model, data) > before - 3
    once = model.serialize()
    assert {decision.action for decision in quantize(model, data).values()} == {"skipped"}
    assert model.serialize() == once


def test_a_tensor_that_others_read_in_8_bits_gets_no_second_grid() -> None:
    """Both layers read the input, the first one through a pair that is there already."""
    net = Net(shape=(8, 8, 8))
    scale, zero = net.constant(0.05), net.constant(128, np.uint8)
    rounded = net.node("DequantizeLinear", net.node("QuantizeLinear", "x", scale, zero), scale, zero)
    codes = net.constant(net.rng.integers(-127, 128, (32, 8, 3, 3)), np.int8)
    weight = net.node("DequantizeLinear", codes, net.constant(np.full(32, 0.002)), channels=32, axis=0)
    first = net.node("Conv", rounded, weight, channels=32, pads=[1] * 4)
    result = net.node("QuantizeLinear", first, scale, zero)
    net.add(net.node("DequantizeLinear", result, scale, zero), net.conv("x", 32))
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    pairs = Counter(str(node.op) for node in model.graph.nodes)
    decisions = quantize(model, data)
    assert Counter(decision.action for decision in decisions.values()) == {"quantized": 1, "skipped": 1}
    new = Counter(str(node.op) for node in model.graph.nodes) - pairs
    assert new == {"QuantizeLinear": 1, "DequantizeLinear": 3}, "of the result, the weight and the bias"
    assert kernels(model)["QLinearConv"] == 2
    assert sqnr(original, model, data) > 25


def test_a_dynamically_quantized_model_keeps_what_it_has(tmp_path: Path) -> None:
    net = Net(shape=(16,))
    net.matmul(net.activation(net.matmul("x", 64)), 64)
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    source, target = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    onnx.save(net.proto(), source)
    ort_quantization.quantize_dynamic(source, target, nodes_to_exclude=["/matmul0"])
    model = Model.load(target)
    decisions = quantize(model, data)
    actions = Counter((decision.action, decision.reason.split(",")[0]) for decision in decisions.values())
    assert actions == {("skipped", "the weight is quantized already"): 1, ("quantized", "8-bit weights"): 1}
    assert not {"MatMul", "Gemm"} & set(kernels(model))
    assert sqnr(original, model, data) > 25


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights"])
def test_quantizing_twice_changes_nothing(mode: str, tmp_path: Path) -> None:
    net = three_layers()
    net.matmul(net.flatten(net.node("GlobalAveragePool", net.nodes[-1].output[0]), 1), 64)
    model = net.model()
    data = data_for(model, net)
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    compress(model, f"quant(mode={mode!r})", data=data, output=first, target=VNNI)
    report = compress(first, f"quant(mode={mode!r})", data=data, output=second, target=VNNI).report
    assert report.succeeded
    assert {decision.action for decision in report.passes[-1].decisions} == {"skipped"}
    feeds = data.sample()
    values = [session.run(session.create(path.read_bytes()), feeds) for path in (first, second)]
    for name, value in values[0].items():
        np.testing.assert_array_equal(values[1][name], value)


# -- any network -------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(networks(blocks=CONVOLUTIONAL))
def test_any_network_runs_on_integer_kernels_alone_and_means_the_same_without_them(net: Net) -> None:
    model = net.model()
    data, original = data_for(model, net), session.create(model)
    layers = place(model, data)
    onnx.checker.check_model(model.proto(), full_check=True)
    found = kernels(model)
    assert not FLOAT_LAYERS & set(found)
    assert found["QLinearConv"] + found["QGemm"] + found["MatMulIntegerToFloat"] == layers
    fused, plain = (session.run(session.create(model, optimize=flag), data.sample()) for flag in (True, False))
    exact = session.run(original, data.sample())
    for name, value in exact.items():
        levels = np.ptp(value) / 255
        assert np.abs(fused[name] - plain[name]).max() < 6 * levels, "kernels round otherwise, but not much"
        assert np.abs(fused[name] - value).max() < 60 * levels


# -- real networks -----------------------------------------------------------------------------------------

# Layers on integer kernels, and how many conversions are left at most.
COVERAGE = {
    "mobilenetv2": ({"QLinearConv": 52, "QLinearAdd": 10, "QGemm": 1}, 2),
    "ppocr_rec": ({"QLinearConv": 38, "MatMulIntegerToFloat": 9, "QLinearMul": 34}, 20),
    "ppocr_det": ({"QLinearConv": 62, "QLinearMul": 34}, 4),
    "fashion_resnet": ({"QLinearConv": 11, "QLinearAdd": 4, "QGemm": 1}, 2),
}


@pytest.mark.zoo
@pytest.mark.parametrize("name", COVERAGE)
def test_real_networks_stay_on_integers(name: str, tmp_path: Path) -> None:
    least, most = COVERAGE[name]
    path = zoo_model(name)
    out = tmp_path / "out.onnx"
    assert compress(path, "quant(sqnr=0)", data=calibration(path, 8), output=out, target=VNNI).report.succeeded
    found = Counter(kernel.op for kernel in optimized_kernels(out.read_bytes()))
    assert {op: found[op] for op in least} == {op: max(found[op], count) for op, count in least.items()}
    assert found["QuantizeLinear"] + found["DequantizeLinear"] <= most
