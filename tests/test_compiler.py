"""A whole compilation: the report tells of the files as they are, the input stays, and bytes repeat."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import Dataset, Model, Pipeline, Result, Target, compress, recorder
from onnxcomp.compiler import prepare_samples
from onnxcomp.errors import InputError, UsageError
from onnxcomp.evaluate import Evaluator
from onnxcomp.graph.cost import cost
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.report.schema import Report
from onnxcomp.runtime import session, shapes
from tests import breaking
from tests.generate import Net

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).parents[1]
FASHION = ROOT / "models" / "fashion_resnet.onnx"


@pytest.fixture(autouse=True)
def _brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_SECONDS_A_PASS", 0.02)
    monkeypatch.setattr(recorder, "_SECONDS_AT_END", 0.05)


@pytest.fixture(scope="module")
def net() -> Net:
    """A small residual classifier with batch normalization."""
    net = Net(shape=(3, 8, 8))
    x = net.activation(net.batch_norm(net.conv("x", 32)))
    x = net.add(x, net.conv(net.activation(net.conv(x, 64)), 32))
    net.matmul(net.flatten(net.node("GlobalAveragePool", net.activation(x)), positions=1), 5, bias=False)
    return net


@pytest.fixture(scope="module")
def samples(net: Net) -> dict[str, Array]:
    """Inputs, and labels that the model gives."""
    feeds = net.feeds(samples=48)
    scores = next(iter(session.run(session.create(net.proto()), feeds).values()))
    return {**feeds, "labels": scores.argmax(axis=1)}


@pytest.fixture
def files(net: Net, samples: dict[str, Array], tmp_path: Path) -> tuple[Path, Path]:
    """The model and its data, as files."""
    model, data = tmp_path / "net.onnx", tmp_path / "samples.npz"
    model.write_bytes(net.proto().SerializeToString())
    np.savez(data, **samples)
    return model, data


def check_report(result: Result, source: Path, made: Path) -> None:
    """Whatever the report says of files and layers is so."""
    report = result.report
    assert report.input.bytes == source.stat().st_size
    assert report.result.bytes == made.stat().st_size == report.passes[-1].bytes
    assert report.result.size_ratio == pytest.approx(source.stat().st_size / made.stat().st_size)
    written = Model.load(made)
    assert written.serialize() == result.model.serialize()
    onnx.checker.check_model(onnx.load(made), full_check=True)
    sample = {value.name: np.zeros([1, *value.shape[1:]], np.float32) for value in written.graph.inputs}
    for path, described in ((source, report.input), (made, report.result)):
        model = Model.load(path)
        found = cost(model, shapes.observed(model, sample))
        assert (described.parameters, described.flops) == (found.parameters, found.flops)
    for entry in report.passes:
        assert entry.verification.status == ("failed" if entry.status == "rolled back" else "passed")
        assert all(decision.reason or decision.action != "skipped" for decision in entry.decisions)
    layers = {layer.name for layer in weighted_layers(Model.load(source))}
    decided = {decision.layer for decision in report.passes[0].decisions}
    assert decided >= layers
    assert Report.model_validate_json(report.to_json()) == report


def test_the_main_use(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    before = model.read_bytes()
    made = tmp_path / "small.onnx"
    result = compress(model, "prune,quant,reorder", data=str(data), output=made, target=Target.parse("x86-avx2"))
    check_report(result, model, made)
    report = result.report
    assert [entry.name for entry in report.passes] == ["fold", "prune", "reorder", "quant"]
    assert (report.options.pipeline, report.options.scheduled) == ("prune,quant,reorder", "fold,prune,reorder,quant")
    assert report.succeeded
    assert not report.warnings
    assert model.read_bytes() == before
    assert report.result.parameters < report.input.parameters
    assert report.result.size_ratio > 1.5
    assert report.result.metric is not None
    assert report.result.metric.name == "top1"
    assert report.result.metric.original == 1.0
    assert (report.data.calibration.samples, report.data.evaluation.samples) == (36, 12)
    assert report.result.latency_ratio is not None
    assert report.result.latency_ratio > 0


def test_the_figures_are_those_of_the_written_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Measured again, from the files alone."""
    model, data = files
    made = tmp_path / "small.onnx"
    result = compress(
        model, "quant(samples=8)", data=str(data), test_data=str(data), metric="top1", timings="off", output=made
    )
    dataset = Dataset.open(str(data), Model.load(model))
    again = Evaluator(Model.load(model), dataset).evaluate(Model.load(made))
    told = result.report.result
    assert told.metric is not None
    assert (told.metric.original, told.metric.compressed) == (again.metric_original, again.metric_compressed)
    assert told.metric.samples == again.samples == 48
    assert told.fidelity.sqnr_db == pytest.approx(again.fidelity.sqnr_db, rel=1e-6)
    assert result.report.passes[-1].fidelity == told.fidelity


@pytest.mark.zoo
@pytest.mark.skipif(not FASHION.exists(), reason="the committed model is absent")
def test_the_committed_model(tmp_path: Path) -> None:
    made, model = tmp_path / "small.onnx", Model.load(FASHION)
    calibration, test = (
        Dataset.open(str(ROOT / "models" / f"fashion_{part}.npz"), model).take(count)
        for part, count in (("calibration", 16), ("test", 250))
    )
    result = compress(model, "prune,quant,reorder", data=calibration, test_data=test, output=made)
    check_report(result, FASHION, made)
    told = result.report.result
    assert result.report.succeeded
    assert told.size_ratio >= 4
    assert told.metric is not None
    assert told.metric.original - told.metric.compressed <= 0.03


# -- determinism ---------------------------------------------------------------------------------------------


def test_the_same_input_and_seed_give_the_same_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """With no measured time to decide by."""
    pipeline = "prune,quant,reorder(starts=2)"
    model, data = files
    made = [tmp_path / f"{run}.onnx" for run in range(2)]
    reports = [compress(model, pipeline, data=str(data), output=path, seed=7, timings="off").report for path in made]
    assert made[0].read_bytes() == made[1].read_bytes()
    first, second = ([entry.decisions for entry in report.passes] for report in reports)
    assert first == second


def test_a_path_and_a_model_give_the_same(files: tuple[Path, Path], samples: dict[str, Array]) -> None:
    model, data = files
    loaded = Model.load(model)
    before = loaded.serialize()
    arrays = {name: array for name, array in samples.items() if name != "labels"}
    dataset = Dataset.from_arrays(arrays, labels=samples["labels"], model=loaded)
    by_path = compress(model, "quant", data=str(data), timings="off").model.serialize()
    by_object = compress(loaded, [*Pipeline.parse("quant").passes], data=dataset, timings="off").model.serialize()
    assert by_path == by_object
    assert loaded.serialize() == before


# -- failures ------------------------------------------------------------------------------------------------


def test_a_failing_pass_is_reported_and_the_rest_is_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    made, failed = tmp_path / "small.onnx", tmp_path / "failed"
    passes = [*Pipeline.parse("fold").passes, breaking.Raises()]
    result = compress(model, passes, data=str(data), output=made, reproducer_dir=failed)
    check_report(result, model, made)
    assert not result.report.succeeded
    (undone,) = result.report.failed_passes
    assert undone.name == "raises"
    assert undone.verification.error == "this cannot be done"
    assert undone.verification.reproducer == str(failed / "raises")
    assert undone.bytes == result.report.result.bytes < result.report.input.bytes
    assert (failed / "raises" / "evaluation" / "samples.npz").exists()


def test_the_budget_is_kept(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = files
    made = tmp_path / "small.onnx"
    passes = [breaking.Scale(factor=1.001), breaking.Scale(factor=1.1)]
    result = compress(model, passes, data=str(data), metric="cosine", max_drop=0.0001, output=made)
    check_report(result, model, made)
    assert [entry.status for entry in result.report.passes] == ["applied", "rolled back"]
    assert result.report.result.budget_met is False
    metric = result.report.result.metric
    assert metric is not None
    assert metric.original - metric.compressed <= 0.0001


def test_a_budget_that_holds_is_met(files: tuple[Path, Path]) -> None:
    model, data = files
    result = compress(model, "fold", data=str(data), metric="cosine", max_drop=1e-6)
    assert result.report.result.budget_met is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": -0.1}, r"max_drop=-0\.1 is no loss"),
        ({"max_drop": math.nan}, "max_drop=nan is no loss"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"pipeline": "prunes"}, "there is no pass 'prunes'"),
        ({"pipeline": []}, "the pipeline is empty"),
        ({"pipeline": "quant,prune", "keep_order": True}, "prune cannot follow quant"),
        ({"metric": "accuracy"}, "unknown metric 'accuracy'"),
        ({"data": "gone.npz"}, r"gone\.npz: no such file"),
        ({"model": "gone.onnx"}, r"gone\.onnx: no such file"),
        ({"output": "gone/small.onnx"}, "its folder gone does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused(files: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    model, data = files
    given = {"model": model, "pipeline": "fold", "data": str(data), **options}
    with pytest.raises((UsageError, InputError), match=message):
        compress(**given)


def test_an_output_that_fails_leaves_the_old_file(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model may be compressed in its own place; until the end, it stands."""
    model, data = files
    before = model.read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder.Recorder, "final", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress(model, "fold", data=str(data), output=model)
    assert model.read_bytes() == before
    assert sorted(path.name for path in model.parent.iterdir()) == ["net.onnx", "samples.npz"]


def test_a_model_can_be_compressed_in_place(files: tuple[Path, Path]) -> None:
    model, data = files
    before = model.stat().st_size
    report = compress(model, "quant", data=str(data), timings="off", output=model).report
    assert report.input.bytes == before
    assert report.result.bytes == model.stat().st_size < before


# -- samples -------------------------------------------------------------------------------------------------


def test_without_data_one_random_input_is_measured_on(files: tuple[Path, Path]) -> None:
    result = compress(files[0], "reorder")
    assert result.report.warnings == [
        "there is no data to evaluate on: fidelity and metric are measured on one random input"
    ]
    assert result.report.result.metric is not None
    assert result.report.result.metric.samples == 1


@pytest.mark.parametrize(("count", "parts", "held_out"), [(48, (36, 12), True), (8, (6, 2), True), (7, (7, 7), False)])
def test_a_quarter_is_held_out_when_there_is_enough(
    net: Net, count: int, parts: tuple[int, int], held_out: bool
) -> None:
    data = Dataset.from_arrays(net.feeds(samples=count), model=net.model())
    found = prepare_samples(net.model(), data, None, seed=0)
    assert found.calibration is not None
    assert found.evaluation is not None
    assert (len(found.calibration), len(found.evaluation), found.held_out) == (*parts, held_out)


def test_test_data_alone_is_evaluated_on(files: tuple[Path, Path]) -> None:
    model, data = files
    report = compress(model, "fold", test_data=str(data)).report
    assert report.data.calibration is None
    assert report.data.evaluation is not None
    assert report.data.evaluation.samples == 48


def test_a_metric_may_be_a_function(files: tuple[Path, Path]) -> None:
    def error_rate(outputs: list[dict[str, Any]], labels: Array | None) -> float:
        scores = np.concatenate([next(iter(batch.values())) for batch in outputs])
        return float(np.mean(scores.argmax(axis=1) != labels))

    vars(error_rate)["higher_is_better"] = False
    model, data = files
    metric = compress(model, "fold", data=str(data), metric=error_rate, max_drop=0.0).report.result.metric
    assert metric is not None
    assert (metric.name, metric.original, metric.compressed, metric.higher_is_better) == ("error_rate", 0, 0, False)


def test_a_target_may_be_given_by_name(net: Net) -> None:
    report = compress(net.model(), "fold", target="x86-avx2", timings="off").report
    assert report.options.target == "x86-avx2"
    with pytest.raises(UsageError, match="z80"):
        compress(net.model(), "fold", target="z80")
