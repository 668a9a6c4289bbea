from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.entries import ENTRIES, FULL
from harness.process import Limits, reason, run
from harness.render import render
from harness.results import Environment, Ratio, Results, Row, Section, ratio_of
from harness.targets import check
from harness.zoo import MODELS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LIMITS = Limits(seconds=60, bytes=4e9)


def section(rows: list[Row], model: str = "fashion") -> Section:
    return Section(
        model=model,
        file="net.onnx",
        date="2025-01-01",
        command="python benchmarks/run.py",
        environment=Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"}),
        figures=["top-1"],
        samples={"top-1": 10_000},
        calibration_samples=512,
        rounds=3,
        threads=1,
        original=Row(name="fp32", tool="fp32", setting="the original", bytes=4_000_000, figures={"top-1": 0.94}),
        rows=rows,
    )


def full(**changes: object) -> Row:
    measured = {
        "seconds": 30.0,
        "peak_bytes": 500_000_000,
        "bytes": 800_000,
        "figures": {"top-1": 0.935},
        "latency": Ratio(median=2.5, low=2.4, high=2.6),
        "passes": 4,
        "verified": 4,
        "undecided": 0,
    }
    return ENTRIES[FULL].row().model_copy(update=measured | changes)


def cells(document: str, start: str) -> list[str]:
    line = next(line for line in document.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# -- statistics --------------------------------------------------------------------------------------------


def test_the_ratio_is_taken_round_by_round_so_that_a_disturbed_round_cancels() -> None:
    assert ratio_of([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Ratio(median=2.0, low=2.0, high=2.0)


def test_quartiles_are_of_the_ratios() -> None:
    assert ratio_of([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5) == Ratio(median=3.0, low=2.0, high=4.0)


@pytest.mark.parametrize(("original", "candidate"), [([], []), ([1.0], [1.0, 2.0])])
def test_times_of_different_rounds_are_refused(original: list[float], candidate: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        ratio_of(original, candidate)


# -- tables ------------------------------------------------------------------------------------------------


def test_a_row_tells_what_was_measured() -> None:
    document = render(Results(sections={"fashion": section([full(sqnr_db=23.84)])}))
    row = dict(zip(cells(document, "tool"), cells(document, "onnxcomp"), strict=True))
    assert row["top-1"] == "93.50 %"
    assert row["lost"] == "0.50"
    assert row["SQNR"] == "23.8 dB"
    assert (row["file"], row["smaller"]) == ("0.80 MB", "5.00x")
    assert row["speed (quartiles)"] == "2.50x (2.40 to 2.60)"
    assert (row["compile"], row["peak memory"]) == ("30.0 s", "500 MB")


def test_a_failed_entry_is_a_row_with_its_reason_that_cannot_break_the_table() -> None:
    failed = Row(name="peer", tool="peer", setting="static", failure="bad | input\nhere", seconds=1.0)
    document = render(Results(sections={"fashion": section([failed])}))
    (line,) = [line for line in document.splitlines() if line.startswith("| peer")]
    assert r"**failed**, bad \| input here" in line
    header = next(line for line in document.splitlines() if line.startswith("| tool"))
    assert line.replace(r"\|", "").count("|") == header.count("|")


def test_fewer_errors_are_a_gain() -> None:
    errors = "character errors"
    part = section([full(figures={errors: 0.01})], "ppocr_rec")
    part.figures, part.original.figures = [errors], {errors: 0.04}
    document = render(Results(sections={"ppocr_rec": part}))
    assert dict(zip(cells(document, "tool"), cells(document, "onnxcomp"), strict=True))["lost"] == "-3.00"


def test_results_survive_being_stored(tmp_path: Path) -> None:
    results = Results(sections={"fashion": section([full()])})
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    assert Results.read(tmp_path / "absent.json") == Results()


# -- targets -----------------------------------------------------------------------------------------------


def test_targets_that_are_reached_are_met_and_models_not_run_are_not_measured() -> None:
    targets = check(Results(sections={"fashion": section([full()])}))
    assert [target.met for target in targets] == [True] * 5 + [None] * 3
    assert targets[0].measured == "0.50 points"


@pytest.mark.parametrize(
    ("changes", "index", "miss"),
    [
        ({"figures": {"top-1": 0.925}}, 0, "0.50 points"),
        ({"bytes": 2_000_000}, 1, "2.00 x"),
        ({"latency": Ratio(median=1.5, low=1.0, high=2.5)}, 2, "0.50 x"),
        ({"seconds": 61.5}, 3, "1.50 s"),
        ({"peak_bytes": 1_200_000_000}, 4, "200.00 MB"),
    ],
)
def test_a_missed_target_says_by_how_much(changes: dict[str, object], index: int, miss: str) -> None:
    targets = check(Results(sections={"fashion": section([full(**changes)])}))
    assert [number for number, target in enumerate(targets) if target.met is False] == [index]
    assert targets[index].miss == miss


@pytest.mark.parametrize(
    "changes", [{"verified": 3}, {"undecided": 1}, {"failure": "exit code 3"}, {"passes": None, "verified": None}]
)
def test_the_unchanged_command_line_has_to_verify_and_decide_everything(changes: dict[str, object]) -> None:
    results = Results(sections={"minilm": section([full()], "minilm")})
    assert check(results)[-1].met
    results.sections["minilm"].rows = [full(**changes)]
    assert check(results)[-1].met is False


# -- processes ---------------------------------------------------------------------------------------------


def test_a_process_is_measured_by_itself(tmp_path: Path) -> None:
    """By a small process: what the one that starts it holds counts until the new program is loaded."""
    size = 300_000_000
    script = (
        "import json, sys; from pathlib import Path; from harness.process import Limits, run\n"
        "for code in sys.argv[2:]:\n"
        "    outcome = run([sys.executable, '-c', code], Path(sys.argv[1]), Limits(60, 4e9))\n"
        "    print(json.dumps(vars(outcome)))"
    )
    codes = [f"b = bytearray(b'x') * {size}; print(len(b))", "print(1)"]
    command = [sys.executable, "-c", script, str(tmp_path / "log"), *codes]
    done = subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, text=True)
    large, small = map(json.loads, done.stdout.splitlines())
    assert (large["failure"], large["output"].strip()) == (None, str(size))
    assert large["peak_bytes"] > size > small["peak_bytes"]
    assert 0 < small["seconds"] < LIMITS.seconds


def test_a_failing_process_gives_its_last_line_as_the_reason(tmp_path: Path) -> None:
    outcome = run([sys.executable, "-c", "import json; json.loads('{')"], tmp_path / "log", LIMITS)
    assert outcome.code == 1
    assert outcome.failure is not None
    assert outcome.failure.startswith("JSONDecodeError: Expecting property name")


@pytest.mark.parametrize(
    ("code", "limits", "expected"),
    [
        ("import time; time.sleep(60)", Limits(0.5, 4e9), "stopped after 0.5 s"),
        ("b = bytearray(b'x') * 10**9; import time; time.sleep(60)", Limits(60, 5e8), "stopped at 0.5 GB of memory"),
    ],
)
def test_a_process_over_a_limit_is_stopped(code: str, limits: Limits, expected: str, tmp_path: Path) -> None:
    outcome = run([sys.executable, "-c", code], tmp_path / "log", limits)
    assert outcome.failure == expected
    assert outcome.seconds < 30


def test_reasons_are_short_and_say_when_a_signal_ended_it() -> None:
    assert reason("", -11) == "ended by SIGSEGV"
    assert reason("", 3) == "exit code 3"
    assert len(reason("x" * 1000, 1)) <= 110


# -- entries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_reads_the_same_model_and_data(name: str, tmp_path: Path) -> None:
    model = MODELS["fashion"]
    command = ENTRIES[name].command(model, tmp_path / "out" / "model.onnx")
    assert {str(model.path), str(model.data), str(tmp_path / "out" / "model.onnx")} <= set(command)


def test_every_metric_exists() -> None:
    for model in MODELS.values():
        for figure in model.figures:
            if ".py:" in figure.metric:
                file, _, function = figure.metric.rpartition(":")
                assert f"def {function}(" in Path(file).read_text(encoding="utf-8")
