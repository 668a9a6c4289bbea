"""Tensors inside bodies are observed as the loops and branches really computed them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data import Dataset
from onnxcomp.graph.bodies import Address, addresses
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.gram import Gram
from onnxcomp.runtime.raising import obstacle
from onnxcomp.runtime.statistics import Histogram, Means, observe
from tests.generate import Program, Statement, statements

Array = np.ndarray[Any, Any]


class Collected:
    """Keeps every value."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def expect(self, updates: int) -> None:
        """Of no use here."""

    def update(self, array: Array) -> None:
        self.arrays.append(array)


def observed(model: Model, data: Dataset, keys: list[tuple[Any, str]], memory: int = 2**27) -> dict[Any, list[Array]]:
    """By steps and name, every value of a tensor."""
    seen = {key: Collected() for key in keys}
    main = {name: [seen[steps, name]] for steps, name in keys if not steps}
    inner = {Address(steps, name): [seen[steps, name]] for steps, name in keys if steps}
    observe(model, data, main, max_memory=memory, inner=inner)
    return {key: collected.arrays for key, collected in seen.items()}


@settings(max_examples=40, deadline=None)
@given(statements(), st.integers(0, 2**16), st.booleans(), st.sampled_from([100, 2**27]))
def test_what_bodies_compute_is_what_unrolled_code_computes(
    program: list[Statement], seed: int, outer: bool, memory: int
) -> None:
    net = Program(program, seed, integral=True, outer_weights=outer)
    model = net.model()
    data = Dataset.from_feeds([{"x": net.inputs(6)}])
    expected: dict[Any, list[Array]] = {key: [] for key in net.products}
    for feeds in data.feeds():
        result, seen = net.run(feeds["x"])
        np.testing.assert_array_equal(next(iter(session.run(session.create(model), feeds).values())), result)
        for key, arrays in seen.items():
            expected[key] += arrays
    found = observed(model, data, net.products, memory)
    for key, arrays in found.items():
        oracle = [] if _varies_in_a_scan(model, key[0]) else expected[key]
        assert len(arrays) == len(oracle)
        for array, value in zip(arrays, oracle, strict=True):
            np.testing.assert_array_equal(array, value)


def _varies_in_a_scan(model: Model, steps: Any) -> bool:
    """Whether an If or Loop stands inside a Scan on the way: such tensors cannot be shown."""
    graph, ops = model.graph, []
    for position, attribute in steps:
        ops.append(graph.nodes[position].op)
        graph = graph.nodes[position].attrs[attribute]
    return "Scan" in ops and any(op != "Scan" for op in ops[ops.index("Scan") :])


def dense(source: str, target: str, weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, weight], [target])


def value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def looped(opset: int, growing: bool = False, condition: bool = True) -> onnx.ModelProto:
    """A Loop of n iterations around h · w; ``growing`` ones append the rows of x in each."""
    body_nodes = [dense("h", "p")]
    body_nodes.append(
        helper.make_node("Concat", ["p", "x"], ["r"], axis=0) if growing else helper.make_node("Relu", ["p"], ["r"])
    )
    body_nodes.append(helper.make_node("Identity", ["c"], ["d"]))
    inputs = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("h", None)]
    outputs = [value("d", [], TensorProto.BOOL), value("r", None)]
    body = helper.make_graph(body_nodes, "body", inputs, outputs)
    node = helper.make_node("Loop", ["n", "go" if condition else "", "x"], ["y"], body=body)
    w = numpy_helper.from_array(np.array([[1, -1], [2, 1]], np.float32), "w")
    go = numpy_helper.from_array(np.array(True), "go")
    given = [value("x", ["N", 2]), value("n", [], TensorProto.INT64)]
    graph = helper.make_graph([node], "g", given, [value("y", ["M", 2])], [w, go])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def collect(proto: onnx.ModelProto, feeds: dict[str, Array], *keys: tuple[Any, str]) -> list[list[Array]]:
    seen = [Collected() for _ in keys]
    inner = {Address(steps, name): [each] for (steps, name), each in zip(keys, seen, strict=True)}
    observe(Model.from_proto(proto), Dataset.from_feeds([feeds]), {}, inner=inner)
    return [each.arrays for each in seen]


LOOP = ((0, "body"),)


@pytest.mark.parametrize(("opset", "condition"), [(7, True), (11, True), (11, False), (18, False)])
def test_loops_of_old_and_new_operator_sets(opset: int, condition: bool) -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    (products,) = collect(looped(opset, condition=condition), {"x": x, "n": np.array(2)}, (LOOP, "p"))
    w = np.array([[1, -1], [2, 1]], np.float32)
    first = x @ w
    np.testing.assert_array_equal(products, [first, np.maximum(first, 0) @ w])


def test_a_loop_may_change_the_shape_from_iteration_to_iteration_or_not_run() -> None:
    x = np.ones((2, 2), np.float32)
    (products,) = collect(looped(18, growing=True), {"x": x, "n": np.array(3)}, (LOOP, "p"))
    assert [array.shape for array in products] == [(2, 2), (4, 2), (6, 2)]
    assert collect(looped(18), {"x": x, "n": np.array(0)}, (LOOP, "p")) == [[]]


def test_inputs_of_a_body_are_observed_too() -> None:
    x = np.ones((1, 2), np.float32)
    (carried,) = collect(looped(18), {"x": x, "n": np.array(2)}, (LOOP, "h"))
    np.testing.assert_array_equal(carried, [x, [[3, 0]]])


def scanned(node_op: str = "Relu", opset: int = 18, **attributes: Any) -> onnx.ModelProto:
    """A Scan over rows: p = row · w, and then one more node."""
    nodes = [dense("row", "p"), helper.make_node(node_op, ["p"], ["q"]), helper.make_node("Identity", ["p"], ["r"])]
    body = helper.make_graph(nodes, "body", [value("row", [2])], [value("r", [2])])
    node = helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1, **attributes)
    w = numpy_helper.from_array(np.array([[1, -1], [2, 1]], np.float32), "w")
    graph = helper.make_graph([node], "g", [value("x", None)], [value("y", None)], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_a_scan_may_put_its_results_on_another_axis_and_go_backwards() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    proto = scanned(scan_input_directions=[1], scan_output_axes=[1], scan_output_directions=[1])
    (products,) = collect(proto, {"x": x}, (LOOP, "p"))
    np.testing.assert_array_equal(products, x[::-1] @ np.array([[1, -1], [2, 1]], np.float32))


def test_what_changes_its_shape_in_a_scan_is_not_observed_and_breaks_nothing() -> None:
    x = np.array([[0, 0], [0, 1], [1, 1]], np.float32)
    assert collect(scanned("NonZero"), {"x": x}, (LOOP, "q")) == [[]]


def test_the_scan_of_operator_set_8_is_left_alone() -> None:
    assert "batch" in obstacle(scanned(opset=8), LOOP)
    assert not obstacle(scanned(opset=9), LOOP)


@given(statements(), st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_statistics_of_bodies_are_those_of_the_unrolled_values(program: list[Statement], seed: int) -> None:
    net = Program(program, seed, integral=True)
    model = net.model()
    data = Dataset.from_arrays({"x": net.inputs(4)}, model=model)
    found = {key: (Histogram(64), Means(axis=-1)) for key in net.products}
    wanted = {name: found[steps, name] for steps, name in net.products if not steps}
    inner = {Address(steps, name): found[steps, name] for steps, name in net.products if steps}
    observe(model, data, wanted, inner=inner)
    expected = {key: (Histogram(64), Means(axis=-1)) for key in net.products}
    for feeds in data.feeds():
        for key, arrays in net.run(feeds["x"])[1].items():
            for array in [] if _varies_in_a_scan(model, key[0]) else arrays:
                for accumulator in expected[key]:
                    accumulator.update(array)
    for key, (histogram, means) in expected.items():
        assert found[key][0].count == histogram.count
        np.testing.assert_array_equal(found[key][0].counts, histogram.counts)
        np.testing.assert_allclose(found[key][1].mean, means.mean, atol=1e-12)


def test_the_second_moment_of_a_layer_in_a_body_is_that_of_the_unrolled_layer() -> None:
    net = Program([("loop", 3, [("dense",)])], integral=True)
    model, x = net.model(), net.inputs(5)
    (layer,) = weighted_layers(model)
    gram = Gram.for_layer(layer)
    address = addresses(model.graph)[id(layer.node.inputs[0])]
    observe(model, Dataset.from_feeds([{"x": x}]), {}, inner={address: [gram]})
    expected = np.zeros((4, 4))
    for _ in range(3):
        expected += x.T @ x
        x = np.clip(x @ layer.array(), -8, 8)
    np.testing.assert_array_equal(gram.matrix[0], expected)
