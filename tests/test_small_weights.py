"""Weights of 4 and 16 bits in graphs: packing, restoring at load, integer kernels, allocation, determinism."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError, UsageError
from onnxcomp.evaluate import Evaluator, compare, metric_named
from onnxcomp.graph.int8_forms import FormWriter
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.rows import RowLayout
from onnxcomp.linalg.int8 import can_saturate
from onnxcomp.linalg.rounding import Precision, round_nearest
from onnxcomp.linalg.weights import grid_of_few_bits
from onnxcomp.model import Model
from onnxcomp.passes.quant import Quant
from onnxcomp.runtime import session
from onnxcomp.runtime.effort import effort_of_runs
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.stages import stages
from onnxcomp.runtime.target import Target
from tests.quantizing import VNNI, build, kernels, quantize
from tests.zoo import calibration, zoo_model

Array = np.ndarray[Any, Any]
AVX2 = Target.parse("x86-avx2")
RESTORING = {"Cast", "Mul", "Reshape", "Sub", "Div", "Mod"}


def network(opset: int = 17, seed: int = 0) -> Model:
    """Two convolutions, a depthwise one and a classifier."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    shapes = {"w0": (32, 3, 3, 3), "w1": (64, 32, 3, 3), "w2": (64, 1, 3, 3), "w3": (64, 64, 1, 1), "w4": (64, 10)}
    for name, shape in shapes.items():
        inputs = shape[0] if name == "w4" else np.prod(shape[1:])
        arrays[name] = (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)
    arrays["b1"] = (0.1 * rng.standard_normal(64)).astype(np.float32)
    return build(
        """
        g (float[N, 3, 12, 12] x) => (float[N, 10] y) {
            c0 = Conv<pads = [1, 1, 1, 1]>(x, w0)
            r0 = Relu(c0)
            c1 = Conv<pads = [1, 1, 1, 1]>(r0, w1, b1)
            r1 = Relu(c1)
            c2 = Conv<pads = [1, 1, 1, 1], group = 64>(r1, w2)
            r2 = Relu(c2)
            c3 = Conv(r2, w3)
            r3 = Relu(c3)
            p = GlobalAveragePool(r3)
            f = Flatten(p)
            y = MatMul(f, w4)
        }""",
        arrays,
        opset,
    )


def samples(count: int = 48, seed: int = 1) -> Dataset:
    """Smooth images, so that inputs of a layer go up and down together."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4))
    fine = np.kron(coarse, np.ones((1, 1, 3, 3))) + 0.3 * rng.standard_normal((count, 3, 12, 12))
    return Dataset.from_arrays({"x": fine.astype(np.float32)})


def sqnr(original: Model, model: Model, data: Dataset) -> float:
    return Evaluator(original, data, metric_named("sqnr")).evaluate(model).fidelity.sqnr_db


# -- storing -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    bits=st.sampled_from([2, 4]),
    opset=st.sampled_from([13, 21, 25]),
    outs=st.integers(2, 5),
    ins=st.sampled_from([32, 48, 50, 64]),
    blocked=st.booleans(),
)
def test_what_is_stored_in_few_bits_comes_back_exactly(
    seed: int, bits: int, opset: int, outs: int, ins: int, blocked: bool
) -> None:
    rng = np.random.default_rng(seed)
    model = build(
        "g (float[N, I] x) => (float[N, O] y) { y = MatMul(x, w) }",
        {"w": rng.standard_normal((ins, 2 * outs)).astype(np.float32)},
        opset,
    )
    (layer,) = weighted_layers(model)
    layout = RowLayout.of(layer)
    rows = layout.rows(layer.array().astype(np.float64))
    weights = grid_of_few_bits(rows, np.ones(1), bits, ins // 2 if blocked else 0).nearest(rows)
    writer = FormWriter(model.graph)
    writer.stored(layer, weights)
    writer.finish()
    onnx.checker.check_model(model.proto(), full_check=True)
    feeds = {"x": np.eye(ins, dtype=np.float32)}
    (result,) = session.create(model).run(None, feeds)
    expected = layout.array(weights.integers).astype(np.float32) * weights.scales[None]
    np.testing.assert_array_equal(result, expected)
    (stored,) = weighted_layers(model)
    assert stored.quantized
    assert stored.shape == (ins, 2 * outs)
    assert {kernel.op for kernel in optimized_kernels(model)} == {"MatMul"}, "restored once, at load"


@pytest.mark.parametrize("opset", [13, 21])
def test_the_nodes_that_restore_a_weight_are_few_and_gone_after_load(opset: int) -> None:
    model, data = network(opset), samples()
    decisions = quantize(model, data, mode="weights", bits=4)
    assert "4-bit weight" in decisions["Conv:c1"].reason
    added = {node.op for node in model.graph.nodes} & RESTORING
    assert added == ({"Cast", "Mul", "Reshape"} if opset >= 21 else RESTORING)
    assert not set(kernels(model)) & RESTORING


def test_layers_on_integer_kernels_read_4_bits_and_none_saturates() -> None:
    model, data = network(), samples()
    original = model.copy()
    decisions = quantize(model, data, target=AVX2, bits=4)
    assert "4-bit weights, 8-bit activations" in decisions["Conv:c1"].reason
    assert kernels(model)["QLinearConv"] >= 3
    assert not any(can_saturate(rows).any() for rows in integers_of_convolutions(model, data))
    assert not set(kernels(model)) & (RESTORING - {"Cast", "Mul"})
    assert sqnr(original, model, data) > 15
    unfolded = session.create(model, optimize=False)
    assert compare(session.create(model), unfolded, data).fidelity.sqnr_db > 25


def test_kernels_that_do_not_saturate_read_larger_integers() -> None:
    model, data = network(), samples()
    quantize(model, data, target=VNNI, bits=4)
    assert any(can_saturate(rows).any() for rows in integers_of_convolutions(model, data))


def integers_of_convolutions(model: Model, data: Dataset) -> list[Array]:
    """The int8 weights that are restored at load, with a row for each output."""
    names = [tensor.name for node in model.graph.nodes for tensor in node.outputs if "_int8" in tensor.name]
    shown = session.create(session.with_outputs(model.skeleton(), names))
    values = session.run(shown, data.sample(), names).values()
    rows = [array.reshape(len(array), -1) for array in values if array.dtype == np.int8 and array.ndim == 4]
    assert rows
    return rows


def test_integers_of_4_bit_weights_leave_room_where_16_bit_sums_could_saturate() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((16, 64))
    assert not can_saturate(round_nearest(rows, Precision(4, 16, avoid_saturation=True)).integers).any()
    assert np.abs(round_nearest(rows, Precision(4, 16)).integers).max() > 64


def test_matmuls_are_quantized_dynamically_with_4_bit_weights() -> None:
    model, data = network(), samples()
    original = model.copy()
    decisions = quantize(model, data, mode="dynamic", bits=4)
    assert "4-bit weights, activations quantized in every run" in decisions["MatMul:y"].reason
    assert sqnr(original, model, data) > 15


# -- choices -----------------------------------------------------------------------------------------------


def test_layers_over_their_share_of_the_loss_get_8_bits() -> None:
    sizes = {}
    for loss in (0.0, 1.0):
        model = network()
        decisions = quantize(model, samples(), mode="weights", bits=4, loss=loss)
        sizes[loss] = model.skeleton().size
        said = [d.reason for d in decisions.values() if "more than this layer's share" in d.reason]
        assert bool(said) == (loss == 0.0)
        assert all("8-bit weight" in reason for reason in said)
    assert sizes[1.0] < 0.75 * sizes[0.0]


def test_gptq_keeps_more_than_rounding_to_the_nearest_level() -> None:
    data, found = samples(96), {}
    for rounding in ("nearest", "gptq"):
        model = network()
        original = model.copy()
        quantize(model, data, mode="weights", bits=4, block=0, loss=10.0, rounding=rounding)
        found[rounding] = sqnr(original, model, samples(64, seed=9))
    assert found["gptq"] > found["nearest"] + 2


def test_8_bit_weights_of_few_inputs_are_rounded_for_their_outputs() -> None:
    model = network()
    decisions = quantize(model, samples(96), mode="weights")
    assert "rounding adds" in decisions["Conv:c2"].reason
    assert "rounding adds" not in decisions["Conv:c1"].reason


def test_without_data_weights_get_4_bits_of_the_nearest_level() -> None:
    model, data = network(), samples()
    original = model.copy()
    decisions = quantize(model, None, bits=4)
    assert "4-bit weight" in decisions["Conv:c1"].reason
    assert "fewer than 64 inputs" in decisions["Conv:c2"].reason
    assert sqnr(original, model, data) > 12
    with pytest.raises(PassError, match="data"):
        quantize(network(), None, rounding="gptq")


def test_16_bits_halve_the_file_and_hardly_change_outputs() -> None:
    model, data = network(), samples()
    original, size = model.copy(), model.skeleton().size
    decisions = quantize(model, data, bits=16)
    assert all("float16 weight" in d.reason for d in decisions.values() if d.action == "stored")
    assert size / model.skeleton().size > 1.7
    assert sqnr(original, model, data) > 50
    assert {str(layer.array().dtype) for layer in weighted_layers(model) if layer.quantized} == {"float16"}
    assert [out.type for out in session.create(model).get_outputs()] == ["tensor(float)"]
    assert not set(kernels(model)) & RESTORING


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 4, "mode": "weights"}, {"bits": 8}, {"bits": 16}])
def test_same_input_gives_the_same_bytes(options: dict[str, Any]) -> None:
    results = []
    for _ in range(2):
        model = network()
        quantize(model, samples(), **options)
        results.append(model.serialize())
    assert results[0] == results[1]


def test_a_model_with_4_bit_weights_is_left_alone() -> None:
    model, data = network(), samples()
    quantize(model, data, mode="weights", bits=4)
    before = model.serialize()
    decisions = quantize(model, data, mode="weights", bits=4)
    assert {d.action for d in decisions.values()} == {"skipped"}
    assert model.serialize() == before


def test_a_layer_that_returns_to_float_has_all_levels() -> None:
    model = network()
    layers = weighted_layers(model)
    plan = Quant().weight_plan(model, saturates=True)
    plan.decide(layers, [], None)
    kept = [plan.of(layer, keep=True).weights.limited for layer in layers]
    assert any(kept)
    plan.give_up(layers[1:])
    assert [plan.of(layer).weights.limited for layer in layers] == [kept[0], *[0] * (len(layers) - 1)]


# -- unusual values, and options that do not go together ---------------------------------------------------


@pytest.mark.parametrize(("size", "stored"), [(1.0, True), (1e-3, True), (1e-7, False), (1e-30, False), (1e6, False)])
def test_float16_is_not_for_weights_beyond_its_range(size: float, stored: bool) -> None:
    rng = np.random.default_rng(0)
    weight = (size * rng.standard_normal((64, 32))).astype(np.float32)
    model = build("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }", {"w": weight})
    (decision,) = quantize(model, None, bits=16).values()
    assert decision.action == ("stored" if stored else "skipped")
    assert stored or "float16" in decision.reason or "65504" in decision.reason


@pytest.mark.parametrize("options", [{"mode": "static"}, {"mode": "dynamic"}, {"rounding": "gptq"}])
def test_float16_goes_with_no_activations_and_no_rounding(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="bits=16 stores float16 for the file alone"):
        Quant.with_options({"bits": 16, **options})


def test_float16_needs_no_data_and_does_not_run_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Quant(bits=16).run(network(), Context(target=VNNI, scope="quant"))
    unfit = Dataset.from_arrays({"nothing": np.zeros((4, 1), np.float32)})
    decisions = quantize(network(), unfit, bits=16)
    assert {decision.action for decision in decisions.values()} == {"stored"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("options", [{"mode": "weights"}, {"mode": "weights", "bits": 4}, {"mode": "dynamic"}])
def test_a_sample_that_overflows_does_not_spoil_the_bias(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((64, 40)).astype(np.float32) / 8, "b": np.ones(40, np.float32)}
    model = build("g (float[N, 64] x) => (float[N, 40] y) { e = Exp(x) \n y = Gemm(e, w, b) }", arrays)
    x = rng.standard_normal((24, 64)).astype(np.float32)
    good, original = Dataset.from_arrays({"x": x[:-1]}), model.copy()
    x[-1] = 99.0  # whose exponential is infinite
    quantize(model, Dataset.from_arrays({"x": x}), **options)
    assert sqnr(original, model, good) > 15


@pytest.mark.parametrize("options", [{"mode": "weights"}, {"mode": "weights", "bits": 4}, {"bits": 4}])
def test_a_layer_of_a_constant_is_stored(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (64, 40), "k": (1, 64)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = build("g (float[N, 40] x) => (float[N, 40] y) { h = MatMul(k, w) \n y = Add(x, h) }", arrays)
    data = Dataset.from_arrays({"x": rng.standard_normal((24, 40)).astype(np.float32)})
    assert quantize(model, data, **options)["MatMul:h"].action == "stored"


def test_the_effort_counts_what_is_run() -> None:
    model, data = network(), samples()
    each = effort_of_runs(model, data, 1.0).bytes
    assert Quant(bits=16).effort(model, data) is None
    assert Quant(mode="weights", rounding="nearest").effort(model, data) is None
    assert (stored := Quant(mode="weights", bits=4).effort(model, data)) is not None
    assert stored.bytes == each
    plan = Quant(bits=4).weight_plan(model)
    assert plan.runs(weighted_layers(model), data) > Quant().weight_plan(model).runs(weighted_layers(model), data) > 0


def test_a_layer_is_deeper_than_those_that_a_body_before_it_reads() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("u", "v")}
    model = build(
        """
        g (float[N, 8] x, bool c) => (float[N, 8] y) {
            h = MatMul(x, u)
            i = If (c) <then_branch = t () => (float[N, 8] a) { a = Relu(h) },
                        else_branch = e () => (float[N, 8] b) { b = Neg(h) }>
            y = MatMul(i, v)
        }""",
        weights,
    )
    found = [[(depth, layer.name) for depth, layer in stage] for stage in stages(model, weighted_layers(model), 12)]
    assert found == [[(0, "MatMul:h")], [(1, "MatMul:y")]]


@pytest.mark.zoo
@pytest.mark.parametrize(("name", "smaller", "least"), [("fashion_resnet", 6.0, 30.0), ("minilm", 4.0, 12.0)])
def test_real_models_in_4_bits(name: str, smaller: float, least: float) -> None:
    path = zoo_model(name)
    model, data = Model.load(path), calibration(path, 128)
    original = model.copy()
    size = model.skeleton().size
    quantize(model, data, VNNI, mode="weights", bits=4)
    assert size / model.skeleton().size > smaller
    assert sqnr(original, model, data.take(64)) > least
