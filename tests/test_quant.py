"""quant: forms, fusion by ONNX Runtime, saturation, accuracy, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.data import Dataset
from onnxcomp.errors import PassError, UsageError
from onnxcomp.evaluate import compare
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.linalg.int8 import can_saturate, least_scales, quantize_bias, quantize_weights, with_least_scales
from onnxcomp.model import Model
from onnxcomp.passes.quant import Quant
from onnxcomp.runtime import latency, session
from onnxcomp.runtime.target import Target
from tests.quantizing import build, kernels, quantize

Array = np.ndarray[Any, Any]
AVX2 = Target.parse("x86-avx2")


def residual_net(channels: int = 32, seed: int = 0) -> Model:
    """Stem, one residual block, pooling, classifier."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, shape in {
        "w0": (channels, 3, 3, 3),
        "w1": (channels, channels, 3, 3),
        "w2": (channels, channels, 3, 3),
        "wf": (10, channels),
    }.items():
        arrays[name] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        arrays["b" + name[1:]] = 0.1 * rng.standard_normal(shape[0])
    return build(
        """
        g (float[N, 3, 16, 16] x) => (float[N, 10] y) {
            c0 = Conv<pads = [1, 1, 1, 1]>(x, w0, b0)
            r0 = Relu(c0)
            c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1, b1)
            r1 = Relu(c1)
            c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2, b2)
            s = Add(r0, c2)
            rs = Relu(s)
            p = GlobalAveragePool(rs)
            f = Flatten(p)
            y = Gemm<transB = 1>(f, wf, bf)
        }""",
        {name: array.astype(np.float32) for name, array in arrays.items()},
    )


def images(model: Model, samples: int = 24, seed: int = 1) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset.from_arrays({"x": rng.standard_normal((samples, 3, 16, 16)).astype(np.float32)}, model=model)


# -- static ------------------------------------------------------------------------------------------------


def test_every_layer_of_a_residual_net_runs_on_an_integer_kernel() -> None:
    model = residual_net()
    data = images(model)
    original = session.create(model)
    size = len(model.serialize())
    decisions = quantize(model, data)
    fused = kernels(model)
    assert fused["QLinearConv"] == 3
    assert fused["QLinearAdd"] == fused["QLinearGlobalAveragePool"] == fused["QGemm"] == 1
    assert not set(fused) & {"Conv", "FusedConv", "Gemm", "Add", "Relu", "DequantizeLinear"}
    assert {decision.action for decision in decisions.values()} == {"quantized"}
    assert "integer kernel QLinearConv" in decisions["Conv:c1"].reason
    assert len(model.serialize()) < size / 3
    result = compare(original, session.create(model), images(model, seed=2)).fidelity
    assert result.sqnr_db > 25
    assert (result.top1_agreement or 0) > 0.9


def test_names_of_inputs_outputs_and_dynamic_axes_survive() -> None:
    model = residual_net()
    quantize(model, images(model))
    assert [(t.name, t.shape) for t in model.graph.inputs] == [("x", ["N", 3, 16, 16])]
    assert [(t.name, t.shape) for t in model.graph.outputs] == [("y", ["N", 10])]
    values = session.run(session.create(model), {"x": np.zeros((5, 3, 16, 16), np.float32)})
    assert values["y"].shape == (5, 10)


def test_a_convolution_that_is_a_graph_output_keeps_its_name_and_fuses() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((32, 3, 3, 3)).astype(np.float32)
    model = build("g (float[N, 3, 16, 16] x) => (float[N, 32, 14, 14] y) { y = Conv(x, w) }", {"w": weights})
    data = images(model)
    original = session.create(model)
    quantize(model, data)
    assert kernels(model)["QLinearConv"] == 1
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 30


def test_same_input_gives_the_same_bytes() -> None:
    results = []
    for _ in range(2):
        model = residual_net()
        quantize(model, images(model))
        results.append(model.serialize())
    assert results[0] == results[1]


def test_layers_named_in_keep_stay_in_float() -> None:
    model = residual_net()
    decisions = quantize(model, images(model), keep=("Conv:c1",))
    assert decisions["Conv:c1"].action == "skipped"
    quantized = {layer.name: layer.quantized for layer in weighted_layers(model)}
    assert quantized == {"Conv:c0": True, "Conv:c1": False, "Conv:c2": True, "Gemm:y": True}


def test_a_layer_that_ruins_the_output_goes_back_to_float() -> None:
    """The second layer lives on a difference far below one level of its input's grid."""
    rng = np.random.default_rng(0)
    difference = np.zeros((64, 16), np.float32)
    difference[0], difference[1] = 1, -1
    model = build(
        """
        g (float[N, 64] x, float[N, 64] z) => (float[N, 16] y) {
            h = Gemm(x, w0)
            d = Gemm(z, w1)
            y = Add(h, d)
        }""",
        {"w0": 0.01 * rng.standard_normal((64, 16)).astype(np.float32), "w1": difference},
    )
    x, z = rng.standard_normal((2, 64, 64)).astype(np.float32)
    z[:, :2] += 1000
    original = session.create(model)
    data = Dataset.from_arrays({"x": x, "z": z}, model=model)
    decisions = quantize(model, data, mode="static")
    assert decisions["Gemm:d"].action == "stored"
    assert "too sensitive" in decisions["Gemm:d"].reason
    assert decisions["Gemm:h"].action == "quantized"
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 20


def test_weight_error_is_taken_out_of_the_bias() -> None:
    """Inputs with a large mean make the rounding of weights a shift of the output."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((48, 64)).astype(np.float32)
    model = build(
        "g (float[N, 64] x) => (float[N, 48] y) { y = Gemm<transB = 1>(x, w, b) }",
        {"w": weights, "b": np.zeros(48, np.float32)},
    )
    x = (5 + 0.5 * rng.standard_normal((512, 64))).astype(np.float32)
    data = Dataset.from_arrays({"x": x}, model=model)
    quantize(model, data, samples=512, ranges="minmax")
    shift = (session.run(session.create(model), {"x": x})["y"] - x @ weights.T).mean(axis=0)
    codes = np.rint(weights / (np.abs(weights).max(1, keepdims=True) / 127))
    uncorrected = x.mean(0) @ (codes * np.abs(weights).max(1, keepdims=True) / 127 - weights).T
    assert np.abs(shift).mean() < 0.3 * np.abs(uncorrected).mean()


GATED = """
    g (float[N, 3, 16, 16] x) => (float[N, 16, 16, 16] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w0)
        h = HardSwish(a)
        s = Add(h, shift)
        b = Conv<pads = [1, 1, 1, 1], group = 32>(s, w1)
        p = GlobalAveragePool(b)
        e = Conv(p, w2)
        i = HardSigmoid<alpha = 0.2, beta = 0.5>(e)
        m = Mul(b, i)
        y = Conv(m, w3)
    }"""


def test_hard_swishes_gates_and_constant_operands_run_on_integers() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w0": (32, 3, 3, 3), "w1": (32, 1, 3, 3), "w2": (32, 32, 1, 1), "w3": (16, 32, 1, 1)}
    arrays = {name: rng.standard_normal(s) / np.sqrt(np.prod(s[1:])) for name, s in shapes.items()}
    arrays["shift"] = np.array([-0.3])
    model = build(GATED, {name: array.astype(np.float32) for name, array in arrays.items()})
    data = images(model)
    original = session.create(model)
    quantize(model, data)
    fused = kernels(model)
    assert fused["QLinearConv"] == 4
    assert fused["QLinearMul"] == 2
    assert fused["QLinearAdd"] == 1
    assert not set(fused) & {"HardSigmoid", "HardSwish", "Mul", "Add", "Conv"}
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 25


def test_a_model_that_integer_kernels_slow_down_keeps_8_bit_weights_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slower = latency.LatencyComparison(0.5, 0.5, 0.5, 1.0, 2.0, 5, 1)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: slower)
    model = residual_net()
    data = images(model)
    decisions = quantize(model, data, target=Target.host())
    assert decisions["Conv:c1"].action == "stored"
    assert "slower" in decisions["Conv:c1"].reason
    assert decisions["Gemm:y"].action == "skipped"  # 320 weights are not worth two nodes
    assert "QLinearConv" not in kernels(model)


# -- other forms -------------------------------------------------------------------------------------------

TRANSFORMER = """
    g (int64[B, S] ids) => (float[B, S, 64] y) {
        e = Gather(table, ids)
        q = MatMul(e, wq)
        qb = Add(q, bq)
        k = MatMul(e, wk)
        a = Mul(qb, k)
        y = MatMul(a, wo)
    }"""


def transformer() -> Model:
    rng = np.random.default_rng(0)
    shapes = {"table": (200, 64), "wq": (64, 64), "wk": (64, 64), "wo": (64, 64), "bq": (64,)}
    return build(TRANSFORMER, {name: rng.standard_normal(s).astype(np.float32) / 4 for name, s in shapes.items()})


def test_matmul_models_are_quantized_dynamically_with_and_without_data() -> None:
    ids = np.random.default_rng(1).integers(0, 200, (8, 12))
    for with_data in (True, False):
        model = transformer()
        original = session.create(model)
        data = Dataset.from_arrays({"ids": ids}, model=model)
        size = len(model.serialize())
        decisions = quantize(model, data if with_data else None)
        fused = kernels(model)
        assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == 3
        assert decisions["Gather:e"].reason.startswith("a table of 8-bit rows")
        assert len(model.serialize()) < size / 3
        assert compare(original, session.create(model), data).fidelity.sqnr_db > 30


def test_without_data_convolutions_are_stored_in_8_bits_and_run_in_float() -> None:
    model = residual_net(64)
    data = images(model)
    original = session.create(model)
    size = len(model.serialize())
    decisions = quantize(model, None)
    assert decisions["Conv:c1"].action == "stored"
    assert "no calibration data" in decisions["Conv:c1"].reason
    fused = kernels(model)
    assert fused["Conv"] + fused["FusedConv"] == 3
    assert not set(fused) & {"Cast", "Mul", "DequantizeLinear"}, "restored at load"
    assert len(model.serialize()) < size / 3
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 35


def test_weights_alone_are_stored_in_8_bits_whatever_the_data() -> None:
    for with_data in (True, False):
        model = residual_net(64)
        data = images(model)
        original = session.create(model)
        size = len(model.serialize())
        decisions = quantize(model, data if with_data else None, mode="weights")
        assert {decision.action for decision in decisions.values()} == {"stored"}
        assert "mode is weights" in decisions["Conv:c1"].reason
        assert not {"QLinearConv", "DequantizeLinear"} & set(kernels(model))
        assert len(model.serialize()) < size / 3
        assert compare(original, session.create(model), data).fidelity.sqnr_db > 35


def test_a_shared_weight_and_a_transposed_convolution_are_stored_once() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((32, 32, 3, 3)).astype(np.float32) / 17,
        "t": rng.standard_normal((32, 16, 3, 3)).astype(np.float32) / 17,
        "w0": rng.standard_normal((32, 3, 3, 3)).astype(np.float32),
    }
    model = build(
        """
        g (float[N, 3, 16, 16] x) => (float[N, 16, 14, 14] y) {
            a = Conv(x, w0)
            b = Conv(a, w)
            c = Conv(b, w)
            d = ConvTranspose(c, t)
            y = ConvTranspose<pads = [0, 0, 0, 0]>(c, t)
        }""".replace("d = ConvTranspose(c, t)\n", "").replace("[N, 16, 14, 14]", "[N, 16, 12, 12]"),
        arrays,
    )
    data = images(model)
    original = session.create(model)
    decisions = quantize(model, data)
    assert [decisions[name].action for name in ("Conv:b", "Conv:c", "ConvTranspose:y")] == ["stored"] * 3
    assert "shared" in decisions["Conv:b"].reason
    assert compare(original, session.create(model), data).fidelity.sqnr_db > 25


# -- refusals ----------------------------------------------------------------------------------------------


def test_static_without_data_is_refused_in_one_sentence() -> None:
    with pytest.raises(PassError, match="needs calibration data; give it with --data"):
        quantize(residual_net(), None, mode="static")


def test_unknown_layer_in_keep_and_bad_options_are_refused() -> None:
    with pytest.raises(PassError, match="'nosuch'"):
        quantize(residual_net(), None, keep=("nosuch",))
    with pytest.raises(UsageError, match="ranges"):
        Quant.with_options({"ranges": "widest"})


def test_a_quantized_model_is_left_alone() -> None:
    model = residual_net()
    data = images(model)
    quantize(model, data)
    once = model.serialize()
    decisions = quantize(model, data)
    assert {d.reason for d in decisions.values()} == {"the weight is quantized already"}
    assert model.serialize() == once


def test_a_model_that_would_grow_is_refused() -> None:
    model = build("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(PassError, match="enlarge"):
        quantize(model, None)


# -- 8-bit arithmetic --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.integers(1, 8), inputs=st.integers(1, 40))
def test_careful_weights_never_saturate_and_use_as_many_levels_as_they_may(
    seed: int, channels: int, inputs: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_t(3, (channels, inputs))
    careful = quantize_weights(matrix, avoid_saturation=True)
    for row in careful.codes.astype(np.int64):
        pairs = row[:, None] + row[None, :]
        np.fill_diagonal(pairs, 0)
        assert 255 * np.abs(pairs).max(initial=0) <= 32767
    assert not can_saturate(careful.codes).any()
    assert np.abs(careful.codes).max(axis=1).min() >= 63
    plain = quantize_weights(matrix)
    np.testing.assert_array_equal(np.abs(plain.codes).max(axis=1), 127)
    assert careful.limited == np.count_nonzero(careful.scales > plain.scales)
    error = np.abs(careful.codes * careful.scales[:, None].astype(np.float64) - matrix)
    assert np.all(error <= careful.scales[:, None] * 0.5001)


def test_avx2_limits_levels_and_says_so() -> None:
    model = residual_net()
    decisions = quantize(model, images(model), target=AVX2)
    assert "channels have fewer levels, so that sums cannot saturate" in decisions["Conv:c1"].reason
    plain = residual_net()
    assert "saturate" not in quantize(plain, images(plain))["Conv:c1"].reason


def test_a_bias_beside_tiny_weights_does_not_overflow() -> None:
    bias = np.array([3.0, -1e4, 0.0])
    scale = 0.05
    weights = with_least_scales(quantize_weights(np.full((3, 4), 1e-12)), least_scales(bias, scale))
    codes, grid = quantize_bias(bias, scale, weights.scales)
    np.testing.assert_allclose(codes * grid.astype(np.float64), bias, rtol=1e-6, atol=1e-9)
    with pytest.raises(OverflowError):
        quantize_bias(bias, scale, np.full(3, 1e-12, np.float32))


# -- operator sets -----------------------------------------------------------------------------------------

OLD = {
    "softmax": (11, "y = Softmax<axis = 1>(x)"),
    "softmax by default": (12, "y = Softmax(x)"),
    "squeeze": (11, "u = Unsqueeze<axes = [0]>(x) y = Squeeze<axes = [0]>(u)"),
    "reduce": (11, "y = ReduceSum<axes = [2], keepdims = 1>(x)"),
    "split": (11, "a, b = Split<axis = 3, split = [2, 3]>(x) y = Concat<axis = 3>(b, a)"),
    "clip": (10, "y = Clip<min = -0.5, max = 0.5>(x)"),
    "pad": (10, "y = Pad<pads = [0, 0, 1, 0, 0, 0, 0, 2], value = 1.5>(x)"),
    "slice": (9, "y = Slice<starts = [1], ends = [3], axes = [2]>(x)"),
    "dropout": (11, "y = Dropout<ratio = 0.3>(x)"),
    "upsample": (9, 'y = Upsample<mode = "nearest">(x, scales)'),
    "resize": (10, 'y = Resize<mode = "linear">(x, scales)'),
}


@pytest.mark.parametrize("name", OLD)
def test_raising_the_operator_set_changes_no_value(name: str) -> None:
    opset, nodes = OLD[name]
    arrays = {"scales": np.array([1, 1, 2, 2], np.float32)} if "scales" in nodes else {}
    model = build(f"g (float[2, 3, 4, 5] x) => (float[A, B, C, D] y) {{ {nodes} }}", arrays, opset)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)}
    expected = session.run(session.create(model), inputs)["y"]
    assert upgrade_opset(model, 13)
    assert model.opset == 13
    onnx.checker.check_model(model.proto(), full_check=True)
    np.testing.assert_allclose(session.run(session.create(model), inputs)["y"], expected, rtol=1e-6)
    assert not upgrade_opset(model, 13)


def test_an_operator_whose_change_nobody_wrote_down_is_refused() -> None:
    model = build("g (float[4] x) => (float[2] y, int64[2] i) { y, i = TopK<axis = 0, k = 2>(x) }", {}, 9)
    with pytest.raises(PassError, match="TopK"):
        upgrade_opset(model, 13)


def test_an_old_model_is_raised_and_quantized() -> None:
    model = residual_net()
    proto = model.proto()
    proto.opset_import[0].version = 11
    old = Model.from_proto(proto)
    quantize(old, images(old))
    assert old.opset == 13
    assert kernels(old)["QLinearConv"] == 3
