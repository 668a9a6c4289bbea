"""What the command does: compress, plan, inspect, list passes, replay.

It prints; ``cli`` turns errors into exit codes.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from onnxcomp.compiler import compress, prepare_samples
from onnxcomp.data import Dataset
from onnxcomp.errors import InputError, PassError, UsageError
from onnxcomp.evaluate import metric_named
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.pipeline import Pipeline, recipe_names
from onnxcomp.registry import pass_class, pass_names
from onnxcomp.report.console import console, progress_bars
from onnxcomp.report.inspection import inspect, inspection_tables, inspection_text
from onnxcomp.report.manual import manual_page, pass_summary
from onnxcomp.report.schema import Report, Section
from onnxcomp.report.table import decisions, result_table, summary, table
from onnxcomp.report.timings import open_timings
from onnxcomp.reproduce import replay
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable

__all__ = ["Request", "compress_model", "inspect_model", "replay_failure", "show_passes", "show_plan"]


@dataclass(frozen=True)
class Request:
    """The command line; see ``onnxcomp --help``."""

    model: Path
    pipeline: str | None
    output: Path | None
    data: str | None
    test_data: str | None
    metric: str | None
    max_drop: float | None
    report: str | None
    seed: int
    threads: int
    target: str
    keep_order: bool
    timings: str | None
    quiet: bool

    @property
    def destination(self) -> Path:
        """The file to write: by default beside the model, and never the model itself."""
        return self.output or self.model.with_name(f"{self.model.stem}.compressed.onnx")

    @property
    def silent(self) -> bool:
        """Whether stdout is kept free of text for people."""
        return self.quiet or self.report == "-"


@dataclass(frozen=True)
class _Job:
    """A request whose every part was found to make sense, with its files open."""

    pipeline: Pipeline
    scheduled: Pipeline
    target: Target
    model: Model
    data: Dataset | None
    test_data: Dataset | None
    timings: TimingTable


def compress_model(request: Request) -> int:
    """Compress, print the table, write the report; 3 when a pass was rolled back."""
    job = _prepare(request)
    failures = request.destination.with_name(f"{request.destination.stem}.failed")
    with progress_bars(request.quiet) as progress, _clean_stdout(request):
        result = compress(
            job.model,
            job.pipeline,
            data=job.data,
            test_data=job.test_data,
            metric=request.metric,
            max_drop=request.max_drop,
            target=job.target,
            seed=request.seed,
            keep_order=request.keep_order,
            timings=job.timings,
            output=request.destination,
            reproducer_dir=failures,
            progress=progress,
            command=sys.argv,
        )
    _write_report(request, result.report)
    if not request.silent:
        out = console()
        out.print(result_table(result.report))
        for line in decisions(result.report):
            out.print(line)
        out.print(summary(result.report))
    return _conclude(request, result.report)


def show_plan(request: Request) -> int:
    """Print what would be done; write nothing."""
    if request.report is not None:
        raise UsageError("--report and --dry-run exclude each other: a dry run has nothing to report")
    job = _prepare(request)
    samples = prepare_samples(job.model, job.data, job.test_data, request.seed)
    out = console()
    out.print(f"model: {request.model}, {len(weighted_layers(job.model))} weighted layers")
    asked = {passed.name for passed in job.pipeline.passes}
    for number, passed in enumerate(job.scheduled.passes, 1):
        options = ", ".join(f"{name}={value!r}" for name, value in passed.model_dump().items())
        added = "" if passed.name in asked else " (required by another)"
        out.print(f"pass {number}: {passed.name}({options}){added}")
    for purpose, dataset in (("calibrate", samples.calibration), ("evaluate", samples.evaluation)):
        if dataset is None:
            out.print(f"{purpose} on: nothing")
        else:
            described = dataset.describe()
            out.print(f"{purpose} on: {described['source']}, {described['samples']} samples")
    out.print(f"would write: {request.destination}")
    return 0


def inspect_model(request: Request) -> int:
    """Print what is in the model, or write it as JSON."""
    _check_report(request)
    model = Model.load(request.model)
    feeds = None if request.data is None else Dataset.open(request.data, model).sample()
    found = inspect(model, feeds, request.threads, request.seed)
    _write_report(request, found)
    if not request.silent:
        out = console()
        for rows in inspection_tables(found):
            out.print(rows)
        for line in inspection_text(found):
            out.print(line)
    return 0


def show_passes(name: str | None) -> int:
    """Print the names of all passes, or the manual page of one."""
    out = console()
    if name is not None:
        for part in manual_page(pass_class(name)):
            out.print(part)
        return 0
    rows = table("pass", "stage", "what it does")
    for column in rows.columns:
        column.justify, column.no_wrap = "left", False
    for known in pass_names():
        cls = pass_class(known)
        rows.add_row(known, cls.stage.name.lower(), pass_summary(cls))
    out.print(rows)
    if recipes := recipe_names():
        out.print(f"recipes: {', '.join(recipes)}")
    return 0


def replay_failure(folder: Path, quiet: bool) -> int:
    """Run the pass of a reproducer again; 3 when it fails again."""
    with progress_bars(quiet) as progress:
        record = replay(folder, progress)
    if record.error is not None:
        raise PassError(f"{record.passed} fails again: {record.error}")
    if not quiet:
        console().print(f"{record.passed} passes now: {len(record.checks)} checks in {record.seconds:.1f} s")
    return 0


# -- before --------------------------------------------------------------------------------------------------


def _prepare(request: Request) -> _Job:
    """Check all that is cheap to check, cheapest first, before anything is computed."""
    assert request.pipeline is not None
    pipeline = Pipeline.parse(request.pipeline)
    scheduled = pipeline.scheduled(request.keep_order)
    target = Target.parse(request.target, request.threads)
    if request.max_drop is not None and not (math.isfinite(request.max_drop) and request.max_drop >= 0):
        raise UsageError(f"--max-drop {request.max_drop}: is no loss; give a number from 0 on")
    if request.max_drop is not None and request.data is None and request.test_data is None:
        raise UsageError("--max-drop needs samples to measure the loss on; give --data or --test-data")
    if request.metric is not None:
        metric_named(request.metric)
    _check_writable(request.destination)
    _check_report(request)
    if request.report not in (None, "-") and _same_file(Path(str(request.report)), request.destination):
        raise UsageError(f"{request.report}: cannot be both the report and the model; name two files")
    timings = open_timings(request.timings)
    model = Model.load(request.model)
    data = None if request.data is None else Dataset.open(request.data, model)
    test_data = None if request.test_data is None else Dataset.open(request.test_data, model)
    return _Job(pipeline, scheduled, target, model, data, test_data, timings)


def _check_report(request: Request) -> None:
    if request.report in (None, "-"):
        return
    path = Path(str(request.report))
    _check_writable(path)
    if _same_file(path, request.model):
        raise UsageError(f"{path}: is the model, which a report would replace; name another file")


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write")
    if not folder.exists():
        raise InputError(f"{path}: its folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise InputError(f"{path}: {folder} is no folder; name another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: its folder {folder} may not be written; name another place")


def _same_file(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


# -- after ---------------------------------------------------------------------------------------------------


def _clean_stdout(request: Request) -> AbstractContextManager[object]:
    """With ``--report -``, what the user's own metric prints must not mix with the JSON."""
    return contextlib.redirect_stdout(sys.stderr) if request.report == "-" else contextlib.nullcontext()


def _write_report(request: Request, document: Section) -> None:
    if request.report == "-":
        sys.stdout.write(document.to_json())
    elif request.report is not None:
        document.write(Path(request.report))


def _conclude(request: Request, report: Report) -> int:
    """Warnings, then what failed, on stderr; the exit code."""
    if not request.quiet:
        for warning in report.warnings:
            sys.stderr.write(f"onnxcomp: warning: {warning}\n")
    for failed in report.failed_passes:
        place = failed.verification.reproducer
        again = f" (repeat it with onnxcomp --replay {place})" if place else ""
        sys.stderr.write(f"onnxcomp: error: {failed.name} was undone: {failed.verification.error}{again}\n")
    if report.succeeded:
        return 0
    sys.stderr.write(f"onnxcomp: error: {request.destination} is the best attempt, not all that was asked for\n")
    return 3
