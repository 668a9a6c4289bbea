"""Tiles dropped: which channels panels read, smaller layers that compute the same, and what is left alone."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.compiler import compress
from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.graph.cost import cost
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.panels import panels_of, read_in_panels
from onnxcomp.linalg.patterns import Panels
from onnxcomp.model import Model
from onnxcomp.passes.reorder import Reorder
from onnxcomp.runtime import session
from onnxcomp.runtime.panel_times import PanelTimes
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimedComparison, TimingTable
from tests.zoo import zoo_model

Array = np.ndarray[Any, Any]
TARGET = Target.parse("x86-avx2")  # multiples of 8


# -- which channels ------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**16), panels=st.sampled_from([1, 2, 4]), kernel=st.integers(1, 3), channels=st.integers(1, 5)
)
def test_a_panel_keeps_the_channels_of_the_largest_sums(seed: int, panels: int, kernel: int, channels: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 50, (1, 4, 5 * kernel)).astype(float)
    kept = Panels(panels, channels, kernel).kept(scores)
    best = 0.0
    for rows in np.split(scores[0], panels):
        sums = rows.reshape(len(rows), 5, kernel).sum(axis=(0, 2))
        best += max(sum(sums[list(chosen)]) for chosen in itertools.combinations(range(5), channels))
    assert scores[kept].sum() == best
    whole = kept.reshape(panels, 4 // panels, 5, kernel)
    assert (whole == whole[:, :1, :, :1]).all()
    assert (whole[:, 0, :, 0].sum(axis=1) == channels).all()


# -- smaller layers ------------------------------------------------------------------------------------------


def single(op: str, seed: int, opset: int = 17, **attributes: Any) -> tuple[Model, dict[str, Array]]:
    """A layer of 12 inputs and 8 outputs that reads what a Relu gives."""
    rng = np.random.default_rng(seed)
    shape = {"Conv": (8, 12, 3, 3), "MatMul": (12, 8), "Gemm": (8, 12) if attributes.get("transB") else (12, 8)}[op]
    fed = {"Conv": (2, 12, 5, 4), "MatMul": (2, 3, 12), "Gemm": (12, 3) if attributes.get("transA") else (3, 12)}[op]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node(op, ["r", "w", "b"][: 2 + (op == "Gemm")], ["y"], name="layer", **attributes),
    ]
    constants = {"w": shape, "b": (8,)} if op == "Gemm" else {"w": shape}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, fed)
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model.from_proto(proto), {"x": rng.standard_normal(fed).astype(np.float32)}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", {}),
        ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ("MatMul", {}),
        ("Gemm", {}),
        ("Gemm", {"transB": 1}),
        ("Gemm", {"transA": 1, "alpha": 0.5}),
    ],
)
@pytest.mark.parametrize("opset", [9, 17])
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_reading_in_panels_changes_nothing(op: str, attributes: dict[str, Any], opset: int, data: Any) -> None:
    model, feeds = single(op, data.draw(st.integers(0, 99)), opset, **attributes)
    count = data.draw(st.sampled_from([1, 2, 4])) if op == "Conv" else 1
    layer = weighted_layers(model)[0]
    matrix = layer.matrix()
    for rows in np.split(np.arange(8), count):
        gone = data.draw(st.lists(st.integers(0, 11), unique=True, max_size=11))
        matrix.reshape(1, 8, 12, -1)[:, rows[:, None], gone] = 0
    layer.set_matrix(matrix)
    expected = session.run(session.create(model), feeds)["y"]
    panels = panels_of(layer, count)
    if panels is not None:
        assert len({len(channels) for channels in panels}) == 1
        read_in_panels(model, layer, panels, feeds["x"].ndim)
        assert model.graph.nodes[1].op in ("Gather", "Slice")
    np.testing.assert_allclose(session.run(session.create(model), feeds)["y"], expected, rtol=1e-4, atol=1e-5)


def test_neighbours_are_sliced_and_others_gathered() -> None:
    for channels, op in (([3, 4, 5], "Slice"), ([3, 4, 6], "Gather")):
        model, _ = single("Conv", 0)
        read_in_panels(model, weighted_layers(model)[0], [np.array(channels)], 4)
        assert model.graph.nodes[1].op == op


# -- the pass ------------------------------------------------------------------------------------------------


def residual(seed: int = 0, sharpness: float | None = None, twins: bool = True) -> tuple[Model, Dataset]:
    """A residual block of 32 channels, of which (with twins) 16 inner ones are twice the others, and a classifier.

    With a sharpness its outputs are probabilities: those of logits that are so many times as large.
    """
    rng = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        fan = float(np.prod(shape[1:]))
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32), name)

    constants = [
        constant("w0", 32, 3, 3, 3),
        constant("w1", 32, 32, 3, 3),
        constant("w2", 32, 32, 3, 3),
        constant("w3", 10, 32),
    ]
    inner = numpy_helper.to_array(constants[1]).copy()
    inner[16:] = 2 * inner[:16] if twins else inner[16:]  # not equal: those would be merged before any tile goes
    constants[1] = numpy_helper.from_array(inner, "w1")
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "stem", **pads),
        helper.make_node("Relu", ["a"], ["stream"]),
        helper.make_node("Conv", ["stream", "w1"], ["b"], "inner", **pads),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], "outer", **pads),
        helper.make_node("Add", ["stream", "d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w3"], ["y" if sharpness is None else "h"], "classes", transB=1),
    ]
    if sharpness is not None:
        constants.append(numpy_helper.from_array(np.float32(sharpness), "sharpness"))
        nodes += [
            helper.make_node("Mul", ["h", "sharpness"], ["i"]),
            helper.make_node("Softmax", ["i"], ["y"]),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    graph = helper.make_graph(nodes, "residual", [x], [y], constants)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return model, Dataset.from_arrays({"x": rng.standard_normal((200, 3, 8, 8)).astype(np.float32)}, model=model)


def apply(model: Model, data: Dataset | None, **options: Any) -> dict[str, tuple[str, str]]:
    """Run the pass without measuring any time; what it decided, by layer."""
    context = Context(target=TARGET, data=data, scope="reorder", timings=TimingTable(measures=False))
    Reorder.with_options(options).run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    return {decision.layer: (decision.action, decision.reason) for decision in context.decisions}


def outputs(model: Model, data: Dataset) -> Array:
    running = session.create(model)
    return np.concatenate([session.run(running, feeds)["y"] for feeds in data.feeds()])


def macs(model: Model, data: Dataset) -> dict[str, int]:
    return {name: entry.macs for name, entry in cost(model, observed(model, data.sample())).per_layer.items()}


def test_half_of_the_operations_are_left_and_repeated_channels_cost_nothing() -> None:
    model, data = residual()
    expected, before = outputs(model, data), macs(model, data)
    decisions = apply(model, data, density=0.5)
    assert {name for name, (action, _) in decisions.items() if action == "tiled"} >= {"outer"}
    after = macs(model, data)
    changed = [name for name, (action, _) in decisions.items() if action == "tiled"]
    left = sum(after[name] for name in changed) / sum(before[name] for name in changed)
    assert 0.35 <= left <= 0.6  # in steps of 8 of 32 channels
    noise = float(np.square(outputs(model, data) - expected).mean() / expected.var())
    assert noise < 0.02
    shapes = {layer.name: layer.shape for layer in weighted_layers(model)}
    assert shapes["outer"][1] == shapes["inner"][0] < 32  # what it alone read is gone


@pytest.mark.parametrize("options", [{"density": 0.3}, {"density": 0.01}, {"density": 0.3, "panels": 4}, {"panels": 2}])
def test_layers_without_bias_get_one_that_fits(options: dict[str, Any]) -> None:
    model, data = residual()
    decisions = apply(model, data, **options)
    assert np.isfinite(outputs(model, data)).all()
    assert any(action == "tiled" for action, _ in decisions.values())
    for layer in weighted_layers(model):
        assert layer.bias is None or layer.bias.shape == (layer.shape[0],)


def test_what_makes_the_model_no_faster_is_undone() -> None:
    class Slow(TimingTable):
        def compare(self, *_: Any) -> Any:
            return TimedComparison("", "", 0.9, 0.9, 0.9, 1.0, 1.1)

    model, data = residual()
    expected, before = outputs(model, data), {layer.name: layer.shape for layer in weighted_layers(model)}
    context = Context(target=TARGET, data=data, scope="reorder", timings=Slow())
    Reorder().run(model, context)
    np.testing.assert_allclose(outputs(model, data), expected, atol=1e-4)
    assert {layer.name: layer.shape for layer in weighted_layers(model)} == before
    told = {decision.layer: decision.reason for decision in context.decisions}
    assert not any("lost" in reason for reason in told.values())
    assert "0.90 times as fast" in told["outer"]


def test_density_1_is_exact_and_auto_stays_within_its_error() -> None:
    model, data = residual()
    expected = outputs(model, data)
    whole = model.copy()
    apply(whole, data, density=1)
    np.testing.assert_allclose(outputs(whole, data), expected, atol=1e-4)
    assert (Reorder(density=1).keeps_outputs, Reorder().keeps_outputs) == (True, False)
    decisions = apply(model, data)
    assert decisions["outer"][0] == "tiled"  # half of its inputs repeat the others
    assert float(np.square(outputs(model, data) - expected).mean() / expected.var()) < Reorder().error
    careful, data = residual()
    assert apply(careful, data, error=0)["stem"][0] != "tiled"


@pytest.mark.parametrize("seed", range(4))
def test_auto_stays_within_its_error_where_outputs_are_saturated(seed: int) -> None:
    model, data = residual(seed, sharpness=1000.0)
    data = data.take(32)
    expected = outputs(model, data)
    apply(model, data)
    assert float(np.square(outputs(model, data) - expected).mean() / np.square(expected).mean()) <= Reorder().error


def test_nothing_goes_where_it_never_stays_within_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.runtime.tile_pruning.noise", lambda *_: math.inf)
    model, data = residual()
    expected = outputs(model, data)
    decisions = apply(model, data)
    np.testing.assert_allclose(outputs(model, data), expected, atol=1e-4)
    assert "the outputs would change by inf of their variance" in decisions["outer"][1]


def test_zeros_of_earlier_passes_say_how_much_goes() -> None:
    model, data = residual()
    layers = {layer.name: layer for layer in weighted_layers(model)}
    for name, zeros in (("inner", 0.25), ("outer", 0.5)):
        weight = layers[name].array()
        kept = np.random.default_rng(0).permutation(weight.size) >= zeros * weight.size
        layers[name].set_array(weight * kept.reshape(weight.shape))
    decisions = apply(model, data)
    assert decisions["inner"][1].startswith("reads 24 of 32 channels")
    assert decisions["outer"][1].startswith("reads 16 of 32 channels")


def test_inputs_of_a_flattened_channel_are_gathered() -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w0", (16, 3, 3, 3)), ("w1", (16 * 16, 10)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w1"], ["y"], "last"),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 10]))
    ]
    graph = helper.make_graph(nodes, "flat", ends[:1], ends[1:], weights)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    data = Dataset.from_arrays({"x": rng.standard_normal((200, 3, 8, 8)).astype(np.float32)}, model=model)
    assert apply(model, data, density=0.5)["last"][0] == "tiled"
    assert {layer.name: layer.shape for layer in weighted_layers(model)}["last"] == (128, 10)
    assert any(node.op == "Gather" for node in model.graph.nodes)


def test_panels_are_grouped_convolutions() -> None:
    model, data = residual()
    decisions = apply(model, data, density=0.5, panels=2)
    assert "2 panels of outputs" in decisions["outer"][1]
    outer = next(node for node in model.graph.nodes if node.name == "outer")
    assert outer.attrs["group"] == 2
    assert outer.i().op in ("Gather", "Slice", "Relu")


def test_forms_that_are_slower_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PanelTimes, "ratio", lambda *_: 0.9)
    model, data = residual()
    decisions = apply(model, data, density=0.5)
    assert "it would run 0.90 times as fast" in decisions["inner"][1]
    assert not any(node.op in ("Gather", "Slice") for node in model.graph.nodes)


def test_a_density_needs_samples() -> None:
    model, _ = residual()
    with pytest.raises(PassError, match="needs calibration data"):
        apply(model, None, density=0.5)
    assert all(action != "tiled" for action, _ in apply(model, None).values())


def test_the_same_bytes_come_out_again() -> None:
    made = []
    for _ in range(2):
        model, data = residual()
        apply(model, data, density=0.5)
        made.append(model.serialize())
    assert made[0] == made[1]


def test_measured_times_are_of_the_layer_alone() -> None:
    model, data = residual()
    shapes = observed(model, data.sample())
    table = TimingTable()
    times = PanelTimes(shapes, table)
    layer = next(layer for layer in weighted_layers(model) if layer.name == "inner")
    found = times.ratio(layer, 1, 16, 32)
    assert found is not None
    assert found > 0
    assert len(table.used) == 2
    assert times.ratio(layer, 1, 16, 32) == found  # from the table
    assert PanelTimes({}, table).ratio(layer, 1, 16, 32) is None


@pytest.mark.zoo
def test_half_of_a_residual_network_loses_little() -> None:
    models = Path(__file__).parent.parent / "models"
    files = {"data": str(models / "fashion_calibration.npz"), "test_data": str(models / "fashion_test.npz")}
    original = Model.load(zoo_model("fashion_resnet"))
    result = compress(original, "reorder(density=0.5)", metric="top1", **files)
    report = result.report.result
    assert report.flops < 0.56 * 103_214_592
    assert report.metric is not None
    assert report.metric.compressed > report.metric.original - 0.015
