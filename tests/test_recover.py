"""The pass recover: training with the gradients that ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxcomp import Context, Dataset, Model, Target, compress
from onnxcomp.errors import PassError, UsageError
from onnxcomp.gradient import Term
from onnxcomp.graph.constants import assign
from onnxcomp.graph.cuts import between, cuts, evenly
from onnxcomp.graph.parameters import parameters
from onnxcomp.linalg.optimizers import Optimizer, clipped, cosine
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime.gradients import Gradients
from onnxcomp.runtime.heads import Head, heads, matched
from onnxcomp.runtime.lessons import Curriculum
from onnxcomp.runtime.session import create, run
from onnxcomp.runtime.targets import Targets, _mixed
from onnxcomp.runtime.traced import trace
from tests.models import model_of, value
from tests.quantizing import build
from tests.recovering import error_of, hidden_error_of, network, recovered, samples

Array = np.ndarray[Any, Any]


SHORT = Recover(epochs=30, batch=16, lr=3e-3, loss="mse")


@pytest.mark.parametrize("loss", ["auto", "kl", "mse"])
def test_a_disturbed_network_is_won_back(loss: str) -> None:
    student = network(noise=0.3)
    model, ctx = recovered(student, Recover(epochs=30, batch=16, lr=3e-3, loss=loss))  # type: ignore[arg-type]
    assert {decision.layer: decision.action for decision in ctx.decisions} == dict.fromkeys(
        ("one", "two", "three"), "trained"
    )
    assert error_of(model) < 0.3 * error_of(Model.from_proto(student))


def test_zeros_stay_zero() -> None:
    student = network(noise=0.2, zeros=0.5)
    model, _ = recovered(student, SHORT)
    before, after = (
        {parameter.name: parameter.value for parameter in parameters(entry)}
        for entry in (Model.from_proto(student), model)
    )
    assert np.array_equal(before["w1"] == 0, after["w1"] == 0)
    assert not np.array_equal(before["w1"], after["w1"])
    assert error_of(model) < error_of(Model.from_proto(student))


def test_a_network_that_is_the_original_stays_as_it_is() -> None:
    model, ctx = recovered(network(), Recover(epochs=2, batch=16))
    assert error_of(model) < 1e-10
    assert all(decision.action == "skipped" for decision in ctx.decisions)


def test_same_seed_same_bytes() -> None:
    first, second = (recovered(network(0.3), SHORT)[0].serialize() for _ in range(2))
    assert first == second


def test_mixtures_lie_between_two_samples_and_the_teacher_answers_to_them() -> None:
    teacher, data = Model.from_proto(network()), samples(12)
    shapes = {value.name: (1, *value.shape[1:]) for value in teacher.graph.outputs}
    targets = Targets(teacher, data, heads(teacher, shapes, "mse"))
    plain, mixed = (targets.batches(range(8), mixing)[0] for mixing in (None, np.random.default_rng(0)))
    found = run(create(teacher), mixed.feeds)["y"]
    np.testing.assert_allclose(mixed.targets["y"], found, rtol=1e-5, atol=1e-5)
    one, other = plain.feeds["x"].reshape(8, -1), mixed.feeds["x"].reshape(8, -1)
    for row, mixture in enumerate(other):  # own share and that of one other sample, which add up to 1
        fits = [np.linalg.lstsq(np.stack([one[row], one[second]], 1), mixture) for second in range(8)]
        best = min(fits, key=lambda fit: float(fit[1].sum()) if len(fit[1]) else np.inf)[0]
        assert best.sum() == pytest.approx(1, abs=1e-3) or np.allclose(mixture, one[row], atol=1e-5)
    again = targets.batches(range(8), np.random.default_rng(0))[0]
    np.testing.assert_array_equal(again.feeds["x"], mixed.feeds["x"])
    after = targets.batches(range(8))[0]  # and nothing of it is kept
    np.testing.assert_allclose(after.targets["y"], run(create(teacher), plain.feeds)["y"], rtol=1e-5, atol=1e-5)


def test_mixtures_of_few_samples_help_on_others() -> None:
    few, errors = samples(16), {}
    for mix in (False, True):
        model, _ = recovered(network(0.3), Recover(epochs=150, batch=8, lr=1e-2, mix=mix), few)
        errors[mix] = error_of(model)
    assert errors[True] < errors[False] < error_of(Model.from_proto(network(0.3)))


def test_integers_are_of_one_of_the_two() -> None:
    feeds = {"ids": np.arange(12).reshape(6, 2), "scale": np.array(2.0, np.float32)}
    found = _mixed(feeds, 6, np.random.default_rng(1))
    assert {tuple(row) for row in found["ids"]} <= {tuple(row) for row in feeds["ids"]}
    assert found["scale"] == 2.0


def test_layers_that_are_named_are_left_alone() -> None:
    student = network(noise=0.3)
    model, ctx = recovered(student, Recover(epochs=3, batch=16, freeze=("one",)))
    values = {parameter.name: parameter.value for parameter in parameters(model)}
    assert np.array_equal(values["w1"], numpy_helper.to_array(student.graph.initializer[0]))
    assert next(decision for decision in ctx.decisions if decision.layer == "one").action == "skipped"


def test_labels_are_learnt() -> None:
    data = samples()
    labels = np.concatenate(
        [
            ort.InferenceSession(network().SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
            for feeds in data.feeds()
        ]
    ).argmax(axis=1)
    x = np.concatenate([feeds["x"] for feeds in data.feeds()])
    labelled = Dataset.from_arrays({"x": x}, labels, Model.from_proto(network()))
    student = network(noise=0.5)
    _, ctx = recovered(student, Recover(epochs=10, batch=16, loss="ce"), labelled)
    assert all(decision.action == "trained" for decision in ctx.decisions)


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    whole, _ = recovered(network(0.3), SHORT)
    options = SHORT.model_copy(update={"checkpoint": str(file)})

    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupting(items: Any, description: str, total: int | None = None) -> Any:  # noqa: ARG001
        for index, item in enumerate(items):
            if index == 60:
                raise Interrupted
            yield item

    model = Model.from_proto(network(0.3))
    ctx = Context(
        target=Target.host(),
        data=samples(),
        original=Model.from_proto(network()),
        scope="recover",
        progress=interrupting,
    )
    with pytest.raises(Interrupted):
        options.run(model, ctx)
    assert file.is_file()
    again, _ = recovered(network(0.3), options)
    assert again.serialize() == whole.serialize()
    assert not file.exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    np.savez(file, identity=np.array("another"))
    with pytest.raises(PassError, match="another model"):
        recovered(network(0.3), SHORT.model_copy(update={"checkpoint": str(file)}))
    file.write_bytes(b"no archive")
    with pytest.raises(PassError, match="is no checkpoint"):
        recovered(network(0.3), SHORT.model_copy(update={"checkpoint": str(file)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"freeze": ("zzz",)}, "names 'zzz'"), ({"loss": "ce"}, "needs labels")],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        recovered(network(0.3), Recover(**options))


def test_options_out_of_range() -> None:
    with pytest.raises(UsageError, match="lr=0"):
        Recover.with_options({"lr": 0})


def test_it_needs_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(network(), path)
    result = compress(path, "recover")
    assert "needs calibration data" in str(result.report.passes[-1].verification.error)


def test_the_traced_form_gives_the_same_gradients() -> None:
    model = Model.from_proto(network(0.3))
    found = parameters(model)
    values = {parameter.name: np.array(parameter.value) for parameter in found}
    gradients = Gradients(model, list(values), [Term("y", "mse")])
    x = np.random.default_rng(5).standard_normal((8, 3, 8, 8)).astype(np.float32)
    y = np.random.default_rng(6).standard_normal((8, 5)).astype(np.float32)
    backward = gradients._for({"x": x})._backward
    assert backward._fast is not None
    fast = gradients.step(values, {"x": x}, {"y": y})
    assert backward._fast is not None  # it was compared with the plain form, and kept
    backward._fast = None
    plain = gradients.step(values, {"x": x}, {"y": y})
    assert fast.loss == pytest.approx(plain.loss, rel=1e-5)
    for name, expected in plain.gradients.items():
        np.testing.assert_allclose(fast.gradients[name], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_loss_alone_is_that_of_a_step_without_the_backward_pass() -> None:
    model = Model.from_proto(network(0.3))
    values = {parameter.name: 1.1 * np.array(parameter.value) for parameter in parameters(model)}
    gradients = Gradients(model, list(values), [Term("y", "mse")])
    x = np.random.default_rng(5).standard_normal((8, 3, 8, 8)).astype(np.float32)
    y = np.random.default_rng(6).standard_normal((8, 5)).astype(np.float32)
    loss = gradients.loss(values, {"x": x}, {"y": y})
    assert loss == pytest.approx(gradients.step(values, {"x": x}, {"y": y}).loss, rel=1e-5)
    compiled = gradients._for({"x": x})
    assert compiled._forward._fast is not None
    forward, whole = compiled._forward._model.graph, compiled.derivative.model.graph
    assert len(forward.node) < len(whole.node) / 2
    assert {value.name for value in whole.input} == {value.name for value in forward.input}


def test_a_weight_that_is_computed_with_is_not_traced() -> None:
    """ONNX Runtime folds the product of the weight, and the labels are gone."""
    nodes = [
        helper.make_node("Mul", ["w", "two"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", 1, 3, 4, 4), value("w", 8, 3, 1, 1)],
        [value("y", 1, 8, 4, 4)],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    options, plain = ort.SessionOptions(), ort.SessionOptions()
    assert trace(model_of(graph, opset=13, ir_version=8), {"w": (8, 3, 1, 1)}, options, plain) is None


def test_adam_takes_its_first_step_by_the_rate() -> None:
    values = {"w": np.zeros(3, np.float32)}
    optimizer = Optimizer("adam", values, {"w": np.array([True, True, False])})
    optimizer.step({"w": np.array([5.0, -0.01, 1.0], np.float32)}, 0.1)
    np.testing.assert_allclose(values["w"], [-0.1, 0.1, 0.0], rtol=1e-5)


def test_sgd_follows_nesterov() -> None:
    values = {"w": np.zeros(1, np.float32)}
    optimizer = Optimizer("sgd", values, {})
    for _ in range(2):
        optimizer.step({"w": np.ones(1, np.float32)}, 0.1)
    # v1 = 1, v2 = 1.9; steps are g + 0.9 v
    np.testing.assert_allclose(values["w"], [-0.1 * (1.9 + 1 + 0.9 * 1.9)], rtol=1e-6)


def test_the_rate_rises_and_falls() -> None:
    rates = [cosine(step / 100) for step in range(101)]
    assert rates[0] == 0
    assert max(rates) == rates[5] == 1
    assert rates[100] == pytest.approx(0)


def test_long_gradients_are_cut() -> None:
    cut, norm = clipped({"a": np.array([3.0, 4.0], np.float32)}, 1.0)
    assert norm == 5
    np.testing.assert_allclose(cut["a"], [0.6, 0.8])


def test_a_codebook_is_trained_and_its_zero_stays() -> None:
    codes = np.random.default_rng(7).integers(0, 4, (6, 4))
    book = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
    nodes = [
        helper.make_node("Gather", ["book", "codes"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], "layer"),
    ]
    held = [numpy_helper.from_array(book, "book"), numpy_helper.from_array(codes, "codes")]
    graph = helper.make_graph(nodes, "g", [value("x", 3, 6)], [value("y", 3, 4)], held)
    model = Model.from_proto(model_of(graph, opset=16, ir_version=8))
    (parameter,) = parameters(model)
    assert parameter.name == "book"
    assert parameter.kept is not None
    assert parameter.kept.tolist() == [True, False, True, True]
    x = np.random.default_rng(8).standard_normal((3, 6)).astype(np.float32)
    target = np.zeros((3, 4), np.float32)
    found = Gradients(model, ["book"], [Term("y", "mse")]).step({"book": book}, {"x": x}, {"y": target})
    by_weight = x.T @ (2 * (x @ book[codes]) / 12)
    expected = [by_weight[codes == code].sum() for code in range(4)]
    np.testing.assert_allclose(found.gradients["book"], expected, rtol=1e-4)


def _of_codebooks(book: Sequence[float] = (-1.0, 0.0, 0.5, 1.0)) -> Model:
    """Two layers, the codes of each packed apart, that share one codebook."""
    rng = np.random.default_rng(7)
    held = [numpy_helper.from_array(np.array(book, np.float32), "book")]
    held.append(numpy_helper.from_array(np.array([6, 6]), "shape"))
    nodes = []
    for name, source, target in (("first", "x", "h"), ("second", "r", "y")):
        held.append(numpy_helper.from_array(rng.integers(0, 4, 36).astype(np.uint8), f"{name}/codes"))
        nodes += [
            helper.make_node("Cast", [f"{name}/codes"], [f"{name}/indices"], to=onnx.TensorProto.INT32),
            helper.make_node("Gather", ["book", f"{name}/indices"], [f"{name}/flat"]),
            helper.make_node("Reshape", [f"{name}/flat", "shape"], [f"{name}/w"]),
            helper.make_node("MatMul", [source, f"{name}/w"], [target], name),
        ]
        if target == "h":
            nodes.append(helper.make_node("Tanh", ["h"], ["r"]))
    graph = helper.make_graph(nodes, "g", [value("x", "n", 6)], [value("y", "n", 6)], held)
    return Model.from_proto(model_of(graph, opset=16, ir_version=8))


def _book(model: Model) -> Array:
    (found,) = (tensor for tensor in model.proto().graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    return numpy_helper.to_array(found)


def _trained_codebooks(freeze: tuple[str, ...] = ()) -> tuple[Model, dict[str, str]]:
    model, original = _of_codebooks(), _of_codebooks((-1.2, 0.0, 0.4, 0.8))
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}, model=model)
    ctx = Context(target=Target.host(), data=data, original=original, scope="recover")
    Recover(epochs=40, batch=16, lr=1e-2, loss="mse", freeze=freeze).run(model, ctx)
    return model, {decision.layer: decision.action for decision in ctx.decisions}


def test_layers_of_a_shared_codebook_are_trained_and_told() -> None:
    model, actions = _trained_codebooks()
    assert actions == {"first": "trained", "second": "trained"}
    np.testing.assert_allclose(_book(model), [-1.2, 0.0, 0.4, 0.8], atol=0.05)
    assert [node.op for node in model.graph.nodes].count("Gather") == 2
    assert Recover().prospect(model, {}, Target.host()) == "weights of 2 of 2 layers could be trained"


def test_a_layer_of_a_codebook_can_be_left_alone() -> None:
    """And with it the other layer, which has no other codebook."""
    model, actions = _trained_codebooks(("first",))
    assert actions == {"first": "skipped", "second": "skipped"}
    assert np.array_equal(_book(model), _book(_of_codebooks()))


def test_intermediate_tensors_are_matched() -> None:
    """A hidden layer may find other values with the same outputs, unless it is to have the original's."""
    student = network(noise=0.3)
    plain = Recover(epochs=30, batch=16, lr=3e-3, loss="mse")
    errors = []
    for options in (plain, plain.model_copy(update={"match": ("r1",)})):
        model, _ = recovered(student, options)
        errors.append(hidden_error_of(model))
    assert errors[1] < 0.5 * errors[0]


def test_intermediate_tensors_and_labels_go_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}, rng.integers(0, 5, 64), Model.from_proto(network()))
    options = Recover(epochs=10, batch=16, loss="ce", match=("r1",))
    _, ctx = recovered(network(noise=0.3), options, data)
    assert {decision.action for decision in ctx.decisions} == {"trained"}


def test_tensors_that_cannot_be_matched_are_named() -> None:
    shapes = {"a": (1, 4), "b": (1, 8)}
    with pytest.raises(PassError, match="'c', which the original does not compute"):
        matched(["c"], shapes, shapes)
    with pytest.raises(PassError, match="'b', which the model at this stage does not compute"):
        matched(["a", "b"], {"a": (1, 4)}, shapes)
    with pytest.raises(PassError, match=r"'a', which is \(1, 2\) now and was \(1, 4\)"):
        matched(["a"], {"a": (1, 2)}, shapes)
    with pytest.raises(PassError, match="'nowhere', which the original"):
        recovered(network(), Recover(epochs=1, match=("nowhere",)))


def test_the_teacher_is_asked_once_however_often_the_student_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    student = Model.from_proto(network(noise=0.3))
    curriculum = Curriculum(student, Model.from_proto(network()), samples(), "mse")
    first = curriculum.judge([range(8)])

    def refuse(*_: object) -> None:
        raise AssertionError("the teacher ran again")

    monkeypatch.setattr("onnxcomp.runtime.targets.run", refuse)
    monkeypatch.setattr("onnxcomp.runtime.lessons.run", refuse)
    assert curriculum.judge([range(8)]) == first
    for parameter, other in zip(parameters(student), parameters(curriculum.original), strict=True):
        assign(parameter.tensor, other.value)
    assert curriculum.judge([range(8)]) < 1e-6 * first  # the student is the one of now


@pytest.mark.parametrize("parts", [2, 3])
def test_a_network_is_trained_in_parts(parts: int) -> None:
    """Each learns what the original has at its end; the cut is where one tensor holds all."""
    student = network(noise=0.3)
    before = error_of(Model.from_proto(student))
    model, ctx = recovered(student, SHORT.model_copy(update={"parts": parts}))
    assert error_of(model) < 0.2 * before
    assert {decision.action for decision in ctx.decisions} == {"trained"}
    reasons = {decision.reason for decision in ctx.decisions}
    assert len(reasons) == parts


def test_cuts_are_where_one_tensor_holds_all_that_depends_on_parameters() -> None:
    """Not within a residual branch; a mask that no parameter makes goes past them."""
    model = build(
        """
        g (float[N, 8] x, float[N, 1] m) => (float[N, 4] y) {
            mask = Neg(m)
            h = MatMul(x, a)
            r = Relu(h)
            t = MatMul(r, b)
            s = Add(t, h)
            u = Mul(s, mask)
            y = MatMul(u, c)
        }""",
        {name: np.ones(shape, np.float32) for name, shape in {"a": (8, 8), "b": (8, 8), "c": (8, 4)}.items()},
    )
    found = cuts(model, ["a", "b", "c"])
    assert found == ["h", "u"]
    places = {"h": 0.2, "u": 0.6}
    assert evenly(found, places, 2) == ["u"]
    assert evenly(found, places, 4) == ["h", "u"]
    assert evenly([], {}, 4) == []
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 8)).astype(np.float32), "m": rng.standard_normal((3, 1)).astype(np.float32)}
    whole = run(create(model), feeds)["y"]
    first, last = between(model, None, "s"), between(model, "s", None)
    assert [value.name for value in first.proto().graph.input] == ["x"]
    assert {value.name for value in last.proto().graph.input} == {"m", "s"}
    middle = run(create(first), {"x": feeds["x"]})
    np.testing.assert_array_equal(run(create(last), {"m": feeds["m"], **middle})["y"], whole)


def test_a_weight_of_both_sides_forbids_a_cut() -> None:
    body = (
        "g (float[N, 8] x) => (float[N, 8] y) { a1 = MatMul(x, a) r = Relu(a1) b1 = MatMul(r, b) y = MatMul(b1, %s) }"
    )
    arrays = {name: np.ones((8, 8), np.float32) for name in "abc"}
    assert cuts(build(body % "c", arrays), list(arrays)) == ["r", "b1"]
    del arrays["c"]
    assert cuts(build(body % "a", arrays), list(arrays)) == []


def test_parts_of_a_model_with_two_inputs_are_trained() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: (rng.standard_normal((8, 8)) / 3).astype(np.float32) for name in "abc"}
    body = """
        g (float[N, 8] x, float[N, 8] z) => (float[N, 8] y) {
            t = MatMul(x, a)
            u = Tanh(t)
            v = MatMul(u, b)
            w = Add(v, z)
            y = MatMul(w, c)
        }"""
    original = build(body, arrays)
    model = build(body, {name: array + np.float32(0.1) for name, array in arrays.items()})
    feeds = {name: rng.standard_normal((64, 8)).astype(np.float32) for name in "xz"}
    data = Dataset.from_arrays(feeds, model=original)
    ctx = Context(target=Target.host(), data=data, original=original, scope="recover")
    before = np.square(run(create(model), feeds)["y"] - run(create(original), feeds)["y"]).mean()
    Recover(epochs=60, batch=16, lr=1e-2, loss="mse", parts=3).run(model, ctx)
    after = np.square(run(create(model), feeds)["y"] - run(create(original), feeds)["y"]).mean()
    assert after < 0.2 * before


def test_answers_that_are_laid_out_by_time_are_not_cut_into_samples() -> None:
    """As many steps as samples in a batch: rows of the first axis are no samples."""
    rng = np.random.default_rng(0)
    model = build(
        """
        g (float[N, 4, 3] x) => (float[N, 4, 3] y) {
            t = Transpose<perm = [1, 0, 2]>(x)
            u = MatMul(t, a)
            y = Transpose<perm = [1, 0, 2]>(u)
        }""",
        {"a": rng.standard_normal((3, 3)).astype(np.float32)},
    )
    x = rng.standard_normal((8, 4, 3)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}, model=model)
    targets = Targets(model, data, [Head("u", "u", "mse")])
    expected = [targets.batches([0, 1, 2, 3]), targets.batches([4, 5, 6, 7])]
    (again,) = targets.batches([2, 3, 4, 5])
    whole = np.concatenate([batch.targets["u"] for (batch,) in expected], axis=1)
    np.testing.assert_array_equal(again.targets["u"], whole[:, 2:6])


def test_samples_of_a_function_that_fills_one_array_again_are_kept_apart(tmp_path: Path) -> None:
    source = tmp_path / "samples.py"
    source.write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    buffer = np.zeros((1, 3, 8, 8), np.float32)\n"
        "    for index in range(4):\n"
        "        buffer[...] = index\n"
        "        yield {'x': buffer}\n"
    )
    kept = Dataset.open(f"{source}:samples", Model.from_proto(network())).at_random(1e9)
    assert [float(feeds["x"].mean()) for feeds in kept.feeds()] == [0, 1, 2, 3]


def test_logits_given_out_beside_their_probabilities_are_trained_once() -> None:
    model = build(
        "g (float[N, 4] x) => (float[N, 3] l, float[N, 3] p) { l = MatMul(x, a) p = Softmax(l) }",
        {"a": np.ones((4, 3), np.float32)},
    )
    (head,) = heads(model, {"l": (1, 3), "p": (1, 3)}, "auto")
    assert (head.tensor, head.kind) == ("l", "kl")


def test_classes_of_dense_outputs_are_on_the_second_axis() -> None:
    model = build(
        "g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { y = Conv(x, w) }", {"w": np.ones((5, 3, 1, 1), np.float32)}
    )
    (head,) = heads(model, {"y": (1, 5, 8, 8)}, "kl")
    assert head.axis == 1


@pytest.mark.parametrize("labels", [np.full(64, 5), np.full(64, -1), np.full(64, 0.5)])
def test_labels_that_are_no_classes_are_refused(labels: Array) -> None:
    data = Dataset.from_arrays({"x": np.zeros((64, 3, 8, 8), np.float32)}, labels, Model.from_proto(network()))
    with pytest.raises(PassError, match="needs labels from 0 to 4"):
        recovered(network(noise=0.1), Recover(epochs=1, loss="ce"), data)


def test_constants_of_images_and_masks_are_not_learnt() -> None:
    model = build(
        """
        g (float[N, 3] x) => (float[N, 3] y) {
            c = Sub(x, mean)
            h = MatMul(c, w)
            s = Mul(h, scale)
            y = Add(s, mask)
        }""",
        {
            "mean": np.full(3, 0.5, np.float32),
            "w": np.ones((3, 3), np.float32),
            "scale": np.full(3, 2, np.float32),
            "mask": np.array([0, 0, -1e9], np.float32),
        },
    )
    assert [parameter.name for parameter in parameters(model)] == ["w", "scale"]
