"""The pass equalize: the same function, less error when quantized, a reason for every layer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning
from onnxcomp.evaluate import Evaluator, metric_named
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.scale_readers import readings
from onnxcomp.model import Model
from onnxcomp.passes.equalize import _WITHOUT_DATA, Equalize
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks
from tests.quantizing import build, quantize
from tests.rescaling import assert_same, run, units_of

W = np.random.default_rng(5).standard_normal


def apply(model: Model, data: Dataset | None, **options: Any) -> dict[str, tuple[str, str]]:
    """Run the pass; what it decided, by layer."""
    context = Context(target=Target.parse("x86-vnni"), data=data, scope="equalize")
    layers = [layer.name for layer in weighted_layers(model)]
    with warnings.catch_warnings():
        if data is None:
            warnings.simplefilter("ignore", OnnxcompWarning)  # that there are no data
        Equalize.with_options(options).run(model, context)
    assert context.warnings == ([] if data else [_WITHOUT_DATA])
    assert sorted(decision.layer for decision in context.decisions) == sorted(layers)
    return {decision.layer: (decision.action, decision.reason) for decision in context.decisions}


def unequal(seed: int = 0, limit: float | None = None) -> Net:
    """A convolution whose channels differ much in width, and one that makes up for it."""
    net = Net(seed, (3, 8, 8))
    x = net.conv("x", 16)
    x = net.activation(x) if limit is None else net.node("Clip", x, net.constant(0.0), net.constant(limit))
    x = net.conv(x, 8)
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    widths = np.exp2(np.linspace(-4, 4, 16)).astype(np.float32)
    for index, axis in ((0, 0), (2, 1)):
        node = [node for node in net.nodes if node.op_type == "Conv"][index // 2]
        for name in node.input[1:] if axis == 0 else node.input[1:2]:
            tensor = next(item for item in net.initializers if item.name == name)
            value = onnx.numpy_helper.to_array(tensor)
            shape = [-1 if position == axis else 1 for position in range(value.ndim)]
            factor = (widths if axis == 0 else 1 / widths).reshape(shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array((value * factor).astype(np.float32), name))
    return net


def sqnr_quantized(model: Model, data: Dataset) -> float:
    evaluator = Evaluator(model.copy(), data, metric_named("sqnr"))
    quantize(model, data, ranges="minmax", sqnr=0)
    return evaluator.evaluate(model).fidelity.sqnr_db


def test_unequal_channels_are_worth_decibels() -> None:
    net = unequal()
    data = Dataset.from_arrays(net.feeds(64))
    plain, model = net.model(), net.model()
    before = run(model, net.feeds())
    decisions = apply(model, data)
    assert_same(run(model, net.feeds()), before)
    assert [action for action, _ in decisions.values()] == ["equalized", "equalized", "skipped"]
    assert "no factors lower the expected rounding error" in decisions["/gemm5"][1]
    assert "output channels times" in decisions["/conv0"][1]
    assert "expected rounding error of their group -" in decisions["/conv0"][1]
    assert "input channels times" in decisions["/conv2"][1]
    assert "expected rounding error of their group -" in decisions["/conv2"][1]
    assert sqnr_quantized(model, data) > sqnr_quantized(plain, data) + 6


def test_nothing_is_done_where_it_gains_too_little_or_without_data() -> None:
    net = unequal()
    model = net.model()
    before = model.serialize()
    for decisions, reason in (
        (apply(model, None), "without calibration data"),
        (apply(model, Dataset.from_arrays(net.feeds(8)), least_gain=99), "lower the expected rounding error by 99 dB"),
    ):
        assert {action for action, _ in decisions.values()} == {"skipped"}
        assert all(reason in why for _, why in decisions.values())
    assert model.serialize() == before


def test_channels_that_reach_nothing_rounded_or_no_value_keep_their_scale() -> None:
    text = """net (float[n,6,4,4] x) => (float[n,8,4,4] y, float[m,8,4,4] z, double[n,8] w) {
        c = Conv<pads=[1,1,1,1]>(x, a) y = Conv(c, b)
        d = Conv<pads=[1,1,1,1]>(x, a2) e = Slice(d, zero, zero) z = Conv(e, b2)
        g = GlobalAveragePool(x) h = Flatten(g) f = MatMul(h, a3) i = Cast<to=11>(f) w = MatMul(i, b3) }"""
    arrays = {f"a{index}": W((8, 6, 3, 3)).astype(np.float32) for index in ("", 2)}
    arrays |= {f"b{index}": W((8, 8, 1, 1)).astype(np.float32) for index in ("", 2)}
    arrays |= {"a3": W((6, 8)).astype(np.float32), "b3": W((8, 8)), "zero": np.array([0])}
    data = Dataset.from_arrays({"x": W((8, 6, 4, 4)).astype(np.float32)})
    decisions = apply(build(text, arrays), data)
    assert decisions["Conv:c"][0] == "equalized"
    assert decisions["Conv:d"] == ("skipped", "e is empty in all calibration samples")
    assert decisions["MatMul:f"] == ("skipped", "its channels reach nothing that is rounded to 8 bits")


def test_layers_whose_weight_takes_no_scale_say_why() -> None:
    text = """net (float[n,8] x, float16[n,8] h) => (float[n,8] y, float16[n,8] z) {
        c = MatMul(x, a) r = Relu(c) w = DequantizeLinear(q, s) d = MatMul(r, w) e = MatMul(d, a) y = Softmax(e)
        z = MatMul(h, half) }"""
    arrays = {"a": W((8, 8)).astype(np.float32), "half": W((8, 8)).astype(np.float16)}
    arrays |= {"q": np.arange(64, dtype=np.int8).reshape(8, 8), "s": np.array(0.1, np.float32)}
    feeds = {"x": W((8, 8)).astype(np.float32), "h": W((8, 8)).astype(np.float16)}
    decisions = apply(build(text, arrays), Dataset.from_arrays(feeds))
    assert decisions == {
        "MatMul:c": ("skipped", "its weight is shared"),
        "MatMul:d": ("skipped", "its weight is quantized"),
        "MatMul:e": ("skipped", "its weight is shared"),
        "MatMul:z": ("skipped", "its constant half is float16"),
    }


def test_a_transposed_convolution_counts_what_its_rounding_costs() -> None:
    net = Net(0)
    net.conv(net.activation(net.conv_transpose(net.activation(net.conv("x", 16)), 16)), 8)
    model = net.model()
    layers = weighted_layers(model)
    found = readings(layers, units_of(model, net.feeds()))
    assert [(item.layer.name, item.axis) for item in found] == [("/convtranspose2", 1), ("/conv4", 1)]


def test_effort_is_told_where_there_are_data() -> None:
    net = unequal()
    model, data = net.model(), Dataset.from_arrays(net.feeds(64))
    assert Equalize().effort(model, None) is None
    found = Equalize().effort(model, data)
    assert found is not None
    assert found.bytes > 0


def test_a_limit_stops_scales_unless_they_stay_below_it() -> None:
    net = unequal(limit=6.0)
    data = Dataset.from_arrays(net.feeds(64))
    model = net.model()
    assert apply(model, data)["/conv0"][0] == "skipped"
    before = run(model, net.feeds())
    decisions = apply(model, data, limits=True)
    assert decisions["/conv0"][0] == "equalized"
    np.testing.assert_allclose(run(model, net.feeds()), before, rtol=0, atol=2e-3 * np.abs(before).max())
    assert decisions["/conv2"][0] == "equalized"
    assert Equalize().keeps_outputs
    assert not Equalize(limits=True).keeps_outputs


def test_channels_that_reach_a_limit_keep_their_scale() -> None:
    net = unequal(limit=1e-6)
    reached = apply(net.model(), Dataset.from_arrays(net.feeds(64)), limits=True)
    assert reached["/conv0"] == ("skipped", "it may reach the limit of a Clip")


def test_the_same_bytes_every_time() -> None:
    net = unequal(3)
    data = Dataset.from_arrays(net.feeds(16))
    results = []
    for _ in range(2):
        model = net.model()
        apply(model, data)
        results.append(model.serialize())
    assert results[0] == results[1]


@settings(max_examples=15)
@given(networks())
def test_random_networks_keep_their_function(net: Net) -> None:
    model, feeds = net.model(), net.feeds(4)
    before = run(model, feeds)
    apply(model, Dataset.from_arrays(feeds), least_gain=0)
    assert_same(run(model, feeds), before)
