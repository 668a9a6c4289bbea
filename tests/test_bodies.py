"""Models whose values cross between graphs: bodies that read outer tensors, names that repeat, weights given out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import compress
from onnxcomp.data import Dataset
from onnxcomp.graph.inferred import infer_types, infer_types_of_bodies
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.model import Model
from onnxcomp.report.schema import Report
from onnxcomp.runtime import session
from onnxcomp.runtime.target import Target

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


def build(text: str, opset: int = 17, **arrays: Array) -> onnx.ModelProto:
    """A model of ONNX's textual graph syntax; ``arrays`` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return proto


def weight(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    values = np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(dtype)


def samples(*shape: int, dtype: Any = np.float32) -> list[Feeds]:
    """Eight samples of ``x``, which take both branches."""
    rng = np.random.default_rng(1)
    return [{"x": rng.uniform(-1, 1, shape).astype(dtype), "c": np.array(index % 2 == 0)} for index in range(8)]


def errors(proto: onnx.ModelProto, model: Model, feeds: list[Feeds]) -> dict[str, float]:
    """By output: the largest difference, relative to the largest value."""
    before, after = session.create(proto), session.create(model)
    worst: dict[str, float] = {}
    for feed in feeds:
        expected, found = session.run(before, feed), session.run(after, feed)
        for name, value in expected.items():
            difference = np.abs(found[name].astype(float) - value).max() / np.abs(value).max()
            worst[name] = max(worst.get(name, 0.0), float(difference))
    return worst


def applied(report: Report, name: str) -> bool:
    return any(entry.name == name and entry.status == "applied" for entry in report.passes)


def test_a_rectifier_in_a_body_does_not_fuse_with_a_convolution_outside() -> None:
    proto = build(
        """
        g (float[N, 8, 8, 8] x, bool c) => (float[N, 16, 8, 8] y) {
            h = Conv<pads = [1, 1, 1, 1]>(x, w)
            y = If(c) <
                then_branch = t () => (float[N, 16, 8, 8] r) {
                    a = Relu(h)
                    r = Conv<pads = [1, 1, 1, 1]>(a, v)
                },
                else_branch = e () => (float[N, 16, 8, 8] r) { r = Conv<pads = [1, 1, 1, 1]>(x, u) }
            >
        }""",
        w=weight(16, 8, 3, 3),
        v=weight(16, 16, 3, 3),
        u=weight(16, 8, 3, 3, seed=1),
    )
    feeds = samples(1, 8, 8, 8)
    result = compress(Model.from_proto(proto), "quant", data=Dataset.from_feeds(feeds), target=Target.parse("x86-vnni"))
    assert applied(result.report, "quant")
    assert errors(proto, result.model, feeds)["y"] < 0.1


OLD = """
    g (float[N, 4, 8] x, bool c) => (float[N, 4, 8] y, float[N, 32] z) {
        y = If(c) <
            then_branch = t () => (float[N, 4, 8] r) {
                b = Identity(x)
                d = Softmax<axis = 1>(b)
                u = Unsqueeze<axes = [0]>(d)
                r = Squeeze<axes = [0]>(u)
            },
            else_branch = e () => (float[N, 4, 8] r) {
                a = Softmax<axis = 2>(x)
                r = Clip<min = 0.1, max = 0.2>(a)
            }
        >
        b = Flatten<axis = 1>(x)
        z = Softmax<axis = 1>(b)
    }"""


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12])
def test_bodies_are_raised_by_the_types_of_their_own_tensors(opset: int) -> None:
    """``b`` of the body has three axes, ``b`` of the main graph two."""
    proto = build(OLD if opset < 11 else OLD.replace("Clip<min = 0.1, max = 0.2>(a)", "Abs(a)"), opset)
    model, feeds = Model.from_proto(proto), samples(2, 4, 8)
    assert upgrade_opset(model, 13)
    assert max(errors(proto, model, feeds).values()) < 1e-6


def test_limits_in_a_body_get_the_type_of_what_they_limit() -> None:
    proto = build(
        """
        g (float16[N, 8] x, bool c) => (float16[N, 8] y) {
            y = If(c) <
                then_branch = t () => (float16[N, 8] r) {
                    a = Abs(x)
                    r = Clip<min = 0.25, max = 0.5>(a)
                },
                else_branch = e () => (float16[N, 8] r) { r = Clip<min = -0.5, max = 0.5>(x) }
            >
        }""",
        opset=9,
    )
    model, feeds = Model.from_proto(proto), samples(2, 8, dtype=np.float16)
    assert upgrade_opset(model, 13)
    assert errors(proto, model, feeds) == {"y": 0.0}


def test_a_name_of_a_body_hides_that_of_the_graph_around_it() -> None:
    model = Model.from_proto(build(OLD, 9))
    types = infer_types_of_bodies(model)
    (branching,) = (node for node in model.graph.nodes if node.op == "If")
    inner = types[id(branching.attrs["then_branch"])]
    outer = types[id(model.graph)]
    assert [len(kind.shape or ()) for kind in (inner["b"], outer["b"]) if kind] == [3, 2]
    assert inner["x"] == outer["x"]


def test_what_a_loop_declares_of_its_growing_state_is_not_believed() -> None:
    proto = build(
        """
        g (float[2, 4] x) => (float[A, B, C] stacked) {
            n = Constant<value = int64 {1}>()
            last, stacked = Loop(n, , x) <
                body = b (int64 i, bool k, float[1, 4] h) => (bool d, float[A, 4] s, float[A, 4] t) {
                    d = Identity(k)
                    s = Concat<axis = 0>(h, h)
                    t = Identity(s)
                }
            >
        }"""
    )
    shape = infer_types(Model.from_proto(proto))["stacked"].shape
    assert shape is None or shape[1] != 2


GIVEN_OUT = """
    g (float[N, 16, 4, 4] x) => (float[N, 8, 4, 4] y, float[32, 16, 1, 1] w, float[32] b) {
        p = Conv(x, w)
        q = Relu(p)
        s = Conv(q, v, b)
        m = Mul(s, k)
        u = Relu(m)
        y = Conv(u, t)
    }"""


@pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")
@pytest.mark.parametrize("pipeline", ["fold", "prune", "reorder", "equalize", "quant"])
@pytest.mark.parametrize("with_data", [True, False])
def test_weights_that_the_model_gives_out_stay_as_they_are(pipeline: str, with_data: bool) -> None:
    proto = build(
        GIVEN_OUT,
        w=weight(32, 16, 1, 1),
        v=weight(64, 32, 1, 1)[:32],
        t=weight(8, 32, 1, 1),
        b=weight(32)[:32],
        k=np.linspace(0.5, 1.5, 32, dtype=np.float32).reshape(1, 32, 1, 1),
    )
    feeds = [{"x": feed["x"]} for feed in samples(1, 16, 4, 4)]
    data = Dataset.from_feeds(feeds) if with_data else None
    result = compress(Model.from_proto(proto), pipeline, data=data, target=Target.parse("x86-vnni"))
    assert all(entry.status != "rolled back" for entry in result.report.passes)
    found = errors(proto, result.model, feeds)
    assert found["w"] == found["b"] == 0.0


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.filterwarnings("ignore:quant has no calibration data")
def test_a_model_that_cannot_be_raised_stores_its_weights(with_data: bool) -> None:
    """TopK got an input for its attribute; the Clip before it must not stay half raised."""
    proto = build(
        """
        g (float[N, 32] x, bool c) => (float[N, 4] y) {
            h = Clip<min = -0.5, max = 0.5>(x)
            y = If(c) <
                then_branch = t () => (float[N, 4] r) {
                    a = MatMul(h, w)
                    r, i = TopK<axis = 1, k = 4>(a)
                },
                else_branch = e () => (float[N, 4] r) { r = MatMul(h, v) }
            >
        }""",
        9,
        w=weight(32, 64),
        v=weight(32, 4),
    )
    feeds = samples(2, 32)
    data = Dataset.from_feeds(feeds) if with_data else None
    result = compress(Model.from_proto(proto), "quant", data=data, target=Target.parse("x86-vnni"))
    decisions = {decision.layer: decision for decision in result.report.passes[-1].decisions}
    assert {name: decision.action for name, decision in decisions.items()} == {
        "MatMul:a": "stored",
        "MatMul:r": "skipped",
    }
    assert all("TopK" in decision.reason for decision in decisions.values())
    assert result.model.opset == 9
    assert errors(proto, result.model, feeds)["y"] < 0.02
    failed = compress(Model.from_proto(proto), "quant(mode='dynamic')", data=data, target=Target.parse("x86-vnni"))
    assert failed.report.passes[-1].status == "rolled back"
