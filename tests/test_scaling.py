"""Scales of channels: any that are followed keep what a model computes, all others are pinned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.graph.rescaling import ScaleUnits
from onnxcomp.graph.scaling import follow_scales
from onnxcomp.graph.scaling_rules import SCALING_RULES
from onnxcomp.runtime import session
from onnxcomp.runtime.shapes import observed
from tests.generate import Net, networks
from tests.quantizing import build
from tests.rescaling import assert_same, rescale_at_random, run, units_of


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
