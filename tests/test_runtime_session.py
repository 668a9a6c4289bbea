"""Sessions, shapes, made-up feeds and measured time."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.data import Dataset
from onnxcomp.errors import InputError
from onnxcomp.model import Model
from onnxcomp.runtime import feeds, latency, session, shapes
from onnxcomp.storage.reader import split

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
rng = np.random.default_rng(0)

Dims = list[int | str | None]


def build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, Dims | None]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolution(dims: Dims | None = None) -> onnx.ModelProto:
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("GlobalAveragePool", ["a"], ["y"])]
    return build(nodes, {"x": (FLOAT, dims or ["n", 3, "h", "w"])}, ["y"], {"w": weight})


def branches() -> onnx.ModelProto:
    """An If whose bodies read ``a`` of the main graph, a sequence, an output without a name, a dead node."""
    bodies = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        nodes = [helper.make_node(op, ["a"], [f"{name}_out"])]
        bodies[name] = helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=f"{name}_out")])
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["b"], **bodies),
        helper.make_node("SequenceConstruct", ["a", "b"], ["seq"]),
        helper.make_node("ConcatFromSequence", ["seq"], ["y"], axis=0),
        helper.make_node("Dropout", ["y"], ["z", ""]),
        helper.make_node("Exp", ["y"], ["dead"]),
    ]
    return build(nodes, {"x": (FLOAT, [2, 3]), "c": (BOOL, [])}, ["z"])


# -- sessions ------------------------------------------------------------------------------------------------


def test_a_session_runs_a_model_its_message_and_its_bytes_alike() -> None:
    proto = convolution()
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    forms: list[Any] = [proto, proto.SerializeToString(), Model.from_proto(proto)]
    results = [session.run(session.create(form), {"x": x})["y"] for form in forms]
    assert results[0].shape == (2, 4, 1, 1)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_outputs_may_be_chosen() -> None:
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    model = session.with_outputs(split(convolution()), ["y", "a"])
    assert list(session.run(session.create(model), {"x": x}, ["a"])) == ["a"]


def test_what_the_runtime_refuses_is_one_sentence_and_nothing_on_stderr(
    capfd: pytest.CaptureFixture[str],
) -> None:
    proto = convolution()
    proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load it: .*NoSuchOperator") as caught:
        session.create(proto)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    with pytest.raises(InputError, match="ONNX Runtime cannot load it"):
        session.create(b"no model")
    runs = session.create(convolution())
    with pytest.raises(InputError, match=r"cannot run the model: .*dimensions for input: x"):
        session.run(runs, {"x": np.zeros((1, 4, 8, 8), np.float32)})
    assert capfd.readouterr().err == ""


def test_a_failure_inside_a_run_is_quiet_too(capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    proto = build(nodes, {"ids": (INT64, [None])}, ["y"], {"table": np.ones((4, 2), np.float32)})
    with pytest.raises(InputError, match="out of data bounds"):
        session.run(session.create(proto), {"ids": np.array([7])})
    assert capfd.readouterr().err == ""


def test_with_outputs_keeps_what_bodies_read_and_drops_the_rest() -> None:
    whole = split(branches())
    before = whole.serialize()
    reduced = session.with_outputs(whole, ["b"])
    assert [node.op_type for node in reduced.proto.graph.node] == ["Abs", "If"]
    x = rng.standard_normal((2, 3)).astype(np.float32)
    values = session.run(session.create(reduced), {"x": x, "c": np.array(False)})
    np.testing.assert_array_equal(values["b"], -np.abs(x))
    assert whole.serialize() == before


# -- shapes --------------------------------------------------------------------------------------------------


def test_observed_shapes_cover_inputs_and_every_tensor_of_the_main_graph() -> None:
    model = Model.from_proto(convolution())
    found = shapes.observed(model, {"x": np.zeros((2, 3, 8, 9), np.float32)})
    assert found == {"x": (2, 3, 8, 9), "a": (2, 4, 6, 7), "y": (2, 4, 1, 1)}


def test_observed_shapes_leave_out_sequences_and_bodies() -> None:
    model = Model.from_proto(branches())
    found = shapes.observed(model, {"x": np.zeros((2, 3), np.float32), "c": np.array(True)})
    expected = {"x": (2, 3), "c": (), "a": (2, 3), "b": (2, 3), "y": (4, 3), "z": (4, 3), "dead": (4, 3)}
    assert found == expected


def test_observed_shapes_of_some_tensors() -> None:
    model = Model.from_proto(convolution())
    assert shapes.observed(model, {"x": np.zeros((1, 3, 5, 5), np.float32)}, ["a"]) == {"a": (1, 4, 3, 3)}


# -- made-up feeds -------------------------------------------------------------------------------------------


def test_made_up_feeds_fill_free_dimensions_and_repeat_with_the_seed() -> None:
    model = Model.from_proto(convolution())
    made = feeds.synthetic(model, seed=3)
    assert made["x"].shape == (1, 3, 224, 224)
    np.testing.assert_array_equal(made["x"], feeds.synthetic(model, seed=3)["x"])
    assert not np.array_equal(made["x"], feeds.synthetic(model, seed=4)["x"])


def test_made_up_feeds_try_sizes_until_the_model_runs() -> None:
    weights = {"w": np.ones((3 * 28 * 28, 10), np.float32)}
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    model = Model.from_proto(build(nodes, {"x": (FLOAT, ["n", 3, "h", "w"])}, ["y"], weights))
    assert feeds.synthetic(model)["x"].shape == (1, 3, 28, 28)


def test_made_up_feeds_suit_a_text_encoder() -> None:
    """Token ids and masks are in range; the free length is the same for both."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Cast", ["mask"], ["m"], to=FLOAT),
        helper.make_node("Unsqueeze", ["m", "axes"], ["m1"]),
        helper.make_node("Mul", ["e", "m1"], ["y"]),
    ]
    weights = {"table": np.ones((5, 4), np.float32), "axes": np.array([-1])}
    inputs: dict[str, Any] = {"ids": (INT64, ["batch", "seq"]), "mask": (INT64, ["batch", "seq"])}
    made = feeds.synthetic(Model.from_proto(build(nodes, inputs, ["y"], weights)))
    assert made["ids"].shape == made["mask"].shape == (1, 16)
    assert made["ids"].dtype == np.int64


def test_a_model_that_no_made_up_feed_runs_asks_for_data() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = build(nodes, {"x": (FLOAT, ["n", "k"])}, ["y"], {"w": np.ones((777, 2), np.float32)})
    with pytest.raises(InputError, match=r"does not run on inputs made up for it .*give data with --data"):
        feeds.synthetic(Model.from_proto(proto))


def test_feeds_are_made_up_for_sequences_optionals_and_maps() -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, [2])
    kinds = {
        "sequence": (helper.make_sequence_type_proto(tensor), "SequenceLength", ""),
        "optional": (helper.make_optional_type_proto(tensor), "OptionalHasElement", ""),
        "map": (helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])), "CastMap", "ai.onnx.ml"),
    }
    for name, (kind, op, domain) in kinds.items():
        proto = build([helper.make_node(op, ["s"], ["y"], domain=domain)], {}, ["y"])
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
        proto.graph.input.append(helper.make_value_info("s", kind))
        made = feeds.synthetic(Model.from_proto(proto))
        assert list(session.run(session.create(proto), made)) == ["y"], name


def test_an_input_that_nothing_can_be_fed_to_is_refused_with_its_name() -> None:
    nested = helper.make_sequence_type_proto(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2])))
    proto = build([helper.make_node("Identity", ["x"], ["y"])], {"x": (FLOAT, [2])}, ["y"])
    proto.graph.input.append(helper.make_value_info("s", nested))
    with pytest.raises(InputError, match="input 's' is declared as sequence of a type that cannot be fed; export"):
        feeds.synthetic(Model.from_proto(proto))


def test_data_is_refused_where_an_input_is_no_tensor(tmp_path: Path) -> None:
    proto = build([helper.make_node("SequenceLength", ["s"], ["y"])], {}, ["y"])
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", FLOAT, [2]))
    np.savez(tmp_path / "data.npz", s=np.zeros((3, 2), np.float32))
    with pytest.raises(InputError, match="input 's' is a sequence of float32, which no data can hold"):
        Dataset.open(str(tmp_path / "data.npz"), Model.from_proto(proto))


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_types_that_numpy_lacks_go_in_and_come_out(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind))
    element = helper.np_dtype_to_tensor_dtype(dtype)
    proto = build([helper.make_node("Identity", ["x"], ["y"])], {"x": (element, ["N", 2])}, ["y"], opset=19)
    for values in ([[0.5, -2.0], [1.0, 4.0]], np.zeros((0, 2))):
        array = np.asarray(values, dtype)
        found = session.run(session.create(proto), {"x": array})["y"]
        assert (found.dtype, found.shape) == (dtype, array.shape)
        np.testing.assert_array_equal(found.astype(np.float32), array.astype(np.float32))
    assert feeds.synthetic(Model.from_proto(proto))["x"].dtype == dtype


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_types_of_a_part_of_a_byte_go_in_and_come_out(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind))
    element = helper.np_dtype_to_tensor_dtype(dtype)
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("Cast", ["f"], ["y"], to=element)]
    proto = build(nodes, {"x": (element, [5])}, ["f", "y"], opset=21)
    array = np.asarray([1, 7, 0, 3, 5], dtype)
    found = session.run(session.create(proto), {"x": array})
    np.testing.assert_array_equal(found["f"], [1, 7, 0, 3, 5])
    np.testing.assert_array_equal(found["y"], array)


# -- measured time -------------------------------------------------------------------------------------------


def matmuls(count: int) -> bytes:
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    weights = {"w": np.eye(256, dtype=np.float32)}
    return build(nodes, {"x": (FLOAT, [64, 256])}, ["y"], weights).SerializeToString()


def test_a_model_of_twice_the_work_is_measured_as_slower() -> None:
    x = {"x": np.ones((64, 256), np.float32)}
    result = latency.compare(matmuls(12), matmuls(3), x, seconds=0.3, warmup=0.05)
    assert result.ratio > 1.5
    assert result.low <= result.high
    assert result.pairs >= 5
    assert result.a_ms > result.b_ms > 0
    assert result.low <= result.ratio <= result.high
    assert set(result.describe()) == {"ratio", "low", "high", "a_ms", "b_ms", "pairs", "threads"}


def test_a_slow_model_is_timed_five_times_at_least() -> None:
    x = {"x": np.ones((64, 256), np.float32)}
    assert latency.compare(matmuls(2), matmuls(2), x, seconds=0.0, warmup=0.0).pairs == 5
    assert latency.measure(matmuls(2), x, seconds=0.05, warmup=0.0) > 0


def test_feeds_that_do_not_fit_are_explained_before_timing() -> None:
    with pytest.raises(InputError, match="cannot run the model"):
        latency.compare(matmuls(1), matmuls(1), {"x": np.ones((1, 2), np.float32)})
