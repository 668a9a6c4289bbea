"""Weights in model-local functions: they are listed, stored in 8 bits, and left alone for a reason elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import compress
from onnxcomp.context import Context, Decision
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning
from onnxcomp.graph.cost import cost
from onnxcomp.graph.inlining import inline_functions
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passbase import Pass
from onnxcomp.passes.fold import Fold
from onnxcomp.passes.prune import Prune
from onnxcomp.passes.quant import Quant
from onnxcomp.passes.reorder import Reorder
from onnxcomp.runtime import session
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target

Array = np.ndarray[Any, Any]
WIDTH = 32


def constant(name: str, seed: int) -> onnx.NodeProto:
    value = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.astype(np.float32)))


def with_functions(opset: int = 18, function_opset: int | None = None) -> onnx.ModelProto:
    """``block`` (twice called, with an attribute) holds a weight and calls ``inner``, which holds another;
    ``apply`` takes its weight as an input."""
    own = [helper.make_opsetid("", function_opset or opset), helper.make_opsetid("org.example", 1)]
    leaky = helper.make_node("LeakyRelu", ["p"], ["q"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    inner = helper.make_function(
        "org.example",
        "inner",
        ["a"],
        ["r"],
        [constant("w", 1), helper.make_node("MatMul", ["a", "w"], ["r"], name="product")],
        own,
    )
    block = helper.make_function(
        "org.example",
        "block",
        ["a"],
        ["r"],
        [
            constant("w", 2),
            helper.make_node("MatMul", ["a", "w"], ["p"], name="product"),
            leaky,
            helper.make_node("inner", ["q"], ["r"], domain="org.example"),
        ],
        own,
        attributes=["slope"],
    )
    product = helper.make_node("MatMul", ["a", "b"], ["r"])
    applied = helper.make_function("org.example", "apply", ["a", "b"], ["r"], [product], own)
    nodes = [
        helper.make_node("block", ["x"], ["h"], "first", domain="org.example", slope=0.1),
        helper.make_node("block", ["h"], ["k"], "second", domain="org.example", slope=0.9),
        helper.make_node("apply", ["k", "given"], ["m"], "third", domain="org.example"),
        helper.make_node("MatMul", ["m", "plain"], ["y"], "last"),
    ]
    weights = [constant(name, seed).attribute[0].t for name, seed in (("given", 3), ("plain", 4))]
    for tensor, name in zip(weights, ("given", "plain"), strict=True):
        tensor.name = name
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "main", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("org.example", 1)]
    proto = helper.make_model(graph, functions=[inner, block, applied], opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(proto)
    return proto


NAMES = ["third", "last", "org.example.inner/product", "org.example.block/product"]
X = {"x": np.random.default_rng(5).standard_normal((16, WIDTH)).astype(np.float32)}


def run(passed: Pass, model: Model) -> dict[str, Decision]:
    data = Dataset.from_arrays(X, model=model)
    context = Context(target=Target.parse("x86-vnni"), data=data, scope=passed.name)
    passed.run(model, context)
    onnx.checker.check_model(model.proto())
    return {decision.layer: decision for decision in context.decisions}


def output(model: Model | onnx.ModelProto) -> Array:
    result: Array = session.run(session.create(model), X)["y"]
    return result


def error(proto: onnx.ModelProto, model: Model) -> float:
    expected = output(proto)
    return float(np.abs(output(model) - expected).max() / np.abs(expected).max())


def test_layers_of_functions_are_listed_once_with_the_name_of_the_function() -> None:
    model = Model.from_proto(with_functions())
    layers = weighted_layers(model)
    assert [layer.name for layer in layers] == NAMES
    assert [layer.function for layer in layers] == ["", "", "org.example.inner", "org.example.block"]
    assert [layer.nested for layer in layers] == [False, False, True, True]
    counted = cost(model, {})
    assert counted.parameters == 4 * WIDTH**2
    assert set(counted.per_layer) == set(NAMES)


@pytest.mark.parametrize(("opset", "function_opset"), [(18, 18), (11, 11), (17, 16)])
def test_weights_of_functions_are_stored_in_8_bits_in_the_function(opset: int, function_opset: int) -> None:
    proto = with_functions(opset, function_opset)
    model = Model.from_proto(proto)
    decisions = run(Quant(), model)
    assert sorted(decisions) == sorted(NAMES)
    stored = [name for name in NAMES if decisions[name].action == "stored"]
    assert stored == ["third", "org.example.inner/product", "org.example.block/product"]
    assert "org.example.block" in decisions["org.example.block/product"].reason
    assert [function.name for function in model.proto().functions] == ["inner", "block", "apply"]
    assert len(model.serialize()) < 0.45 * len(proto.SerializeToString())
    assert error(proto, model) < 0.05
    assert "Cast" not in {kernel.op for kernel in optimized_kernels(model.serialize())}, "restored at load"


def test_a_function_whose_operators_are_too_old_to_restore_a_weight_keeps_it() -> None:
    proto = with_functions(8, 6)
    decisions = run(Quant(keep=("last",)), Model.from_proto(proto))
    assert decisions["org.example.inner/product"].action == "skipped"


@pytest.mark.parametrize("passed", [Fold(), Prune(), Reorder()])
@pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")
def test_other_passes_leave_functions_alone_and_say_why(passed: Pass) -> None:
    proto = with_functions()
    model = Model.from_proto(proto)
    decisions = run(passed, model)
    assert set(decisions) >= set(NAMES)
    assert all(decisions[name].reason for name in NAMES[2:])
    assert error(proto, model) < 1e-5
    assert list(model.proto().functions) == list(proto.functions)


def test_inlined_functions_are_layers_like_any_other() -> None:
    proto = with_functions()
    model = Model.from_proto(proto)
    decisions = run(Fold(inline_functions=True), model)
    assert {name for name, decision in decisions.items() if decision.action == "inlined"} == {*NAMES} - {"last"}
    assert not model.proto().functions
    layers = weighted_layers(model)
    assert [(layer.kind, layer.nested) for layer in layers] == [("MatMul", False)] * 6, "block is called twice"
    assert error(proto, model) < 1e-5
    assert all(decision.action == "quantized" for decision in run(Quant(), model).values())
    assert error(proto, model) < 0.05


def test_inlining_keeps_each_weight_wherever_the_file_holds_it(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [constant("c", 0), helper.make_node("MatMul", ["x", "c"], ["y"])]
    function = helper.make_function("own", "F", ["x"], ["y"], body, opsets[:1])
    nodes = [
        constant("k", 1),
        helper.make_node("MatMul", ["x", "k"], ["a"]),
        helper.make_node("F", ["a"], ["b"], domain="own"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    proto = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    onnx.save(proto, tmp_path / "net.onnx")
    model = Model.load(tmp_path / "net.onnx")  # there constants of nodes stand before initializers
    assert not inline_functions(model)
    assert not model.graph.functions
    feeds = {"x": np.ones((1, WIDTH), np.float32)}
    expected, found = (session.run(session.create(each), feeds)["y"] for each in (proto, model))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def one_function(imports: dict[str, int], *last: onnx.NodeProto) -> onnx.ModelProto:
    """A model of operator set 17 with one function, MatMul by a constant and these nodes, which make ``r`` of ``p``."""
    nodes = [constant("w", 1), helper.make_node("MatMul", ["a", "w"], ["p"], name="product"), *last]
    opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
    function = helper.make_function("org.example", "block", ["a"], ["r"], nodes, opsets)
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", "y")]
    call = helper.make_node("block", ["x"], ["y"], domain="org.example")
    graph = helper.make_graph([call], "main", ends[:1], ends[1:])
    own = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=own, ir_version=8)


def test_a_function_may_import_what_the_model_does_not_yet() -> None:
    proto = one_function({"": 17, "com.microsoft": 1}, helper.make_node("Gelu", ["p"], ["r"], domain="com.microsoft"))
    model = Model.from_proto(proto)
    assert run(Fold(inline_functions=True), model)["org.example.block/product"].action == "inlined"
    assert not model.proto().functions
    assert error(proto, model) < 1e-5


def test_a_function_of_another_operator_set_is_not_inlined_and_that_is_said() -> None:
    proto = one_function({"": 16}, helper.make_node("ReduceMax", ["p"], ["r"], axes=[0]))
    model = Model.from_proto(proto)
    with pytest.warns(OnnxcompWarning, match="org.example.block is not inlined, for it imports version 16"):
        decisions = run(Fold(inline_functions=True), model)
    assert decisions["org.example.block/product"].action == "skipped"
    assert list(model.proto().functions) == list(proto.functions)
    assert error(proto, model) < 1e-5


def by_attribute(op: str, inputs: list[str], attribute: str) -> onnx.NodeProto:
    """A node whose attribute is the function's attribute ``choice``."""
    node = helper.make_node(op, inputs, ["r"], name="layer")
    node.attribute.add(name=attribute, ref_attr_name="choice", type=onnx.AttributeProto.INT)
    return node


def called(body: list[onnx.NodeProto], call: onnx.NodeProto, *inits: onnx.TensorProto) -> onnx.ModelProto:
    """A model of this one call, from ``x`` to ``y``, of a function with this body, from ``a`` to ``r``."""
    inputs = ["a", "w"] if inits else ["a"]
    function = helper.make_function(
        "org.example", call.op_type, inputs, ["r"], body, [helper.make_opsetid("", 17)], attributes=["choice"]
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([call], "main", ends[:1], ends[1:], inits)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    ("op", "attribute", "choice"), [("Conv", "group", 2), ("ConvTranspose", "group", 2), ("Gemm", "transB", 1)]
)
@pytest.mark.filterwarnings("ignore:quant has no calibration data")
def test_how_a_weight_is_laid_out_may_be_what_each_call_says(op: str, attribute: str, choice: int) -> None:
    w = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    if op != "Gemm":
        w = w[:, :, None]
    held = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(w))
    call = helper.make_node("block", ["x"], ["y"], domain="org.example", choice=choice)
    proto = called([held, by_attribute(op, ["a", "w"], attribute)], call)
    x = np.random.default_rng(1).standard_normal((2, WIDTH if op != "Conv" else 2 * WIDTH)).astype(np.float32)
    feeds = {"x": x if op == "Gemm" else x[:, :, None]}
    model = Model.from_proto(proto)
    context = Context(target=Target.parse("x86-vnni"), scope="quant")
    Quant().run(model, context)
    assert [(decision.layer, decision.action) for decision in context.decisions] == [
        ("org.example.block/layer", "stored")
    ]
    expected, found = (session.run(session.create(item), feeds)["y"] for item in (proto, model))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("passed", [Quant(), Fold(inline_functions=True)])
@pytest.mark.filterwarnings("ignore:quant has no calibration data")
def test_a_function_with_the_name_of_an_operator_is_no_such_operator(passed: Pass) -> None:
    """Of its first input it picks no rows, it multiplies by it."""
    body = [helper.make_node("MatMul", ["w", "a"], ["r"], name="inner")]
    call = helper.make_node("Gather", ["given", "x"], ["y"], "call", domain="org.example")
    given = constant("given", 1).attribute[0].t
    given.name = "given"
    proto = called(body, call, given)
    function = proto.functions[0]
    function.input[:] = ["w", "a"]
    model = Model.from_proto(proto)
    assert cost(model, {"x": (WIDTH, 2), "y": (WIDTH, 2)}).flops == 0
    context = Context(target=Target.parse("x86-vnni"), scope=passed.name)
    passed.run(model, context)
    expected = "stored" if isinstance(passed, Quant) else "inlined"
    assert expected in [decision.action for decision in context.decisions if decision.layer == "call"]
    feeds = {"x": np.random.default_rng(2).standard_normal((WIDTH, 2)).astype(np.float32)}
    before, after = (session.run(session.create(item), feeds)["y"] for item in (proto, model))
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max())


def test_inlining_is_undone_like_every_other_edit() -> None:
    proto = with_functions()
    model = Model.from_proto(proto)
    graph, state = model.graph, model.checkpoint()
    run(Fold(inline_functions=True), model)
    state.restore()
    assert model.graph is graph
    assert model.proto() == proto


@pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")
def test_a_whole_compilation_accounts_for_functions(tmp_path: Any) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(with_functions(), path)
    result = compress(path, "prune,quant,reorder", data=Dataset.from_arrays(X), output=out)
    assert result.report.succeeded
    assert result.report.result.size_ratio > 2
    for entry in result.report.passes:
        assert {decision.layer for decision in entry.decisions} >= set(NAMES)
