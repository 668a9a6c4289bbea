"""Weights that are restored from codes: found, decoded, trained on their grids, and written back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp import Context, Dataset, Model, Target
from onnxcomp.graph.coded import coded_biases, coded_weights
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.trainable import Trainable
from onnxcomp.linalg.code_grid import CodeGrid, deliberate_zeros
from onnxcomp.linalg.int8 import can_saturate
from onnxcomp.linalg.variables import Variables, stretch_of
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime import session
from tests.quantizing import build, quantize
from tests.test_small_weights import network, samples

Array = np.ndarray[Any, Any]
FORMS = [
    {"bits": 8, "mode": "static"},
    {"bits": 4, "mode": "static", "loss": 1.0},
    {"bits": 2, "mode": "static"},
    {"bits": 2, "mode": "static", "block": 0},
    {"bits": 8, "mode": "weights"},
    {"bits": 4, "mode": "weights", "loss": 1.0},
    {"bits": 2, "mode": "weights"},
]


def outputs(model: Model, data: Dataset) -> Array:
    found = session.create(model)
    return np.concatenate([found.run(None, feeds)[0] for feeds in data.feeds()])


def stored(proto: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.SerializeToString() for tensor in proto.graph.initializer}


@pytest.mark.parametrize("opset", [13, 21, 25])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_was_learnt_is_what_the_model_computes(form: dict[str, Any], opset: int) -> None:
    """Decoded it is the same network; and random variables written into the codes give that of the parameters."""
    model, data = network(opset), samples(8)
    quantize(model, data, **form)
    trainable = Trainable.of(model)
    before = outputs(model, data)
    # Integer kernels and float ones round what lies between two levels differently.
    close = 0.05 if form["mode"] == "static" else 1e-5
    assert np.abs(outputs(trainable.student, data) - before).max() <= close * np.abs(before).max()
    found = {parameter.name: parameter.value for parameter in trainable.parameters}
    variables = Variables(found, trainable.grids)
    assert len(trainable.grids) == 5
    rng = np.random.default_rng(0)
    learnt = {
        name: (
            value * rng.uniform(0.8, 1.2, value.shape)
            if name.endswith("/stretch")
            else value + 0.2 * value.std() * rng.standard_normal(value.shape)
        ).astype(np.float32)
        for name, value in variables.start.items()
    }
    trainable.write(model, learnt)
    onnx.checker.check_model(model.proto(), full_check=True)
    for parameter in trainable.parameters:
        parameter.tensor.values = variables.parameters(learnt)[parameter.name]
    ours, theirs = outputs(model, data), outputs(trainable.student, data)
    scale = np.abs(theirs).max()
    assert np.abs(before - ours).max() > 0.1 * scale
    assert np.abs(ours - theirs).max() <= close * scale


def test_nothing_learnt_leaves_the_bytes_alone() -> None:
    model, data = network(), samples()
    quantize(model, data, bits=4, mode="static", loss=1.0)
    before = stored(model.proto())
    trainable = Trainable.of(model)
    found = {parameter.name: parameter.value for parameter in trainable.parameters}
    trainable.write(model, Variables(found, trainable.grids).start)
    assert stored(model.proto()) == before


@pytest.mark.parametrize(("mode", "parts"), [("static", 1), ("weights", 1), ("static", 3)])
def test_codes_are_trained(mode: str, parts: int) -> None:
    original, model, data = network(), network(), samples()
    quantize(model, data, bits=2, mode=mode, block=0, rounding="nearest")
    context = Context(target=Target.host(), data=data, original=original, scope="recover")
    before = np.square(outputs(model, data) - outputs(original, data)).mean()
    names = [weight.tensor.name for weight in coded_weights(model)]
    Recover(epochs=40, batch=16, lr=3e-3, loss="mse", parts=parts).run(model, context)
    after = np.square(outputs(model, data) - outputs(original, data)).mean()
    assert after < 0.5 * before
    assert {decision.action for decision in context.decisions} == {"trained"}
    assert [weight.tensor.name for weight in coded_weights(model)] == names
    assert all(np.isin(weight.codes, [-2, -1, 0, 1]).all() for weight in coded_weights(model) if weight.codes.max() < 2)


def test_levels_that_are_safe_for_16_bit_sums_stay_safe() -> None:
    model, data = network(), samples()
    quantize(model, data, Target.parse("x86-avx2"), mode="static")
    trainable = Trainable.of(model)
    rng = np.random.default_rng(0)
    found = {parameter.name: parameter.value for parameter in trainable.parameters}
    learnt = {
        name: value + value.std() * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in Variables(found, {}).start.items()
    }
    learnt |= {stretch_of(name): np.ones(grid.scales.shape, np.float32) for name, grid in trainable.grids.items()}
    highest = {weight.tensor.name: np.abs(weight.codes).max() for weight in coded_weights(model)}
    trainable.write(model, learnt)
    for weight in coded_weights(model):
        assert np.abs(weight.codes).max() <= highest[weight.tensor.name]
        rows = weight.codes.reshape(len(weight.codes), -1) if weight.codes.ndim > 2 else weight.codes.T
        assert (highest[weight.tensor.name] > 64) or not can_saturate(rows).any()


def test_biases_follow_the_scales_of_their_weights() -> None:
    model, data = network(), samples()
    quantize(model, data, mode="static")
    trainable = Trainable.of(model)
    values = {bias.tensor.name: bias.value for bias in coded_biases(model)}
    found = {parameter.name: parameter.value for parameter in trainable.parameters}
    learnt = Variables(found, trainable.grids).start
    for name in trainable.grids:
        learnt[stretch_of(name)] = learnt[stretch_of(name)] * np.float32(1.5)
    assert values
    trainable.write(model, learnt)
    for bias in coded_biases(model):
        step = value_of(bias.tensor.inputs[0].inputs[1])
        assert step is not None
        assert (np.abs(bias.value - values[bias.tensor.name]) <= 0.51 * step).all()


@given(seed=st.integers(0, 2**16), rows=st.integers(1, 4), low=st.integers(-3, 0), high=st.integers(1, 3))
def test_derivatives_go_straight_through_the_rounding(seed: int, rows: int, low: int, high: int) -> None:
    """Against the formulas, weight by weight."""
    rng = np.random.default_rng(seed)
    weight, gradient = rng.standard_normal((2, rows, 6)).astype(np.float32)
    scales = rng.uniform(0.2, 1.0, (rows, 1)).astype(np.float32)
    factors = rng.integers(1, 4, (rows, 6)).astype(np.float32)
    stretch = rng.uniform(0.5, 2.0, (rows, 1)).astype(np.float32)
    grid = CodeGrid(scales, factors, np.float32(low), np.float32(high))
    by_weight, by_stretch = grid.pull(weight, stretch, gradient)
    value = grid.value(weight, stretch)
    expected = np.zeros(rows)
    for row in range(rows):
        for column in range(6):
            step = float(factors[row, column]) * float(scales[row, 0]) * float(stretch[row, 0])
            real = float(weight[row, column]) / step
            code = min(max(round(real), low), high)
            inside = low <= real <= high
            np.testing.assert_allclose(value[row, column], code * step, rtol=1e-5, atol=1e-6)
            assert by_weight[row, column] == (gradient[row, column] if inside else 0)
            part = step / float(stretch[row, 0])
            expected[row] += float(gradient[row, column]) * (code - real if inside else code) * part
    np.testing.assert_allclose(by_stretch[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_zeros_of_rounding_are_not_held_and_those_of_pruning_are() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64))
    for step in (1.2, 0.4, 0.02):
        codes = np.rint(weights / step)
        assert deliberate_zeros(codes) is None
        pruned = codes * (np.abs(weights) > 1.2)
        kept = deliberate_zeros(pruned)
        assert kept is not None
        np.testing.assert_array_equal(kept, pruned != 0)


def dequantized(codes: Array, zero: Array, scale: Array) -> Model:
    """A MatMul of codes as other tools write them."""
    arrays = {"q": codes, "z": zero, "s": scale}
    return build(
        "g (float[N, I] x) => (float[N, O] y) { w = DequantizeLinear<axis = 1>(q, s, z) y = MatMul(x, w) }", arrays
    )


@pytest.mark.parametrize(
    ("dtype", "zero", "codes"),
    [(np.uint8, 90, (0, 256)), (np.int8, 0, (-128, 128)), (np.int8, 3, (-128, 128)), (np.uint8, 128, (100, 150))],
)
def test_codes_of_other_tools_never_wrap(dtype: type, zero: int, codes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(*codes, (32, 8)).astype(dtype)
    stored.flat[:2] = codes[0], codes[1] - 1
    model = dequantized(stored, np.full(8, zero, dtype), rng.uniform(0.01, 0.02, 8).astype(np.float32))
    trainable = Trainable.of(model)
    (parameter,) = trainable.parameters
    learnt = {
        parameter.name: parameter.value * np.float32(3),
        stretch_of(parameter.name): np.ones((1, 8), np.float32),
    }
    expected = trainable.variables([parameter.name]).parameters(learnt)[parameter.name]
    trainable.write(model, learnt)
    (result,) = session.create(model).run(None, {"x": np.eye(32, dtype=np.float32)})
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_bias_without_room_stays_as_it_is() -> None:
    """Of a channel whose weights are all zero: its grid is so fine that 32 bits hold next to nothing."""
    model, data = network(), samples(16)
    for name in ("w1", "b1"):
        (tensor,) = [item for item in model.graph.tensors().values() if item.name == name]
        values = np.array(tensor.values)
        values[3] = 0
        tensor.values = values
    quantize(model, data, mode="static")
    trainable = Trainable.of(model)
    learnt = trainable.variables([parameter.name for parameter in trainable.parameters]).start
    masks = [
        mask for name, mask in trainable.kept.items() if name in {bias.tensor.name for bias in coded_biases(model)}
    ]
    assert any(mask.ndim == 1 and not mask[3] and mask[:3].all() for mask in masks)
    trainable.write(model, {name: value + np.float32(1e-3) for name, value in learnt.items()})
    onnx.checker.check_model(model.proto(), full_check=True)
