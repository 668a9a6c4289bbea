"""Run entries on a model: make, judge and time what they are asked for. Shared by the commands of this folder."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.entries import Entry, add_report, report_of
from harness.process import Limits, Outcome, on_cores, run
from harness.results import Environment, Row, Section, merge, ratio_of
from harness.zoo import MODELS, ZooModel

__all__ = [
    "Bench",
    "add_limits",
    "describe_environment",
    "models_asked",
    "names_of",
    "python",
    "say",
    "started",
    "told_arguments",
]

HERE = Path(__file__).resolve().parents[1]
JUDGING = Limits(seconds=1800, bytes=16e9)


@dataclass(frozen=True)
class Bench:
    """One invocation: what was asked for.

    Attributes:
        repeats, threads: of the timing.
        limits: of an entry's process.
        work: folder of everything that is made.
        command: that was typed.
        environment: where this runs.
        samples: calibration samples of the peers at most; None for their own number.
        unfused: run onnxcomp's results without ONNX Runtime's optimizations too.
        weights: count FLOPs, zeros, and bytes after packing.
        reuse: take peers' results as an earlier run has left them in ``work``.
        cores: that an entry's process may use; None for all.
    """

    repeats: int
    threads: int
    limits: Limits
    work: Path
    command: str
    environment: Environment
    samples: int | None = None
    unfused: bool = False
    weights: bool = False
    reuse: bool = False
    cores: int | None = None

    def within(self, folder: str) -> Bench:
        """The same with a folder of its own below ``work``."""
        return replace(self, work=self.work / folder)

    def section(self, model: ZooModel, entries: Iterable[Entry]) -> Section:
        """Compress, judge and time everything of one model."""
        (self.work / model.name).mkdir(parents=True, exist_ok=True)
        original = Row(name="fp32", tool="fp32", setting="the original", bytes=model.path.stat().st_size)
        about = self._judge(model, original, model.path)
        if original.failure is not None:
            raise SystemExit(f"{model.path}: the original cannot be judged: {original.failure}")
        files = {"fp32": model.path}
        rows = []
        for entry in entries:
            row, output = self.made_and_judged(model, entry)
            if row.failure is None:
                files[row.name] = output
            rows.append(row)
            say(f"{model.name}: {_told(row)}")
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

    def suite(
        self, name: str, model: ZooModel, entries: Iterable[Entry], sections: dict[str, Section], alone: bool
    ) -> None:
        """Put one model's section among the others; ``alone``: these rows, beside those of earlier runs."""
        entries = list(entries)
        if not entries:
            return
        start = time.perf_counter()
        part = self.within(name).section(model, entries)
        sections[model.name] = merge(sections.get(model.name), part) if alone else part
        say(f"{name}, {model.name}: {(time.perf_counter() - start) / 60:.1f} minutes")

    def made_and_judged(self, model: ZooModel, entry: Entry) -> tuple[Row, Path]:
        """An entry made and judged, not timed; of a peer, what an earlier run has left if that is wanted."""
        output = self.work / model.name / entry.name / "model.onnx"
        kept = output.parent.with_suffix(".row.json")
        if self.reuse and entry.pipeline is None and kept.is_file():
            return Row.model_validate_json(kept.read_text(encoding="utf-8")), output
        if self.reuse:
            shutil.rmtree(output.parent, ignore_errors=True)
            report_of(output).unlink(missing_ok=True)
        row = self._compress(model, entry, output)
        if row.failure is None:
            self._judge(model, row, output)
        kept.write_text(row.model_dump_json(exclude_none=True), encoding="utf-8")
        return row, output

    def _compress(self, model: ZooModel, entry: Entry, output: Path) -> Row:
        """Run an entry; the model's folder holds nothing else, so that its size is the model's."""
        output.parent.mkdir()
        log = output.parent.with_suffix(".log")
        command = [*([] if self.cores is None else on_cores(self.cores)), *entry.command(model, output, self.samples)]
        outcome = run(command, log, self.limits, cwd=HERE)
        row = entry.row()
        row.failure, row.seconds, row.peak_bytes = outcome.failure, outcome.seconds, outcome.peak_bytes
        add_report(row, output)
        if entry.training and entry.pipeline is None:
            row.recovery_seconds = _told_seconds(outcome.output)
        if row.failure is None and not output.is_file():
            row.failure = "no model was written"
        if row.failure is None:
            row.bytes = sum(path.stat().st_size for path in output.parent.rglob("*") if path.is_file())
        return row

    def _judge(self, model: ZooModel, row: Row, file: Path) -> dict[str, Any]:
        """Fill in the figures."""
        reference, log = self.work / model.name / "reference", self.work / model.name / f"{row.name}.judge.log"
        arguments = ["harness.accuracy", model.name, str(file), str(reference)]
        if report_of(file).is_file():
            arguments += ["--report", str(report_of(file))]
            arguments += ["--unfused"] if self.unfused else []
        outcome = python(arguments, log)
        if outcome.failure is not None:
            row.failure = f"its model does not run: {outcome.failure}"
            return {}
        judged: dict[str, Any] = json.loads(outcome.output)
        row.figures = {name: value for name, value in judged["figures"].items() if value is not None}
        for field in ("sqnr_db", "undecided", "agreement", "unfused_agreement", "integer_kernels", "float_layers"):
            setattr(row, field, judged[field])
        if self.weights:
            self._weigh(model, row, file)
        return judged

    def _weigh(self, model: ZooModel, row: Row, file: Path) -> None:
        """Fill in FLOPs, zeros, and bytes after packing."""
        folder = [] if row.name == "fp32" else ["--folder"]
        outcome = python(
            ["harness.weights", model.name, str(file), *folder], self.work / model.name / f"{row.name}.weights.log"
        )
        if outcome.failure is not None:
            row.failure = f"its weights cannot be counted: {outcome.failure}"
            return
        for field, found in json.loads(outcome.output).items():
            setattr(row, field, found)

    def _time(self, model: ZooModel, files: dict[str, Path], rows: dict[str, Row]) -> None:
        """Fill in the latencies: the original is timed twice, so that its row shows the noise."""
        log = self.work / model.name / "timing.log"
        paths = [files["fp32"], *files.values()]
        arguments = ["harness.timing", model.name, str(self.repeats), str(self.threads), *map(str, paths)]
        outcome = python(arguments, log)
        if outcome.failure is not None:
            say(f"{model.name}: timing failed: {outcome.failure}")
            return
        for feeds, (reference, *times) in json.loads(outcome.output).items():
            for name, seconds in zip(files, times, strict=True):
                ratio = ratio_of(reference, seconds)
                if rows[name].latency is None:  # the first feeds are the model's own samples
                    rows[name].latency = ratio
                    rows[name].milliseconds = 1e3 * statistics.median(seconds)
                else:
                    rows[name].latencies[feeds] = ratio


@contextlib.contextmanager
def started(
    options: argparse.Namespace,
    script: str,
    samples: int | None = None,
    unfused: bool = False,
    weights: bool = False,
    cores: int | None = None,
) -> Iterator[Bench]:
    """The invocation that ``add_limits`` parsed, with a folder that goes at the end unless one was named."""
    with tempfile.TemporaryDirectory(prefix="onnxcomp-bench-") as scratch:
        work = (options.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        yield Bench(
            repeats=options.repeats,
            threads=options.threads,
            limits=Limits(options.timeout, options.memory * 1e9),
            work=work,
            command=shlex.join(["python", f"benchmarks/{script}", *told_arguments(sys.argv[1:])]),
            environment=describe_environment(work),
            samples=samples,
            unfused=unfused,
            weights=weights,
            reuse=getattr(options, "reuse", False),
            cores=cores,
        )


def describe_environment(work: Path) -> Environment:
    """Found once, at the start: the results that are written later change the checkout."""
    outcome = python(["harness.environment"], work / "environment.log")
    if outcome.failure is not None:
        raise SystemExit(f"the environment cannot be described: {outcome.failure}")
    return Environment.model_validate_json(outcome.output)


def python(arguments: Sequence[str], log: Path, limits: Limits = JUDGING) -> Outcome:
    """Run a module of the harness in a process of its own."""
    return run([sys.executable, "-m", *arguments], log, limits, cwd=HERE)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
        return names

    return parse


def add_limits(parser: argparse.ArgumentParser, repeats: int, gigabytes: float, seconds: float = 300) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of timing; default: {repeats}")
    parser.add_argument("--threads", type=int, default=1, help="of what is timed; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=seconds, help=f"seconds for an entry; default: {seconds:g}")
    parser.add_argument("--memory", type=float, default=gigabytes, help=f"GB for an entry; default: {gigabytes:g}")
    parser.add_argument("--work", type=Path, help="keep what is made in this new folder")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the Markdown again")


def parsed_with_reuse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line of a benchmark that can also take what an earlier run made; ends the program when it names no
    such run."""
    parser.add_argument("--reuse", action="store_true", help="take peers' results that are in the folder of --work")
    options = parser.parse_args()
    if options.reuse and options.work is None:
        parser.error("--reuse needs the folder of an earlier run; name it with --work")
    return options


def models_asked(parser: argparse.ArgumentParser, names: Iterable[str]) -> list[ZooModel]:
    """The models of these names; ends the program when one is not in the cache."""
    models = [MODELS[name] for name in names]
    if missing := [model.name for model in models if not model.path.is_file()]:
        parser.error(f"not in the cache: {', '.join(missing)}; run python models/fetch.py {' '.join(missing)}")
    return models


def told_arguments(arguments: Sequence[str]) -> list[str]:
    """Those that make a difference to what is measured: no folder of this machine, and not what it was reused for."""
    told: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--reuse" and not argument.startswith("--work"):
            told.append(argument)
        skip = argument == "--work"
    return told


def _told_seconds(text: str) -> float | None:
    """What a peer says that its training took, see ``harness.peers.common.told_seconds``."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"seconds"')]
    return float(found[-1]["seconds"]) if found else None


def _told(row: Row) -> str:
    if row.failure is not None:
        return f"{row.name}: failed, {row.failure}"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in row.figures.items())
    return f"{row.name}: {figures}, {row.bytes:,} bytes, {row.seconds:.1f} s"
