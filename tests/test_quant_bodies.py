"""quant inside the bodies of If, Loop and Scan: forms, fusion, shared weights, branches that never run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp import compress
from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.evaluate import compare
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passes.quant import Quant
from onnxcomp.report.inspection import inspect
from onnxcomp.runtime import latency, session
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target
from tests.generate import Program, Statement, statements
from tests.quantizing import VNNI, build, kernels, quantize
from tests.zoo import calibration, zoo_model

Array = np.ndarray[Any, Any]


def weights(**shapes: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in shapes.items()
    }


def images(model: Model, samples: int = 16, low: float = 0.0) -> Dataset:
    rng = np.random.default_rng(1)
    x = rng.uniform(low, 1, (samples, 8, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x}, model=model)


BRANCHES = """
    g (float[N, 8, 8, 8] x) => (float[N, 16, 8, 8] y) {
        h = Relu(x)
        s = ReduceSum<keepdims = 0>(x)
        c = Greater(s, zero)
        y = If(c) <
            then_branch = t () => (float[N, 16, 8, 8] r) {
                a = Conv<pads = [1, 1, 1, 1]>(h, w1)
                b = Relu(a)
                r = Conv<pads = [1, 1, 1, 1]>(b, w2)
            },
            else_branch = e () => (float[N, 16, 8, 8] r) {
                a = Conv<pads = [1, 1, 1, 1]>(h, w3)
                r = Relu(a)
            }
        >
    }"""


def branches() -> Model:
    arrays = weights(w1=(16, 8, 3, 3), w2=(16, 16, 3, 3), w3=(16, 8, 3, 3))
    return build(BRANCHES, {**arrays, "zero": np.float32(0)})


def test_convolutions_of_both_branches_run_on_integer_kernels() -> None:
    model = branches()
    x = np.random.default_rng(1).uniform(-1, 1, (16, 8, 8, 8)).astype(np.float32)
    x += np.where(np.arange(16) % 2, 0.2, -0.2).astype(np.float32)[:, None, None, None]
    data = Dataset.from_feeds([{"x": sample[None]} for sample in x])
    original, size = session.create(model), len(model.serialize())
    decisions = quantize(model, data)
    assert kernels(model)["QLinearConv"] == 3
    assert "FusedConv" not in kernels(model)
    assert {decision.action for decision in decisions.values()} == {"quantized"}
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 30
    assert len(model.serialize()) < size / 2


def test_a_branch_that_no_sample_takes_keeps_its_arithmetic() -> None:
    model = branches()
    original = session.create(model)
    decisions = quantize(model, images(model))
    assert Counter(d.action for d in decisions.values()) == {"quantized": 2, "stored": 1}
    assert "no calibration sample" in decisions["Conv:a#2"].reason
    assert kernels(model)["QLinearConv"] == 2
    other = images(model, low=-3.0)
    assert compare(original, session.create(model), other).fidelity.sqnr_db > 30


def test_a_convolution_in_a_loop_runs_on_an_integer_kernel() -> None:
    model = build(
        """
        g (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y) {
            n = Constant<value = int64 {3}>()
            y = Loop(n, , x) <
                body = b (int64 i, bool c, float[N, 8, 8, 8] h) => (bool d, float[N, 8, 8, 8] r) {
                    d = Identity(c)
                    a = Conv<pads = [1, 1, 1, 1]>(h, w)
                    r = Relu(a)
                }
            >
        }""",
        weights(w=(8, 8, 3, 3)),
        opset=11,
    )
    data, original = images(model), session.create(model)
    decisions = quantize(model, data)
    assert model.opset == 13
    assert "QLinearConv" in decisions["Conv:a"].reason
    assert kernels(model)["QLinearConv"] == 1
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 25


SHARED = """
    g (float[N, 32] x) => (float[N, 64] y) {
        s = ReduceSum<keepdims = 0>(x)
        c = Greater(s, zero)
        y = If(c) <
            then_branch = t () => (float[N, 64] r) { r = MatMul(x, w) },
            else_branch = e () => (float[N, 64] r) {
                m = MatMul(x, w)
                r = Neg(m)
            }
        >
    }"""


def test_a_weight_that_several_bodies_share_is_stored_once() -> None:
    model = build(SHARED, {**weights(w=(32, 64)), "zero": np.float32(0)})
    rng = np.random.default_rng(1)
    data = Dataset.from_arrays({"x": rng.standard_normal((16, 32)).astype(np.float32)})
    original = session.create(model)
    decisions = quantize(model, data)
    assert {decision.action for decision in decisions.values()} == {"stored"}
    assert all("shared" in decision.reason for decision in decisions.values())
    integers = [tensor for tensor in model.proto().graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert [list(tensor.dims) for tensor in integers] == [[32, 64]]
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(kernels(model)), "restored when the model is loaded"
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 35


def test_a_table_in_a_body_is_read_row_by_row() -> None:
    model = build(
        """
        g (int64[N] x, bool c) => (float[N, 32] y) {
            y = If(c) <
                then_branch = t () => (float[N, 32] r) { r = Gather(w, x) },
                else_branch = e () => (float[N, 32] r) {
                    k = Gather(w2, x)
                    r = Neg(k)
                }
            >
        }""",
        weights(w=(64, 32), w2=(64, 32)),
    )
    original = session.create(model)
    decisions = quantize(model, None)
    assert {decision.action for decision in decisions.values()} == {"quantized"}
    for taken in (True, False):
        feeds = {"x": np.arange(64), "c": np.array(taken)}
        expected, actual = (session.run(item, feeds)["y"] for item in (original, session.create(model)))
        np.testing.assert_allclose(actual, expected, atol=0.02)


@pytest.mark.parametrize("data", [True, False])
def test_two_bodies_that_multiply_one_outer_tensor_each_quantize_it(data: bool) -> None:
    model = build(
        SHARED.replace("m = MatMul(x, w)", "m = MatMul(x, w2)"),
        {**weights(w=(32, 64), w2=(32, 64)), "zero": np.float32(0)},
    )
    rng = np.random.default_rng(1)
    samples = Dataset.from_feeds([{"x": rng.standard_normal((1, 32)).astype(np.float32)} for _ in range(16)])
    original = session.create(model)
    decisions = quantize(model, samples if data else None, mode="dynamic")
    assert {decision.action for decision in decisions.values()} == {"quantized"}
    assert kernels(model)["DynamicQuantizeMatMul"] + kernels(model)["MatMulIntegerToFloat"] == 2
    assert compare(original, session.create(model), samples).fidelity.sqnr_db > 25


@settings(max_examples=15)
@given(statements(1), st.integers(0, 2**16), st.booleans(), st.sampled_from(["static", "auto", "dynamic"]))
def test_any_nest_of_bodies_quantizes_to_a_model_that_runs(
    program: list[Statement], seed: int, outer: bool, mode: Literal["static", "auto", "dynamic"]
) -> None:
    net = Program(program, seed, width=32, outer_weights=outer)
    model = net.model()
    data = Dataset.from_feeds([{"x": x[None]} for x in net.inputs(8)])
    original = session.create(model)
    try:
        decisions = quantize(model, data, mode=mode)
    except PassError as error:
        if "leaves an SQNR" in str(error):  # rounding makes an If change its mind
            return
        raise
    assert all(decision.reason for decision in decisions.values())
    for feeds in data.feeds():
        expected, actual = (next(iter(session.run(item, feeds).values())) for item in (original, session.create(model)))
        assert actual.shape == expected.shape
    assert {decision.action for decision in decisions.values()} <= {"quantized", "stored"}
    integers = set(kernels(model)) & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}
    assert bool(integers) == any(decision.action == "quantized" for decision in decisions.values())


def test_where_integer_kernels_in_bodies_are_slower_the_weights_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    slower = latency.LatencyComparison(0.5, 0.5, 0.5, 1.0, 2.0, 5, 1)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: slower)
    model = branches()
    original, data = session.create(model), images(model)
    context = Context(target=Target.host(), data=data, scope="quant")
    Quant().run(model, context)
    assert {decision.action for decision in context.decisions} == {"stored"}
    assert not kernels(model)["QLinearConv"]
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 35


@pytest.mark.zoo
def test_a_voice_detector_whose_layers_are_all_in_bodies(tmp_path: Path) -> None:
    path = zoo_model("silero_vad")
    out = tmp_path / "out.onnx"
    report = compress(path, "quant", data=calibration(path, 64), output=out, target=VNNI).report
    assert report.succeeded
    assert report.result.size_ratio > 3
    actions = Counter(decision.action for decision in report.passes[-1].decisions)
    assert actions["quantized"] == 6, "the branch of the sampling rate that the samples have"
    assert sum(actions.values()) == len(weighted_layers(Model.load(path))) == 36
    found = optimized_kernels(out.read_bytes())
    assert Counter(kernel.op for kernel in found)["QLinearConv"] == 6
    original, compressed = session.create(path.read_bytes()), session.create(out.read_bytes())
    decided = [
        [session.run(item, feeds)["output"].item() > 0.5 for item in (original, compressed)]
        for feeds in calibration(path, 253).feeds()
    ]
    assert np.mean([before == after for before, after in decided]) > 0.98
    assert sum(layer.shape is not None for layer in inspect(Model.load(path)).layers) == 36
