"""Graphs that ONNX Runtime has optimized, kept in its blocked layout: same outputs, fewer changes of layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp.gradient.tape import Tape
from onnxcomp.runtime.blocked import block_size, keep_blocked
from tests.differences import agree, node, random

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(not block_size(), reason="ONNX Runtime has no blocked layout on this machine")


def _network(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], values: dict[str, Array], x: Array
) -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(nodes),
        "network",
        [info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def _session(model: onnx.ModelProto, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if optimized is None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _kept(model: onnx.ModelProto, x: Array, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Operators of the optimized graph before and after; the outputs must be those of the model."""
    _session(model, folder / "optimized.onnx")
    optimized = onnx.load(folder / "optimized.onnx")
    kept = keep_blocked(optimized, model)
    expected, found = _session(model).run(None, {"x": x}), _session(kept).run(None, {"x": x})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(np.abs(other).max(initial=1e-6)))
    before, after = (Counter(entry.op_type for entry in graph.node) for graph in (optimized.graph, kept.graph))
    return before, after


def _conv(x: str, y: str, values: dict[str, Array], ins: int, outs: int, kernel: int = 3) -> onnx.NodeProto:
    values[f"{y}_w"] = random(outs, ins, kernel, kernel, seed=len(values)) / kernel
    return node("Conv", [x, f"{y}_w"], [y], pads=[kernel // 2] * 4)


CHANNELS = 32


def test_what_lies_between_convolutions_stays_in_blocks(tmp_path: Path) -> None:
    values: dict[str, Array] = {}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Abs", ["a"], ["mask"]),
        node("Mul", ["a", "mask"], ["b"]),
        _conv("b", "y", values, CHANNELS, CHANNELS),
    ]
    x = random(2, CHANNELS, 6, 5)
    before, after = _kept(_network(nodes, ["y"], values, x), x, tmp_path)
    assert (before["ReorderOutput"], before["ReorderInput"]) == (2, 2)
    assert (after["ReorderOutput"], after["ReorderInput"]) == (1, 1)


def test_planes_are_convolved_with_planes_in_blocks(tmp_path: Path) -> None:
    values: dict[str, Array] = {"image": np.array([1, -1, 6, 5]), "kernel": np.array([2 * CHANNELS, 1, 6, 5])}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Abs", ["a"], ["b"]),
        node("Reshape", ["a", "image"], ["images"]),
        node("Reshape", ["b", "kernel"], ["kernels"]),
        node("Conv", ["images", "kernels"], ["y"], group=2 * CHANNELS, pads=[1] * 4),
    ]
    x = random(2, CHANNELS, 6, 5)
    before, after = _kept(_network(nodes, ["y"], values, x), x, tmp_path)
    assert (before["ReorderOutput"], before["ReorderInput"]) == (1, 1)
    assert (after["ReorderOutput"], after["ReorderInput"]) == (1, 1)  # x, and y of 3 x 3 positions


@pytest.mark.parametrize("first", [True, False])
def test_a_factor_of_a_product_that_is_the_same_for_all_samples(first: bool, tmp_path: Path) -> None:
    values: dict[str, Array] = {"all": np.array([2, CHANNELS, 30]), "one": np.array([1, 2, 30])}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Reshape", ["a", "all"], ["rows"]),
        node("ReduceSum", ["x", "axes"], ["sums"]),
        node("Reshape", ["sums", "one"], ["shared"]),
    ]
    values["axes"] = np.array([1])
    if first:
        nodes += [node("Transpose", ["shared"], ["t"], perm=[0, 2, 1]), node("MatMul", ["rows", "t"], ["y"])]
    else:
        nodes += [node("Transpose", ["rows"], ["t"], perm=[0, 2, 1]), node("MatMul", ["shared", "t"], ["y"])]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["y"], values, x), x, tmp_path)


def test_planes_of_doubles_have_no_blocks(tmp_path: Path) -> None:
    values: dict[str, Array] = {"image": np.array([1, -1, 6, 5]), "kernel": np.array([2 * CHANNELS, 1, 6, 5])}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Cast", ["a"], ["d"], to=onnx.TensorProto.DOUBLE),
        node("Reshape", ["d", "image"], ["images"]),
        node("Reshape", ["d", "kernel"], ["kernels"]),
        node("Conv", ["images", "kernels"], ["y"], group=2 * CHANNELS, pads=[1] * 4),
    ]
    x = random(2, CHANNELS, 6, 5)
    original = _network(nodes, ["y"], values, x)
    _session(_network(nodes[:2], ["d"], values, x), tmp_path / "first.onnx")  # ONNX Runtime has no such Conv to run
    optimized = onnx.load(tmp_path / "first.onnx")
    optimized.graph.node.extend(nodes[2:])
    optimized.graph.initializer.extend(onnx.numpy_helper.from_array(values[name], name) for name in ("image", "kernel"))
    del optimized.graph.output[:]
    optimized.graph.output.extend(original.graph.output)
    kept = keep_blocked(optimized, original)
    assert [entry.domain for entry in kept.graph.node if entry.op_type == "Conv"][-1] == ""


def test_tensors_named_like_new_ones(tmp_path: Path) -> None:
    values: dict[str, Array] = {}
    names = [f"{op}_{count}" for op in ("ReorderInput", "ReorderOutput", "ReduceSum", "Reshape") for count in range(9)]
    nodes = [_conv("x", "a", values, CHANNELS, CHANNELS)]
    nodes += [node("Tanh", ["a"], [name]) for name in names]
    values["axes"] = np.array([0, 2, 3])
    nodes += [node("ReduceSum", [name, "axes"], [f"sum/{name}"], keepdims=0) for name in names]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, [f"sum/{name}" for name in names], values, x), x, tmp_path)


def test_a_tensor_in_blocks_that_is_an_output_is_laid_back(tmp_path: Path) -> None:
    values: dict[str, Array] = {}
    nodes = [_conv("x", "a", values, CHANNELS, CHANNELS), node("Abs", ["a"], ["b"]), node("Neg", ["b"], ["c"])]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["c", "b"], values, x), x, tmp_path)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1), (CHANNELS, 1, 1), (2, CHANNELS, 1, 1), (5,), (2, 1, 6, 5)])
def test_broadcast_operands(shape: tuple[int, ...], tmp_path: Path) -> None:
    """In blocks, the channels of a tensor are not where broadcasting looks for them."""
    values: dict[str, Array] = {"other": np.asarray(random(*shape), dtype=np.float32)}
    nodes = [_conv("x", "a", values, CHANNELS, CHANNELS), node("Mul", ["a", "other"], ["b"])]
    nodes.append(_conv("b", "y", values, CHANNELS, CHANNELS))
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["y"], values, x), x, tmp_path)


def test_a_gate_of_one_position_is_not_multiplied_in_blocks(tmp_path: Path) -> None:
    """Squeeze and excitation: both operands come in blocks, of different shapes."""
    values: dict[str, Array] = {}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("GlobalAveragePool", ["a"], ["pooled"]),
        _conv("pooled", "gate", values, CHANNELS, CHANNELS, kernel=1),
        node("Mul", ["a", "gate"], ["y"]),
    ]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["y"], values, x), x, tmp_path)


def test_masks_of_booleans_and_other_readers_see_the_plain_layout(tmp_path: Path) -> None:
    values: dict[str, Array] = {"zero": np.float32(0), "perm": np.array([2, -1], dtype=np.int64)}
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Tanh", ["a"], ["t"]),
        node("Greater", ["t", "zero"], ["mask"]),
        node("Where", ["mask", "t", "a"], ["chosen"]),
        node("Softmax", ["t"], ["soft"], axis=1),
        node("Reshape", ["t", "perm"], ["flat"]),
    ]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["chosen", "soft", "flat"], values, x), x, tmp_path)


def test_bodies_read_the_plain_layout(tmp_path: Path) -> None:
    values: dict[str, Array] = {"limit": np.float32(0.5)}
    info = onnx.helper.make_empty_tensor_value_info
    branches = [
        onnx.helper.make_graph([node("Softmax", ["b"], [name], axis=1)], name, [], [info(name)]) for name in "tf"
    ]
    nodes = [
        _conv("x", "a", values, CHANNELS, CHANNELS),
        node("Tanh", ["a"], ["b"]),
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Greater", ["most", "limit"], ["high"]),
        onnx.helper.make_node("If", ["high"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    x = random(2, CHANNELS, 6, 5)
    _kept(_network(nodes, ["y"], values, x), x, tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.sampled_from([1, 2, 3]),
    channels=st.sampled_from([8, 16, 24, 32]),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    ops=st.lists(
        st.sampled_from(["Mul", "Relu", "Conv", "Sum", "Product", "Depthwise", "Add"]), min_size=2, max_size=6
    ),
)
def test_random_graphs(batch: int, channels: int, height: int, width: int, ops: list[str], tmp_path: Path) -> None:
    values: dict[str, Array] = {}
    x = random(batch, channels, height, width)
    model = _network([_conv("x", "first", values, channels, channels)], [], values, x)
    tape, last, before, outputs = Tape(model.graph, prefix="t"), "first", "x", []
    for op in ops:
        new = ""
        if op in ("Mul", "Add"):
            new = tape.emit(op, last, before)
        elif op == "Relu":
            new = tape.emit("Relu", last)
        elif op == "Conv":
            new = tape.emit("Conv", last, "first_w", pads=[1] * 4)
        elif op == "Sum":
            outputs.append(tape.reduce_sum(last, [0, 2, 3], keepdims=False))
        elif op == "Product":
            left, right = (tape.reshape(name, [batch, channels, height * width]) for name in (last, before))
            outputs.append(tape.emit("MatMul", left, tape.transpose(right, [0, 2, 1])))
        else:
            image = tape.reshape(before, [1, batch * channels, height, width])
            kernel = tape.reshape(last, [batch * channels, 1, height, width])
            outputs.append(tape.emit("Conv", image, kernel, group=batch * channels, pads=[1] * 4))
        if new:
            before, last = last, new
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys([*outputs, last])
    )
    _kept(model, x, tmp_path)


@pytest.mark.parametrize("strides", [[1, 1], [2, 2], [2, 1]])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 2, 0]])
@pytest.mark.parametrize("dilations", [[1, 1], [2, 1]])
def test_gradients_of_depthwise_convolutions(strides: list[int], pads: list[int], dilations: list[int]) -> None:
    """Strides and dilations change places; where no output sees the end of the input, it is cut off."""
    nodes = [node("Conv", ["x", "w"], ["y"], group=16, strides=strides, pads=pads, dilations=dilations)]
    agree(nodes, {"w": random(16, 1, 3, 3), "x": random(2, 16, 8, 9)})
