"""Measure onnxcomp and its peers on the zoo, and write the tables.

    python benchmarks/run.py                              # fashion, mobilenetv2, ppocr_rec, minilm
    python benchmarks/run.py --models fashion --entries onnxcomp-quant,ort-minmax
    python benchmarks/run.py --render                     # the tables again, from the JSON

Every entry runs as a process of its own. Then all of a model's results are judged on its full test set, and
timed against the fp32 original in turn, in one process with one thread. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.collection import Collection
from harness.entries import ENTRIES, Entry, add_report, report_of
from harness.process import Limits, Outcome, run
from harness.render import render
from harness.results import Environment, Results, Row, Section, ratio_of
from harness.robustness import robustness
from harness.zoo import MODELS, ZooModel

HERE = Path(__file__).resolve().parent
SUITES = {"compile": ("fashion", "mobilenetv2", "ppocr_rec", "minilm"), "zoo": tuple(MODELS)}
JUDGING = Limits(seconds=1800, bytes=16e9)


@dataclass(frozen=True)
class Run:
    """One invocation: what was asked for."""

    entries: list[Entry]
    repeats: int
    threads: int
    limits: Limits
    work: Path
    command: str
    environment: Environment

    def section(self, model: ZooModel) -> Section:
        """Compress, judge and time everything of one model."""
        work = self.work / model.name
        work.mkdir(parents=True, exist_ok=True)
        original = Row(name="fp32", tool="fp32", setting="the original", bytes=model.path.stat().st_size)
        about = self._judge(model, original, model.path)
        if original.failure is not None:
            raise SystemExit(f"{model.path}: the original cannot be judged: {original.failure}")
        files = {"fp32": model.path}
        rows = []
        for entry in self.entries:
            row, output = self._compress(model, entry)
            if row.failure is None:
                self._judge(model, row, output)
            if row.failure is None:
                files[row.name] = output
            rows.append(row)
            _say(f"{model.name}: {_told(row)}")
        self._time(model, files, {row.name: row for row in (original, *rows)})
        return Section(
            model=model.name,
            file=model.file,
            date=time.strftime("%Y-%m-%d"),
            command=self.command,
            environment=self.environment,
            figures=[figure.name for figure in model.figures],
            samples=about["samples"],
            calibration_samples=about["calibration_samples"],
            rounds=self.repeats,
            threads=self.threads,
            original=original,
            rows=rows,
        )

    def _compress(self, model: ZooModel, entry: Entry) -> tuple[Row, Path]:
        """Run an entry; the model's folder holds nothing else, so that its size is the model's."""
        output = self.work / model.name / entry.name / "model.onnx"
        output.parent.mkdir()
        log = output.parent.with_suffix(".log")
        outcome = run(entry.command(model, output), log, self.limits, cwd=HERE)
        row = entry.row()
        row.failure, row.seconds, row.peak_bytes = outcome.failure, outcome.seconds, outcome.peak_bytes
        add_report(row, output)
        if row.failure is None and not output.is_file():
            row.failure = "no model was written"
        if row.failure is None:
            row.bytes = sum(path.stat().st_size for path in output.parent.rglob("*") if path.is_file())
        return row, output

    def _judge(self, model: ZooModel, row: Row, file: Path) -> dict[str, Any]:
        """Fill in the figures."""
        reference, log = self.work / model.name / "reference", self.work / model.name / f"{row.name}.judge.log"
        arguments = ["harness.accuracy", model.name, str(file), str(reference)]
        if report_of(file).is_file():
            arguments += ["--report", str(report_of(file))]
        outcome = _python(arguments, log)
        if outcome.failure is not None:
            row.failure = f"its model does not run: {outcome.failure}"
            return {}
        judged: dict[str, Any] = json.loads(outcome.output)
        row.figures = {name: value for name, value in judged["figures"].items() if value is not None}
        row.sqnr_db, row.undecided = judged["sqnr_db"], judged["undecided"]
        return judged

    def _time(self, model: ZooModel, files: dict[str, Path], rows: dict[str, Row]) -> None:
        """Fill in the latencies: the original is timed twice, so that its row shows the noise."""
        log = self.work / model.name / "timing.log"
        paths = [files["fp32"], *files.values()]
        arguments = ["harness.timing", model.name, str(self.repeats), str(self.threads), *map(str, paths)]
        outcome = _python(arguments, log)
        if outcome.failure is not None:
            _say(f"{model.name}: timing failed: {outcome.failure}")
            return
        reference, *times = json.loads(outcome.output)
        for name, seconds in zip(files, times, strict=True):
            rows[name].latency = ratio_of(reference, seconds)
            rows[name].milliseconds = 1e3 * statistics.median(seconds)


def _environment(work: Path) -> Environment:
    """Found once, at the start: the results that are written later change the checkout."""
    outcome = _python(["harness.environment"], work / "environment.log")
    if outcome.failure is not None:
        raise SystemExit(f"the environment cannot be described: {outcome.failure}")
    return Environment.model_validate_json(outcome.output)


def _python(arguments: list[str], log: Path) -> Outcome:
    return run([sys.executable, "-m", *arguments], log, JUDGING, cwd=HERE)


def _told(row: Row) -> str:
    if row.failure is not None:
        return f"{row.name}: failed, {row.failure}"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in row.figures.items())
    return f"{row.name}: {figures}, {row.bytes:,} bytes, {row.seconds:.1f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(known: dict[str, Any]) -> Any:
    """A parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
        return names

    return parse


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="compile", help="which models; default: compile")
    parser.add_argument("--models", type=_names(MODELS), help=f"instead of a suite, any of {', '.join(MODELS)}")
    parser.add_argument("--entries", type=_names(ENTRIES), default=list(ENTRIES), help="any of " + ", ".join(ENTRIES))
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="Markdown; the JSON goes beside it")
    parser.add_argument("--repeats", type=int, default=100, help="rounds of timing; default: 100")
    parser.add_argument("--threads", type=int, default=1, help="of the timed sessions; default: 1")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for an entry; default: 300")
    parser.add_argument("--memory", type=float, default=8, help="GB for an entry; default: 8")
    parser.add_argument("--work", type=Path, help="keep what is made in this new folder")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the Markdown again")
    options = parser.parse_args()
    stored = options.out.with_suffix(".json")
    results = Results.read(stored)
    if not options.render:
        models = [MODELS[name] for name in options.models or SUITES[options.suite]]
        if missing := [model.name for model in models if not model.path.is_file()]:
            parser.error(f"not in the cache: {', '.join(missing)}; run python models/fetch.py {' '.join(missing)}")
        with tempfile.TemporaryDirectory(prefix="onnxcomp-bench-") as scratch:
            work = (options.work or Path(scratch)).resolve()
            work.mkdir(parents=True, exist_ok=True)
            asked = Run(
                entries=[ENTRIES[name] for name in options.entries],
                repeats=options.repeats,
                threads=options.threads,
                limits=Limits(options.timeout, options.memory * 1e9),
                work=work,
                command=shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
                environment=_environment(work),
            )
            for model in models:
                results.sections[model.name] = asked.section(model)
                results.write(stored)
    options.out.write_text(
        render(results, Collection.read(HERE / "COLLECTION.json")) + robustness(options.out.parent), encoding="utf-8"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
