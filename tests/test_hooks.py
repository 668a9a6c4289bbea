"""What happens around a pass: verification, measuring, and reproducers that repeat a failure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp import Context, Dataset, Model, Pass, PassManager, Pipeline, Target, registry
from onnxcomp.errors import InputError, OnnxcompWarning, UsageError
from onnxcomp.evaluate import Evaluator, metric_named
from onnxcomp.hooks import EXACT_TOLERANCE, Measure, Verify
from onnxcomp.manager import PassRecord
from onnxcomp.passes.fold import Fold
from onnxcomp.reproduce import Reproducer, replay
from onnxcomp.runtime.feeds import synthetic
from tests import breaking, models
from tests.generate import Net


@pytest.fixture
def model() -> Model:
    net = Net(shape=(3, 6, 6))
    net.matmul(net.flatten(net.node("GlobalAveragePool", net.conv("x", 8)), positions=1), 5, bias=False)
    return net.model()


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test passes as an installed package would add them."""
    classes = [*breaking.BREAKING, breaking.Scale]
    entries = [EntryPoint(cls.name, f"tests.breaking:{cls.__name__}", registry.ENTRY_POINT_GROUP) for cls in classes]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group else [])
    registry._plug_ins.cache_clear()
    yield
    registry._plug_ins.cache_clear()


def data_for(model: Model, count: int = 6) -> Dataset:
    rng = np.random.default_rng(count)
    return Dataset.from_arrays({"x": rng.standard_normal((count, 3, 6, 6)).astype(np.float32)}, model=model)


def fail(model: Model, folder: Path, *passes: Pass, data: bool = True) -> list[PassRecord]:
    """Run passes with everything that a compilation runs around them."""
    original = Model.from_proto(model.proto())
    calibration = data_for(model, 40)
    evaluation = data_for(model, 5) if data else Dataset.from_feeds([synthetic(model, seed=3)])
    probe = evaluation.sample()
    evaluator = Evaluator(original, evaluation)
    hooks = [
        Reproducer(folder, evaluation if data else None),
        Measure(evaluator, evaluator.evaluate(original)),
        Verify(original, [probe]),
    ]
    target = Target.parse("x86-avx2")
    ctx = Context(target=target, data=calibration if data else None, seed=3, original=original)
    return PassManager(Pipeline(passes), hooks).run(model, ctx)


def checks(record: PassRecord) -> dict[str, str]:
    return {check.name: check.outcome for check in record.checks}


# -- verification --------------------------------------------------------------------------------------------


def test_a_good_pass_passes_every_check(model: Model, tmp_path: Path) -> None:
    (scaled,) = fail(model, tmp_path, breaking.Scale())
    assert checks(scaled) == dict.fromkeys(("interface", "checker", "runs", "signal"), "passed")
    (idle,) = fail(model, tmp_path, breaking.Idle())
    assert checks(idle) == {"unchanged": "passed"}
    assert list(tmp_path.iterdir()) == []


def test_the_failed_check_is_named(model: Model, tmp_path: Path) -> None:
    passes = (breaking.Invalid(), breaking.MakesNan(), breaking.NotExact(), breaking.Negates(), breaking.FixesBatch())
    names = [next(name for name, o in checks(r).items() if o == "failed") for r in fail(model, tmp_path, *passes)]
    assert names == ["checker", "runs", "exact", "signal", "interface"]


@pytest.mark.parametrize(("factor", "status"), [(1 + EXACT_TOLERANCE / 20, "applied"), (1.05, "rolled back")])
def test_exact_is_to_float_tolerance(model: Model, tmp_path: Path, factor: float, status: str) -> None:
    (record,) = fail(model, tmp_path, breaking.NotExact(factor=factor))
    assert record.status == status
    figure = next(check.figure for check in record.checks if check.name == "exact")
    assert (figure is not None and 0 < figure <= EXACT_TOLERANCE) == (status == "applied")


def test_exact_counts_for_text_and_sequences() -> None:
    """They have no distance: any difference is one."""

    class Swaps(breaking.NotExact):
        name = "swaps"

        def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
            node = next(node for node in model.graph.nodes if node.op == self.swapped)
            node.inputs.reverse()

        swapped: str = "Concat"

    names = onnx.numpy_helper.from_array(np.array(["a"], object), "names")
    more = onnx.numpy_helper.from_array(np.array(["b"], object), "more")
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("SequenceConstruct", ["y", "z"], ["list"]),
        helper.make_node("StringConcat", ["names", "more"], ["text"]),
    ]
    outputs = [
        helper.make_tensor_sequence_value_info("list", 1, None),
        models.value("text", 1, kind=onnx.TensorProto.STRING),
    ]
    graph = helper.make_graph(nodes, "main", [models.value("x", 2)], outputs, [names, more])
    proto = models.model_of(graph, opset=20)
    feeds = {"x": np.array([1, 2], np.float32)}
    for operator in ("StringConcat", "SequenceConstruct"):
        model = Model.from_proto(proto)
        manager = PassManager(Pipeline([Swaps(swapped=operator)]), [Verify(Model.from_proto(proto), [feeds])])
        (record,) = manager.run(model, Context(target=Target.parse("x86-avx2")))
        assert record.status == "rolled back"
        assert record.error is not None
        assert "promises the same outputs" in record.error


def test_what_the_original_fails_itself_is_not_held_against_a_pass(tmp_path: Path) -> None:
    """The checker wants a shape of every output; ONNX Runtime does not."""
    net = Net(shape=(3, 6, 6))
    net.matmul(net.flatten(net.node("GlobalAveragePool", net.conv("x", 8)), positions=1), 5)
    proto = net.proto()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto)
    (record,) = fail(Model.from_proto(proto), tmp_path, breaking.Scale())
    assert record.status == "applied"


@pytest.mark.parametrize("metric", ["sqnr", "cosine", "max_error", "agreement"])
def test_an_exact_pass_costs_nothing_in_any_metric(model: Model, metric: str) -> None:
    evaluator = Evaluator(Model.from_proto(model.proto()), data_for(model), metric_named(metric))
    measure = Measure(evaluator, evaluator.evaluate(model), max_drop=0.0)
    (record,) = PassManager(Pipeline([breaking.Forgets()]), [measure]).run(
        model, Context(target=Target.parse("x86-avx2"))
    )
    assert record.error is None
    assert measure.latest.drop == 0


def test_without_a_budget_any_drop_is_allowed(model: Model) -> None:
    evaluator = Evaluator(Model.from_proto(model.proto()), data_for(model), metric_named("sqnr"))
    measure = Measure(evaluator, evaluator.evaluate(model))
    (record,) = PassManager(Pipeline([breaking.Scale()]), [measure]).run(model, Context(target=Target.parse("arm64")))
    assert record.status == "applied"
    assert measure.latest.drop == math.inf  # the original's own SQNR is infinite


# -- reproducers ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("broken", breaking.BREAKING, ids=lambda cls: cls.name)
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_replay_repeats_the_failure(model: Model, tmp_path: Path, broken: type[Pass], data: bool) -> None:
    *_, record = fail(model, tmp_path, breaking.Scale(), broken(), data=data)
    assert record.reproducer == str(tmp_path / broken.name)
    again = replay(tmp_path / broken.name)
    assert again.status == "rolled back"
    assert again.error == record.error


@pytest.mark.usefixtures("_registered")
def test_a_reproducer_holds_what_the_pass_was_given(model: Model, tmp_path: Path) -> None:
    original = model.serialize()
    fail(model, tmp_path, breaking.Scale(factor=1.02), breaking.Raises(factor=2.0))
    folder = tmp_path / "raises"
    assert (folder / "original.onnx").read_bytes() == original
    assert (folder / "model.onnx").read_bytes() == model.serialize() != original
    described = json.loads((folder / "reproducer.json").read_text())
    assert described["pipeline"] == "raises(factor=2.0)"
    assert described["error"] == "RuntimeError: this cannot be done"
    assert (described["seed"], described["target"], described["threads"]) == (3, "x86-avx2", 1)
    assert (described["calibration_samples"], described["evaluation_samples"]) == (40, 5)
    assert {"onnxcomp", "onnx", "onnxruntime", "python"} <= described["versions"].keys()
    kept = Dataset.open(str(folder / "calibration" / "samples.npz"), model)
    for ours, theirs in zip(kept.feeds(), data_for(model, 40).feeds(), strict=True):
        np.testing.assert_array_equal(ours["x"], theirs["x"])


def test_each_failure_of_a_pass_has_its_folder(model: Model, tmp_path: Path) -> None:
    records = fail(model, tmp_path, breaking.Raises(), breaking.Raises(factor=3.0), breaking.Invalid())
    assert [Path(str(record.reproducer)).name for record in records] == ["raises", "raises-2", "invalid"]
    assert json.loads((tmp_path / "raises-2" / "reproducer.json").read_text())["pipeline"] == "raises(factor=3.0)"


@pytest.mark.usefixtures("_registered")
def test_a_later_failure_replaces_an_earlier_one_whole(model: Model, tmp_path: Path) -> None:
    fail(model, tmp_path, breaking.Invalid())
    fail(model, tmp_path, breaking.Invalid(), data=False)
    described = json.loads((tmp_path / "invalid" / "reproducer.json").read_text())
    assert (described["calibration_samples"], described["evaluation_samples"]) == (0, 0)
    assert not list(tmp_path.rglob("*.npz"))
    assert replay(tmp_path / "invalid").status == "rolled back"


def test_a_pass_over_the_budget_leaves_no_reproducer(model: Model, tmp_path: Path) -> None:
    evaluator = Evaluator(Model.from_proto(model.proto()), data_for(model))
    hooks = [Reproducer(tmp_path), Measure(evaluator, evaluator.evaluate(model), max_drop=0.0)]
    manager = PassManager(Pipeline([breaking.Scale(factor=1.2)]), hooks)
    (record,) = manager.run(model, Context(target=Target.parse("x86-avx2")))
    assert record.over_budget
    assert record.reproducer is None
    assert list(tmp_path.iterdir()) == []


def test_a_reproducer_that_cannot_be_written_is_a_warning(model: Model, tmp_path: Path) -> None:
    (tmp_path / "raises").write_text("in the way")
    with pytest.warns(OnnxcompWarning, match=r"raises: the reproducer cannot be written: File exists"):
        failed, scaled = fail(model, tmp_path, breaking.Raises(), breaking.Scale())
    assert failed.error == "this cannot be done"
    assert failed.reproducer is None
    assert scaled.status == "applied"


@pytest.mark.usefixtures("_registered")
def test_a_replay_that_passes_says_so(model: Model, tmp_path: Path) -> None:
    fail(model, tmp_path, breaking.Raises())
    path = tmp_path / "raises" / "reproducer.json"
    path.write_text(path.read_text().replace('"raises"', '"scale"'))
    assert replay(tmp_path / "raises").status == "applied"


def _edit(folder: Path, key: str, value: Any) -> None:
    path = folder / "reproducer.json"
    described = json.loads(path.read_text())
    if value is None:
        del described[key]
    else:
        described[key] = value
    path.write_text(json.dumps(described))


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "reproducer.json").unlink(), "reproducer.json cannot be read"),
        (lambda f: (f / "reproducer.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda f: (f / "reproducer.json").write_text('{"pipeline": "raises"'), "is damaged"),
        (lambda f: (f / "reproducer.json").write_text("[1]"), "is damaged"),
        (lambda f: _edit(f, "seed", None), "seed: is damaged: Field required"),
        (lambda f: _edit(f, "pipeline", 5), "pipeline: is damaged"),
        (lambda f: _edit(f, "threads", "many"), "threads: is damaged"),
        (lambda f: (f / "model.onnx").unlink(), r"model\.onnx: no such file"),
        (lambda f: (f / "model.onnx").write_bytes(b"\x08"), r"model\.onnx: is not an ONNX model"),
        (lambda f: (f / "calibration" / "samples.npz").unlink(), "calibration"),
        (lambda f: (f / "calibration" / "samples.npz").write_bytes(b"PK"), "calibration"),
        (lambda f: _edit(f, "evaluation_samples", 9), "evaluation: holds 5 samples of 9"),
    ],
)
def test_a_damaged_reproducer_is_one_sentence(model: Model, tmp_path: Path, damage: Any, message: str) -> None:
    fail(model, tmp_path, breaking.Raises())
    folder = tmp_path / "raises"
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        replay(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(("key", "value"), [("pipeline", "gone"), ("target", "abacus")])
def test_a_reproducer_from_elsewhere_names_what_is_unknown(model: Model, tmp_path: Path, key: str, value: str) -> None:
    fail(model, tmp_path, breaking.Raises())
    _edit(tmp_path / "raises", key, value)
    with pytest.raises(UsageError, match=value):
        replay(tmp_path / "raises")


def test_built_in_passes_leave_reproducers_too(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("folded the map")

    monkeypatch.setattr("onnxcomp.passes.fold.lift_constants", fails)
    (record,) = fail(model, tmp_path, Fold())
    assert record.error == replay(tmp_path / "fold").error == "folded the map"
