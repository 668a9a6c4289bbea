"""Equalize: the same function at any scales, the factors with the least expected error, a reason for every layer."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning
from onnxcomp.evaluate import Evaluator, metric_named
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.rescaling import ScaleUnits
from onnxcomp.graph.scale_readers import readings
from onnxcomp.graph.scaling import follow_scales
from onnxcomp.graph.scaling_rules import SCALING_RULES
from onnxcomp.linalg.equalization import Activation, Reader, _Objective, equalize, expected_error
from onnxcomp.linalg.smoothing import rounding_error
from onnxcomp.model import Model
from onnxcomp.passes.equalize import _WITHOUT_DATA, Equalize
from onnxcomp.runtime import session
from onnxcomp.runtime.peaks import Peaks
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks
from tests.quantizing import build, quantize

Array = np.ndarray[Any, Any]


def run(model: Model, feeds: dict[str, Array]) -> Array:
    onnx.checker.check_model(model.proto(), full_check=True)
    return np.asarray(next(iter(session.run(session.create(model, optimize=False), feeds).values())))


def assert_same(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * (1e-3 + np.abs(expected).max()))


def units_of(model: Model, feeds: dict[str, Array]) -> ScaleUnits:
    one = {name: value[:1] for name, value in feeds.items()}
    return ScaleUnits(follow_scales(model, observed(model, one), SCALING_RULES))


def rescale_at_random(model: Model, feeds: dict[str, Array], seed: int = 0) -> ScaleUnits:
    """Give every free unit some scale between 1/4 and 4."""
    units = units_of(model, feeds)
    scales = np.exp2(np.random.default_rng(seed).uniform(-2, 2, units.count))
    units.rescale(np.where(units.free, scales, 1.0))
    return units


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


# -- any scales keep the function --------------------------------------------------------------------------


@settings(max_examples=60)
@given(networks(), st.integers(0, 100))
def test_any_scales_keep_what_networks_compute(net: Net, seed: int) -> None:
    model, feeds = net.model(), net.feeds()
    before = run(model, feeds)
    rescale_at_random(model, feeds, seed)
    assert_same(run(model, feeds), before)


W = np.random.default_rng(5).standard_normal
HEAD = "net (float[n,6,4,4] x) => (float[n,o] y)"
IMAGE = {"a": W((8, 6, 3, 3)), "b": W((8, 8, 1, 1)), "k": W((8,)), "g": W((4, 8))}
ENDS = "r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm<transB=1>(f, g)"

# What lies between two layers; h is the result. Free units are those of each place where scales can change.
BETWEEN = {
    "h = Identity(c)": 8,
    "h = LeakyRelu(c)": 8,
    "h = MaxPool<kernel_shape=[2,2]>(c)": 8,
    "h = AveragePool<kernel_shape=[2,2]>(c)": 8,
    "h = Conv(c, b, k)": 16,
    "h = ConvTranspose(c, b)": 16,
    "h = BatchNormalization(c, k, k1, k2, k3)": 16,
    "h = InstanceNormalization(c, k, k1)": 8,
    "d = Conv(c, b) h = Add(c, d)": 8,
    "d = Conv(c, b) h = Sub(d, c)": 8,
    "d = Conv(c, b) h = Max(d, c)": 8,
    "d = Conv(c, b) h = Concat<axis=1>(c, d)": None,
    "d, e = Split<axis=1>(c) h = Add(d, e)": None,
    "d, e = Split<axis=1>(c) h = Concat<axis=1>(e, d)": 8,
    "d = Slice(c, one, seven, one) h = Pad(d, pads)": 2,  # those that nobody reads
    'h = Pad<mode="edge">(c, edges)': 8,
    "h = Gather<axis=1>(c, order)": 8,
    "d = Transpose<perm=[0,2,3,1]>(c) e = Mul(d, k) h = Transpose<perm=[0,3,1,2]>(e)": 16,
    "d = Reshape(c, halves) e = Transpose<perm=[0,2,1,3,4]>(d) h = Reshape(e, whole)": 8,
    "h = Div(c, k4)": 16,
    "h = Mul(c, half)": 8,
    "d = Sigmoid(c) h = Mul(c, d)": 0,
    "d = GlobalAveragePool(c) e = Conv(d, b) s = Sigmoid(e) h = Mul(s, c)": 8,
    "h = Clip(c, half)": 0,
    "h = Clip(c, zero)": 8,
    "h = Add(c, half)": 0,
    "h = Add(c, k4)": 8,
    "h = Mul(c, c)": 0,
    "h = Softmax<axis=1>(c)": 0,
    "d = ReduceMean<axes=[2,3]>(c) h = Add(c, d)": 8,
    "d = ReduceMax<axes=[1]>(c) h = Add(c, d)": 1,
    "d = ReduceSum(c, none) h = Add(c, d)": 1,
    "d = ReduceSum<noop_with_empty_axes=1>(c, none) h = Add(c, d)": 8,
    "h = Tile(c, twice)": 8,
    "h = PRelu(c, slopes)": 8,
    "h = Conv<group=4>(c, b2, k)": 16,
    "h = ConvTranspose<group=2, strides=[2,2]>(c, b4, k)": 16,
    "p0 = GlobalAveragePool(c) q = Flatten(p0) e = Gemm<alpha=0.5, beta=-2.0>(q, m, k) h = Unsqueeze(e, axes)": 16,
    "p0 = GlobalAveragePool(c) q = Flatten(p0) e = Gemm(q, m, half) h = Unsqueeze(e, axes)": 8,
    "h = Add(c, rows)": 0,
    "h = Mul(c, rows)": 8,
    "h = MatMul(c, batched)": 0,
    "d = Transpose<perm=[0,2,3,1]>(c) e = LayerNormalization(d, k, k1) h = Transpose<perm=[0,3,1,2]>(e)": 8,
    "d = Transpose<perm=[0,2,3,1]>(c) e = LayerNormalization(d, k, one_k) h = Transpose<perm=[0,3,1,2]>(e)": 0,
    "d = LayerNormalization<axis=2>(c, four, four2) h = Conv(d, b)": 9,
    "d = Expand(c, big) h = Relu(d)": 8,
    'h = Resize<mode="linear">(c, half, doubled)': 8,
    "d = Cast<to=10>(c) h = Cast<to=1>(d)": 0,
    "d = Greater(c, half) e = Conv(c, b) h = Where(d, c, e)": 0,
}


@pytest.mark.parametrize("between", BETWEEN)
def test_any_scales_keep_what_operators_compute(between: str) -> None:
    wide = "Concat<axis=1>(c" in between
    halves = "Add(d, e)" in between and "Split" in between
    arrays = {
        **IMAGE,
        "g": W((4, 16 if wide else 4 if halves else 8)),
        **{f"k{index}": np.abs(W((8,))) + 0.5 for index in (1, 2, 3)},
        "k4": W((8, 1, 1)),
        "half": np.array(0.5),
        "zero": np.array(0.0),
        "doubled": np.array([1.0, 1.0, 2.0, 2.0]),
        "slopes": W((8, 1, 1)),
        "b2": W((8, 2, 1, 1)),
        "b4": W((8, 4, 2, 2)),
        "m": W((8, 8)),
        "rows": W((4,)),
        "batched": W((8, 4, 4)),
        "one_k": W((1,)),
        "four": W((4,)),
        "four2": W((4,)),
    }
    whole = {
        "none": [],
        "twice": [1, 1, 2, 1],
        "big": [2, 8, 4, 4],
        "order": [7, 6, 5, 4, 3, 2, 1, 0],
        "axes": [2, 3],
        "one": [1],
        "seven": [7],
        "pads": [0, 2, 0, 0, 0, 0, 0, 0],
        "edges": [0, 0, 1, 1, 0, 0, 1, 1],
        "halves": [0, 2, 4, 4, 4],
        "whole": [0, 8, 4, 4],
    }
    text = f"{HEAD} {{ c = Conv<pads=[1,1,1,1]>(x, a) {between} {ENDS} }}"
    values = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    values.update({name: np.asarray(array, np.int64) for name, array in whole.items()})
    model = build(text, values, opset=17 if "LayerNormalization" in between else 13)
    feeds = {"x": np.asarray(W((2, 6, 4, 4)), np.float32)}
    before = run(model, feeds)
    units = rescale_at_random(model, feeds)
    assert_same(run(model, feeds), before)
    if (expected := BETWEEN.get(between)) is not None:
        assert int(units.free.sum()) == expected


def test_samples_that_take_the_place_of_channels_have_one_scale() -> None:
    """BatchNormalization behind a Transpose that puts the eight channels where the eight samples were."""
    text = """net (float[8,6,4,4] x) => (float[8,8,4,4] y) {
        c = Conv<pads=[1,1,1,1]>(x, a) t = Transpose<perm=[1,0,2,3]>(c) m = BatchNormalization(t, k1, k2, k3, k4)
        u = Transpose<perm=[1,0,2,3]>(m) y = Conv(u, b) }"""
    arrays = {f"k{index}": (np.abs(W((8,))) + 0.5).astype(np.float32) for index in (1, 2, 3, 4)}
    model = build(text, arrays | {name: IMAGE[name].astype(np.float32) for name in "ab"})
    feeds = {"x": W((8, 6, 4, 4)).astype(np.float32)}
    before = run(model, feeds)
    units = ScaleUnits(follow_scales(model, observed(model, feeds), SCALING_RULES))
    assert int(units.free.sum()) == 2  # all channels before the normalization, and all samples behind it
    units.rescale(np.where(units.free, np.exp2(np.arange(units.count) % 3 + 1.0), 1.0))
    assert_same(run(model, feeds), before)


def test_what_bodies_read_keeps_its_scale() -> None:
    text = """net (float[n,6,4,4] x) => (float[n,8,4,4] y, float[8] z) {
        c = Conv<pads=[1,1,1,1]>(x, a, k) d = Conv(c, b) y = Conv(d, b2)
        s = ReduceSum<keepdims=0>(x) p = Greater(s, zero)
        w = If(p) <
            then_branch = t () => (float[8] u) { v = ReduceMax<axes=[0,2,3], keepdims=0>(c) u = Add(v, k) },
            else_branch = e () => (float[8] q) { q = Exp(k) }>
        z = Identity(w) }"""
    arrays = {name: IMAGE[name].astype(np.float32) for name in "abk"}
    model = build(text, arrays | {"b2": W((8, 8, 1, 1)).astype(np.float32), "zero": np.float32(0)})
    feeds = {"x": W((2, 6, 4, 4)).astype(np.float32)}
    before = session.run(session.create(model, optimize=False), feeds)
    units = rescale_at_random(model, feeds)
    for name, value in session.run(session.create(model, optimize=False), feeds).items():
        assert_same(np.asarray(value), np.asarray(before[name]))
    assert int(units.free.sum()) == 8  # d's
    assert "c is used inside a control flow body" in units.reasons.values()


def test_transformers_scale_behind_normalization_and_attention() -> None:
    """LayerNormalization, tables, and the values of attention begin scales; Softmax does not see them."""
    text = """net (int64[n,t] x) => (float[n,t,o] y) {
        e = Gather(table, x) m = LayerNormalization(e, k1, k2)
        q = MatMul(m, a) k = MatMul(m, b) v = MatMul(m, c) kt = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, kt) p = Softmax(s) z = MatMul(p, v) o = MatMul(z, d) y = Add(o, e) }"""
    arrays = {name: W((8, 8)).astype(np.float32) for name in "abcd"} | {"table": W((20, 8)).astype(np.float32)}
    arrays |= {name: (np.abs(W((8,))) + 0.5).astype(np.float32) for name in ("k1", "k2")}
    model = build(text, arrays)
    feeds = {"x": np.random.default_rng(0).integers(0, 20, (2, 7))}
    before = run(model, feeds)
    units = rescale_at_random(model, feeds)
    assert_same(run(model, feeds), before)
    assert int(units.free.sum()) == 16  # behind the normalization, and the values


def test_outputs_and_shared_weights_are_pinned() -> None:
    net = Net(0)
    shared = net.weight(8, 8, 1, 1, fan_in=8)
    x = net.activation(net.conv("x", 8))
    x = net.node("Conv", net.node("Conv", x, shared), shared)
    shown = net.activation(net.conv(x, 8, kernel=1))
    net.conv(shown, 8)
    model, feeds = net.model(shown, net.nodes[-1].output[0]), net.feeds()
    units = units_of(model, feeds)
    assert not units.free.any()
    reasons = set(units.reasons.values())
    assert any("is shared" in reason for reason in reasons)
    assert any("is an output of the model" in reason for reason in reasons)


# -- the factors -------------------------------------------------------------------------------------------


def test_activations_alone_fill_their_range() -> None:
    """With weights that cost nothing, every channel is best as wide as the widest."""
    high, worth = np.array([1.0, 4.0, 0.5, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    activation = Activation(np.arange(4), np.zeros(4), high, worth)
    (solution,) = equalize([activation], [], np.ones(4, bool))
    widths = high * np.exp(solution.logs)
    np.testing.assert_allclose(widths, widths.mean(), rtol=0.06)
    assert solution.after / solution.before == pytest.approx((worth * high**2).sum() / (16 * worth.sum()), rel=0.02)


def test_weights_alone_become_alike() -> None:
    """With activations that cost nothing, all weights of the one output are best alike."""
    weight = np.array([[[1.0, 8.0, 0.25]]])
    (solution,) = equalize([], [Reader(np.arange(3), weight, np.ones(3), 1.0)], np.ones(3, bool))
    columns = weight[0, 0] / np.exp(solution.logs)
    np.testing.assert_allclose(columns, columns.mean(), rtol=0.06)


def problem(rng: np.random.Generator) -> tuple[list[Activation], list[Reader]]:
    """Three units, read by two layers in different order, one of them depthwise."""
    low, high = np.exp(rng.standard_normal((2, 3)))
    activation = Activation(np.arange(3), low, high, np.exp(rng.standard_normal(3)))
    plain = Reader(np.array([2, 0, 1]), np.exp(rng.standard_normal((1, 4, 3))), np.exp(rng.standard_normal(3)), 1.0)
    depthwise = Reader(np.arange(3), np.exp(rng.standard_normal((3, 1, 1))), np.ones(3), 2.0)
    return [activation], [plain, depthwise]


@pytest.mark.parametrize("seed", range(5))
def test_factors_are_as_good_as_those_of_brute_force(seed: int) -> None:
    activations, readers = problem(np.random.default_rng(seed))
    (solution,) = equalize(activations, readers, np.ones(3, bool))
    grid = np.linspace(-4, 4, 65)
    # One factor for all changes nothing, so one of them can be fixed.
    best = min(expected_error(np.array([0.0, a, b]), activations, readers) for a, b in itertools.product(grid, grid))
    assert solution.after == pytest.approx(expected_error(solution.logs, activations, readers))
    assert solution.after <= 1.02 * best
    assert solution.before == expected_error(np.zeros(3), activations, readers)


def test_gradients_are_those_of_the_smooth_error() -> None:
    activations, readers = problem(np.random.default_rng(9))
    objective, logs = _Objective(activations, readers, 3), np.array([0.3, -0.2, 0.5])
    for index in range(3):
        step = 1e-6 * np.eye(3)[index]
        difference = objective(logs + step, 8.0)[0] - objective(logs - step, 8.0)[0]
        assert objective(logs, 8.0)[1][index] == pytest.approx(difference / 2e-6, rel=1e-4)


def test_pinned_units_stay_and_bounds_hold() -> None:
    activations, readers = problem(np.random.default_rng(3))
    (solution,) = equalize(activations, readers, np.array([True, False, True]), np.array([0.1, 0.0, np.inf]))
    assert solution.logs[1] == 0
    assert 0 < solution.logs[0] <= 0.1 or solution.logs[0] < 0
    assert equalize(activations, readers, np.zeros(3, bool)) == []


def test_expected_error_is_that_of_rounding() -> None:
    """Against real rounding of both sides, per tensor and per output."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (20000, 32)) * np.exp2(np.linspace(-3, 0, 32))
    weight = rng.standard_normal((16, 32))
    logs = rng.normal(0, 0.5, 32)
    activation = Activation(np.arange(32), -x.min(0), x.max(0), np.square(weight).sum(0))
    reader = Reader(np.arange(32), np.abs(weight)[None], np.square(x).mean(0), 1.0)
    scaled, columns = x * np.exp(logs), weight / np.exp(logs)
    step = (scaled.max() - scaled.min()) / 255
    steps = np.abs(columns).max(1, keepdims=True) / 127
    rounded = np.round(scaled / step) * step @ (np.round(columns / steps) * steps).T
    error = np.square(rounded - x @ weight.T).mean(0).sum()
    assert expected_error(logs, [activation], [reader]) == pytest.approx(error, rel=0.3)


def test_expected_error_is_that_of_smoothing() -> None:
    """For one layer, where the same is done by dividing the activation."""
    rng = np.random.default_rng(1)
    weight, logs = rng.standard_normal((5, 7)), rng.normal(0, 0.5, 7)
    low, high, square = -rng.uniform(0, 2, 7), rng.uniform(0, 2, 7), rng.uniform(0, 1, 7)
    activation = Activation(np.arange(7), -low, high, np.square(weight).sum(0))
    reader = Reader(np.arange(7), np.abs(weight)[None], square, 1.0)
    expected = rounding_error(weight, low, high, square, np.exp(-logs))
    assert expected_error(logs, [activation], [reader]) == pytest.approx(expected)


def test_peaks_do_not_depend_on_batches() -> None:
    values = np.random.default_rng(0).standard_normal((12, 5, 4, 4)).astype(np.float32)
    whole, parts = Peaks(1), Peaks(1)
    whole.update(values)
    for part in np.split(values, 4):
        parts.update(part)
    np.testing.assert_allclose(np.stack(whole.reach(100)), np.stack(parts.reach(100)), rtol=1e-6)
    np.testing.assert_allclose(whole.square, np.square(values).mean((0, 2, 3)), rtol=1e-5)


def test_peaks_foresee_the_largest_of_more_samples() -> None:
    rng = np.random.default_rng(0)
    peaks, more = Peaks(1), rng.gumbel(5, 1, (1000, 40))
    peaks.update(rng.gumbel(5, 1, (128, 40)).astype(np.float32))
    low, high = peaks.reach(1000)
    assert not low.any()
    assert high.mean() == pytest.approx(more.max(0).mean(), rel=0.1)


# -- the pass ----------------------------------------------------------------------------------------------


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


def test_what_rescaling_writes() -> None:
    """Two channels times 2 and 1/4: the rows of one weight and its bias, the columns of the other."""
    text = """net (float[n,2,1,1] x) => (float[n,1,1,1] y) {
        c = Conv(x, a, b) r = Relu(c) s = Mul(r, m) y = Conv(s, d) }"""
    arrays = {
        "a": np.array([[1, 2], [3, 4]] * 8, np.float32).reshape(16, 2, 1, 1)[:2],
        "b": np.array([5, 6], np.float32),
        "m": np.array(3, np.float32),
        "d": np.array([[7, 8]], np.float32).reshape(1, 2, 1, 1),
    }
    arrays["a"] = np.pad(arrays["a"], ((0, 14), (0, 0), (0, 0), (0, 0)))  # too small a weight is no layer
    arrays["b"] = np.pad(arrays["b"], (0, 14))
    arrays["d"] = np.pad(arrays["d"], ((0, 0), (0, 14), (0, 0), (0, 0)))
    model = build(text, arrays)
    units = units_of(model, {"x": np.ones((1, 2, 1, 1), np.float32)})
    assert int(units.free.sum()) == 16
    scales = np.ones(units.count)
    scales[np.flatnonzero(units.free)[:2]] = 2, 0.25
    units.rescale(scales)
    written = {name: model.graph.tensors()[name].values.reshape(-1) for name in arrays}
    assert written["a"][:4].tolist() == [2, 4, 0.75, 1]
    assert written["b"][:2].tolist() == [10, 1.5]
    assert written["m"].tolist() == [3]
    assert written["d"][:2].tolist() == [3.5, 32]
