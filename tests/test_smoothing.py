"""Activations smoothed before they are rounded: the expected error, the choice, and the exact rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.data import Dataset
from onnxcomp.evaluate import compare
from onnxcomp.graph.divisors import divide_channels
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.linalg.smoothing import rounding_error, treatments
from onnxcomp.model import Model
from onnxcomp.runtime import session
from tests.quantizing import build, quantize

Array = np.ndarray[Any, Any]


def rounded(values: Array, step: Any) -> Array:
    result: Array = np.rint(values / step) * step
    return result


@pytest.mark.parametrize("wide", [1.0, 20.0])
def test_the_expected_error_is_the_mean_of_what_happens(wide: float) -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((30, 40))
    widths = np.ones(40)
    widths[7] = wide
    x = rng.uniform(-1, 2, (4000, 40)) * widths
    s = rng.uniform(0.5, 2, 40)
    low, high, square = x.min(axis=0), x.max(axis=0), np.square(x).mean(axis=0)
    scaled, divided = W * s, x / s
    codes = rounded(scaled, np.abs(scaled).max(axis=1, keepdims=True) / 127)
    given = rounded(divided, (divided.max() - divided.min()) / 255)
    happened = float(np.square(given @ codes.T - x @ W.T).sum(axis=1).mean())
    assert rounding_error(W, low, high, square, s) == pytest.approx(happened, rel=0.2)


def test_a_wide_channel_is_divided_or_kept_apart() -> None:
    rng = np.random.default_rng(1)
    W = rng.standard_normal((16, 64))
    high = np.ones(64)
    high[5] = 200.0
    found = treatments(W, -high, high, np.square(high) / 3)
    nothing, divided, apart, *_ = found
    assert nothing.is_none
    assert not divided.is_none
    assert divided.divisors[5] > 3 * np.delete(divided.divisors, 5).max()
    assert list(apart.apart) == [5]
    assert nothing.error > 10 * divided.error > 20 * apart.error
    # The channel that is kept apart leaves the error of the others, all alike, for which nothing can be done.
    rest = np.delete(np.arange(64), 5)
    ones = np.ones(63)
    assert apart.error == pytest.approx(rounding_error(W[:, rest], -ones, ones, ones / 3, ones), rel=0.05)


def test_no_treatment_makes_it_worse_and_zeros_are_borne() -> None:
    rng = np.random.default_rng(2)
    for W in (rng.standard_normal((8, 6)), np.zeros((8, 6))):
        for high in (np.zeros(6), np.array([0, 1, 2, 3, 0, 5.0])):
            found = treatments(W, -high, high, np.square(high) / 3)
            assert all(np.isfinite(choice.divisors).all() and (choice.divisors > 0).all() for choice in found)
            assert found[1].error <= found[0].error


TWO_READERS = """
    g (float[2,3,6] x) => (float[2,3,5] y, float[6,4] z) {
        p = MatMul(x, w)
        y = Add(p, b)
        f = Reshape(x, shape)
        z = Gemm<transB = 1, alpha = 1.0>(f, v, c)
    }"""
ONE_ACTIVATION = """
    g (float[N,6] x) => (float[N,5] y, float[N,4] z, float[N,5] p) {
        p = MatMul(x, w)
        y = Add(p, b)
        z = Gemm<transB = 1>(x, v, c)
    }"""


def arrays(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (6, 5), "b": (5,), "v": (4, 6), "c": (4,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**16),
    st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6),
    st.sets(st.integers(0, 5), max_size=5),
    st.booleans(),
)
def test_dividing_and_keeping_apart_is_exact(seed: int, divisors: list[float], apart: set[int], shared: bool) -> None:
    text = ONE_ACTIVATION if shared else TWO_READERS
    more = {} if shared else {"shape": np.array([6, 6])}
    model = build(text, arrays(seed) | more)
    original = session.create(model)
    names = [tensor.name for tensor in model.graph.outputs]
    layers = weighted_layers(model)
    for sharing in [layers] if shared else [[layer] for layer in layers]:
        graph, outputs = model.graph, output_ids(model.graph)
        divide_channels(graph, graph, sharing, np.array(divisors), np.array(sorted(apart), int), outputs)
    onnx.checker.check_model(model.proto(), full_check=True)
    x = np.random.default_rng(seed).standard_normal((7, 6) if shared else (2, 3, 6)).astype(np.float32)
    expected, given = (
        dict(zip(names, each.run(None, {"x": x}), strict=True)) for each in (original, session.create(model))
    )
    for name in expected:
        np.testing.assert_allclose(given[name], expected[name], rtol=1e-4, atol=1e-4)


def test_the_result_reads_like_this() -> None:
    text = "g (float[N,6] x) => (float[N,5] y) { p = MatMul(x, w) \n y = Add(p, b) }"
    model = build(text, {name: array for name, array in arrays(0).items() if name in "wb"})
    divide_channels(model.graph, model.graph, weighted_layers(model), np.full(6, 2.0), np.array([1, 4]), set())
    lines = [
        f"{node.op}({', '.join(t.name for t in node.inputs)}) -> {node.outputs[0].name}" for node in model.graph.nodes
    ]
    assert lines == [
        "Mul(x, x_factors) -> x_smoothed",
        "Gather(x, x_channels) -> x_apart",
        "MatMul(x_smoothed, w) -> p",
        "Add(p, b) -> y_rest",
        "MatMul(x_apart, w_apart) -> y_part",
        "Add(y_rest, y_part) -> y",
    ]


def wide_mlp() -> tuple[Model, Dataset]:
    """Two MatMuls; the activation of the second has one channel that is 60 times as wide as the others."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((32, 64)) / 6
    first[:, 9] *= 60
    weights = {"u": first.astype(np.float32), "v": (rng.standard_normal((64, 48)) / 8).astype(np.float32)}
    model = build("g (float[N,32] x) => (float[N,48] y) { h = MatMul(x, u) \n y = MatMul(h, v) }", weights)
    return model, Dataset.from_arrays({"x": rng.standard_normal((64, 32)).astype(np.float32)}, model=model)


def test_quant_smooths_what_it_rounds_in_every_run_and_says_so() -> None:
    model, data = wide_mlp()
    original = session.create(model)
    decisions = quantize(model, data, mode="dynamic")
    second = next(decision for name, decision in decisions.items() if decision.reason.find("smoothed") >= 0)
    assert "channels of the activation smoothed" in second.reason
    smooth = compare(original, session.create(model), data).fidelity.sqnr_db
    plain, _ = wide_mlp()
    quantize(plain, None, mode="dynamic")
    assert smooth > compare(original, session.create(plain), data).fidelity.sqnr_db + 3


def test_nothing_is_smoothed_where_only_speed_counts() -> None:
    model, data = wide_mlp()
    quantize(model, data, mode="dynamic", sqnr=0)
    assert not any("smoothed" in tensor for tensor in model.graph.tensors())


def test_an_even_activation_is_left_alone() -> None:
    rng = np.random.default_rng(4)
    weights = {"u": (rng.standard_normal((32, 64)) / 6).astype(np.float32)}
    model = build("g (float[N,32] x) => (float[N,64] y) { y = MatMul(x, u) }", weights)
    data = Dataset.from_arrays({"x": rng.uniform(-1, 1, (64, 32)).astype(np.float32)}, model=model)
    quantize(model, data, mode="dynamic")
    assert not any("smoothed" in tensor for tensor in model.graph.tensors())


def test_a_bias_that_only_a_branch_adds_stays_there() -> None:
    rng = np.random.default_rng(5)
    model = build(
        """
        g (float[N,6] x, bool c) => (float[N,5] y) {
            p = MatMul(x, w)
            y = If (c) <then_branch = t () => (float[N,5] a) { a = Add(p, b) },
                        else_branch = e () => (float[N,5] d) { d = Identity(b2) }>
        }""",
        {name: array for name, array in arrays(0).items() if name in "wb"} | {"b2": np.ones((7, 5), np.float32)},
    )
    original = session.create(model)
    outputs = output_ids(model.graph)
    divide_channels(model.graph, model.graph, weighted_layers(model)[:1], np.full(6, 2.0), np.array([1, 4]), outputs)
    onnx.checker.check_model(model.proto(), full_check=True)
    changed = session.create(model)
    for taken in (True, False):
        feeds = {"x": rng.standard_normal((7, 6)).astype(np.float32), "c": np.array(taken)}
        np.testing.assert_allclose(changed.run(None, feeds)[0], original.run(None, feeds)[0], rtol=1e-4, atol=1e-4)
