"""The command when all is well, and when a pass fails: files, report, exit code, what is printed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxcomp import registry
from onnxcomp.context import Context
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage
from onnxcomp.report.inspection import Inspection
from onnxcomp.report.schema import Report
from tests.command import Command

ALL = ("net.onnx", "-p", "prune(align=4),quant,reorder", "--data", "data.npz")


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds passes that do harm: ``crash``, ``corrupt`` and ``noise``."""
    for cls in (Crash, Corrupt, Noise):
        monkeypatch.setitem(registry._BUILT_IN, cls.name, f"{__name__}:{cls.__name__}")
    classes = {cls.name: cls for cls in (Crash, Corrupt, Noise)}
    known = registry.pass_class
    for module in ("registry", "pipeline", "actions"):
        monkeypatch.setattr(f"onnxcomp.{module}.pass_class", lambda name: classes.get(name) or known(name))


class Crash(Pass):
    """Raises."""

    name: ClassVar[str] = "crash"
    stage: ClassVar[Stage] = Stage.PRUNE

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        raise RuntimeError("out of luck")


class Corrupt(Pass):
    """Makes a model that does not run."""

    name: ClassVar[str] = "corrupt"
    stage: ClassVar[Stage] = Stage.PRUNE

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        model.graph.nodes[0].op = "Nope"


class Noise(Pass):
    """Puts noise in the place of all weights, which no checker sees."""

    name: ClassVar[str] = "noise"
    stage: ClassVar[Stage] = Stage.PRUNE

    def run(self, model: Model, ctx: Context) -> None:
        for tensor in model.graph.tensors().values():
            if hasattr(tensor, "values") and tensor.values.ndim > 1:
                tensor.values = ctx.rng().standard_normal(tensor.shape).astype(np.float32)


# -- compile -------------------------------------------------------------------------------------------------


def test_the_report_says_all_of_it_and_agrees_with_the_files(command: Command) -> None:
    document = command.report(*ALL, "-o", "small.onnx")
    report = Report.model_validate(document)
    assert json.loads(report.to_json()) == document
    before, after = (Path(name).read_bytes() for name in ("net.onnx", "small.onnx"))
    assert report.input.sha256 == hashlib.sha256(before).hexdigest()
    assert (report.input.bytes, report.result.bytes) == (len(before), len(after))
    assert report.result.size_ratio == pytest.approx(len(before) / len(after), rel=0.05)
    assert report.options.scheduled == "fold,prune(align=4),reorder,quant"
    assert [entry.name for entry in report.passes] == ["fold", "prune", "reorder", "quant"]
    layers = {"/conv0", "/conv2", "/gemm7"}
    for entry in report.passes:
        assert entry.verification.status == "passed"
        assert {decision.layer for decision in entry.decisions} == layers
        assert all(decision.action and decision.reason for decision in entry.decisions)
        assert entry.seconds >= 0
    assert report.passes[1].options["align"] == 4
    assert report.result.parameters < report.input.parameters
    assert report.result.flops < (report.input.flops or 0)
    assert report.result.output == "small.onnx"
    assert report.environment.onnxruntime == ort.__version__


def test_the_fields_that_others_rely_on_are_there(command: Command) -> None:
    report = command.report(*ALL)
    assert report["schema_version"] == 1
    assert {"input", "options", "environment", "passes", "result"} <= set(report)
    for entry in report["passes"]:
        assert {"name", "options", "seconds", "verification", "decisions"} <= set(entry)
        assert all(set(decision) == {"layer", "action", "reason"} for decision in entry["decisions"])
    result = report["result"]
    for name in ("bytes", "size_ratio", "parameters", "flops", "latency_ratio"):
        assert result[name] > 0
    assert {"original", "compressed"} <= set(result["metric"])
    assert {"sqnr_db", "top1_agreement"} <= set(result["fidelity"])
    low, high = result["latency_spread"]
    assert 0 < low <= result["latency_ratio"] <= high


def test_the_model_that_is_written_runs_and_is_what_was_measured(command: Command) -> None:
    report = command.report(*ALL, "--test-data", "data.npz")
    x = np.load("data.npz")["x"]
    first, second = (ort.InferenceSession(name).run(None, {"x": x})[0] for name in ("net.onnx", "net.compressed.onnx"))
    noise = np.sum((first - second) ** 2)
    sqnr = 10 * np.log10(np.sum(first**2) / noise)
    assert report["result"]["fidelity"]["sqnr_db"] == pytest.approx(sqnr, abs=0.1)
    agreement = np.mean(first.argmax(1) == second.argmax(1))
    assert report["result"]["fidelity"]["top1_agreement"] == pytest.approx(agreement)


def test_the_table_fits_80_columns_and_the_last_line_names_the_file(command: Command) -> None:
    lines = command.succeeds(*ALL, "-o", "small.onnx").out.splitlines()
    assert lines[0] == "passes: fold (required), prune(align=4), reorder, quant"
    head = next(index for index, line in enumerate(lines) if line.startswith("after"))
    rows = lines[head : head + 7]
    assert [row.split()[0] for row in rows[2:]] == ["original", "fold", "prune", "reorder", "quant"]
    assert max(map(len, rows)) <= 80
    assert lines[-2] == "written to small.onnx"
    assert not any(line != line.rstrip() for line in lines)


def test_a_pass_that_changes_nothing_is_shown_as_such(command: Command) -> None:
    command.succeeds("net.onnx", "-p", "fold", "-o", "folded.onnx")
    outcome = command.succeeds("folded.onnx", "-p", "fold")
    assert re.search(r"^fold( +=)+ +\d+\.\d s$", outcome.out, re.MULTILINE)
    assert "=: as in the row above" in outcome.out
    assert "fold: nothing to fold (3 layers)" in outcome.out


def test_a_report_on_stdout_stands_there_alone(command: Command) -> None:
    outcome = command.succeeds(*ALL, "--report", "-")
    assert Report.model_validate_json(outcome.out).result.output == "net.compressed.onnx"
    assert outcome.err == ""


def test_quiet_prints_nothing(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "-p", "fold", "-q")
    assert (outcome.out, outcome.err) == ("", "")
    assert Path("net.compressed.onnx").exists()


def test_without_data_the_measurements_are_on_a_random_input_and_that_is_said(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "-p", "fold")
    assert outcome.err == (
        "onnxcomp: warning: there is no data to evaluate on: fidelity and metric are measured on one random input\n"
    )


def test_the_same_command_gives_the_same_bytes(command: Command) -> None:
    for name in ("first.onnx", "second.onnx"):
        command.succeeds(*ALL, "--timings", "off", "-o", name)
    assert Path("first.onnx").read_bytes() == Path("second.onnx").read_bytes()


def test_a_recipe_is_a_pipeline(command: Command) -> None:
    Path("own.toml").write_text('[[pass]]\nname = "prune"\nalign = 4\n')
    report = command.report("net.onnx", "-p", "own.toml", "--data", "data.npz")
    assert report["options"]["scheduled"] == "fold,prune(align=4)"
    report = command.report("net.onnx", "-p", "int8", "--data", "data.npz")
    assert report["options"]["scheduled"] == "fold,quant"


def test_the_order_is_kept_when_asked(command: Command) -> None:
    report = command.report("net.onnx", "-p", "prune(align=4),quant", "--keep-order", "--data", "data.npz")
    assert [entry["name"] for entry in report["passes"]] == ["prune", "quant"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(command: Command) -> None:
    before = command.files()
    outcome = command.succeeds(*ALL, "--dry-run")
    assert command.files() == before
    assert "pass 1: fold(inline_functions=False) (required by another)\npass 2: prune(" in outcome.out
    assert "calibrate on: data.npz, 12 samples\nevaluate on: data.npz, 4 samples\n" in outcome.out
    assert outcome.out.endswith("would write: net.compressed.onnx\n")


def test_a_dry_run_tells_how_long_calibration_will_take(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "-p", "quant", "--data", "data.npz", "--dry-run")
    assert re.search(r"will take about \d+ s and \d+\.\d GB of memory\n", outcome.out)
    assert "will take" not in command.succeeds("net.onnx", "-p", "quant", "--dry-run").out, "next to nothing"


def test_quantizing_without_data_warns(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "-p", "quant")
    assert "onnxcomp: warning: quant has no calibration data: convolutions stay in float" in outcome.err


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crash", "crash was undone: out of luck"),
        ("corrupt", "corrupt was undone: corrupt made a model that onnx.checker refuses: "),
        ("noise", "noise was undone: noise: its outputs hold more error than signal (SQNR "),
    ],
)
def test_a_pass_that_fails_is_undone_and_can_be_replayed(command: Command, name: str, message: str) -> None:
    outcome = command("net.onnx", "-p", f"{name},quant", "--data", "data.npz", "--report", "report.json")
    assert outcome.code == 3
    error, *rest = outcome.err.splitlines()
    assert rest == []
    assert error.startswith(f"onnxcomp: error: {message}")
    folder = f"net.compressed.failed/{name}"
    assert error.endswith(f"; net.compressed.onnx is the model without it; to repeat it: onnxcomp --replay {folder}")
    assert re.search(rf"^{name} +undone( +=)+ +\d+\.\d s$", outcome.out, re.MULTILINE)
    report = Report.model_validate_json(Path("report.json").read_text())
    assert [entry.status for entry in report.passes] == ["applied", "rolled back", "applied"]
    assert report.passes[1].verification.reproducer == folder
    assert Path("net.compressed.onnx").stat().st_size == report.result.bytes
    assert f"{name} fails again: " in command.fails("--replay", folder, code=3)


def test_tracebacks_are_shown_when_asked(command: Command) -> None:
    outcome = command("gone.onnx", "--debug")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.endswith("onnxcomp: error: gone.onnx: no such file; give the path of an .onnx model\n")


@pytest.mark.usefixtures("breaking")
def test_a_failure_that_is_mended_replays_well(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("net.onnx", "-p", "crash")
    monkeypatch.setattr(Crash, "run", lambda *_: None)
    outcome = command.succeeds("--replay", "net.compressed.failed/crash")
    assert outcome.out.startswith("crash passes now: ")


def test_a_pass_that_costs_more_than_allowed_is_undone(command: Command) -> None:
    outcome = command(*ALL, "--metric", "cosine", "--max-drop", "0", "--report", "report.json")
    assert outcome.code == 3
    assert "prune was undone: after prune the metric cosine has dropped by" in outcome.err
    assert "--replay" not in outcome.err, "the pass did what it should, there is nothing to debug"
    report = json.loads(Path("report.json").read_text())
    assert report["result"]["budget_met"] is False
    assert report["result"]["metric"]["compressed"] == pytest.approx(1.0)


def test_a_budget_that_is_met_is_reported(command: Command) -> None:
    report = command.report(*ALL, "--metric", "cosine", "--max-drop", "1")
    assert report["result"]["budget_met"] is True
    assert report["options"]["max_drop"] == 1


# -- inspect, manual pages -----------------------------------------------------------------------------------


def test_inspection_shows_layers_time_and_what_passes_could_do(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "--target", "x86-avx2")
    assert re.match(r"net\.onnx: \d+\.\d kB, 5\.\d+ k parameters, \d+ k FLOPs a sample, opset 17", outcome.out)
    assert re.search(r"^/conv2 +Conv +32x16x3x3 +4\.\d+ k +\d+ k$", outcome.out, re.MULTILINE)
    assert re.search(r"^Conv +2 +\d\.\d{3} +\d+\.\d %$", outcome.out, re.MULTILINE)
    assert re.search(r"^fold +8 nodes become 7; weights of 1 of 3 layers are ", outcome.out, re.MULTILINE)
    assert re.search(r"^prune +at most 32 of 53 channels could go, in 2 of 3 groups", outcome.out, re.MULTILINE)
    assert re.search(r"^quant +3 of 3 layers could run on integer kernels$", outcome.out, re.MULTILINE)
    assert max(map(len, outcome.out.splitlines())) < 200


def test_inspection_as_json(command: Command) -> None:
    outcome = command.succeeds("net.onnx", "--report", "-")
    found = Inspection.model_validate_json(outcome.out)
    assert [(layer.name, layer.shape) for layer in found.layers if layer.shape] == [
        ("/conv0", [16, 3, 3, 3]),
        ("/conv2", [32, 16, 3, 3]),
        ("/gemm7", [5, 32]),
    ]
    assert sum(layer.parameters for layer in found.layers) == found.input.parameters
    passes = ["fold", "prune", "factorize", "reorder", "equalize", "share", "quant", "recover"]
    assert [entry.name for entry in found.prospects] == passes
    assert all(entry.ms > 0 for entry in found.operators)


def test_a_model_that_does_not_run_is_inspected_all_the_same(command: Command) -> None:
    proto = onnx.load("net.onnx")
    proto.graph.node[1].op_type = "Nope"
    onnx.save(proto, "odd.onnx")
    outcome = command.succeeds("odd.onnx")
    assert "/conv0" in outcome.out
    assert "no FLOPs and times: odd.onnx: ONNX Runtime cannot load it" in outcome.out


def test_every_pass_has_a_manual_page(command: Command) -> None:
    listed = command.succeeds("--passes").out
    for name in ("fold", "prune", "reorder", "equalize", "quant"):
        assert re.search(rf"^{name} +\w", listed, re.MULTILINE)
        page = command.succeeds("--passes", name).out
        assert page.startswith(f"{name}\n\n")
        assert all(option in page for option in registry.pass_class(name).model_fields)
        assert "``" not in page


def test_help_and_version(command: Command) -> None:
    assert "Usage: onnxcomp" in command.succeeds("--help").out
    assert re.fullmatch(r"onnxcomp \d+\.\d+\.\d+\S*\n", command.succeeds("--version").out)


def test_the_command_leaves_the_process_as_it_was(command: Command) -> None:
    before = os.getcwd(), dict(os.environ)
    command.succeeds("net.onnx", "-p", "fold")
    assert (os.getcwd(), dict(os.environ)) == before
