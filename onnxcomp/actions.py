"""What the command does: compress, plan, inspect, list passes, replay.

It prints; ``cli`` turns errors into exit codes.
"""

from __future__ import annotations

import contextlib
import math
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from onnxcomp.compiler import compress, prepare_samples
from onnxcomp.container.format import SUFFIX, has_suffix, is_packed
from onnxcomp.container.packing import pack
from onnxcomp.container.restoring import restore
from onnxcomp.data import Dataset
from onnxcomp.destinations import check_spared, check_weights_spared, check_writable, files_named
from onnxcomp.errors import InputError, PassError, UsageError
from onnxcomp.evaluate import metric_named
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passbase import Pass
from onnxcomp.pipeline import Pipeline, recipe_names
from onnxcomp.printable import printable
from onnxcomp.registry import pass_class, pass_names
from onnxcomp.report.console import Page, progress_bars
from onnxcomp.report.inspection import inspect, print_inspection
from onnxcomp.report.manual import pass_summary, print_manual
from onnxcomp.report.schema import Report, Section
from onnxcomp.report.table import decisions, legend, result_table, size, summary, table
from onnxcomp.report.timings import open_timings
from onnxcomp.reproduce import replay
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable

__all__ = [
    "Request",
    "compress_model",
    "convert_model",
    "inspect_model",
    "replay_failure",
    "show_passes",
    "show_plan",
    "silence_runtime",
]

_FATAL = 4


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
        return self.output or self.model.parent / f"{self.model.stem}.compressed.onnx"

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

    def is_required(self, passed: Pass) -> bool:
        """Whether the user did not ask for the pass: another one requires it."""
        return passed.name not in {asked.name for asked in self.pipeline.passes}


def silence_runtime() -> None:
    """Keep ONNX Runtime's log off stderr: what matters of it is raised as well."""
    onnxruntime.set_default_logger_severity(_FATAL)


def compress_model(request: Request) -> int:
    """Compress, print the table, write the report; 3 when a pass was rolled back."""
    job = _prepare(request)
    page = Page()
    if not request.silent:
        page.line(_order(job))
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
    try:
        _write_report(request, result.report)
    except InputError as error:
        raise InputError(f"{error} (the model was written to {request.destination})") from None
    if not request.silent:
        _print_result(page, result.report)
    return _conclude(request, result.report)


def _order(job: _Job) -> str:
    """The passes in the order they run in."""
    steps = (f"{passed} (required)" if job.is_required(passed) else str(passed) for passed in job.scheduled.passes)
    return f"passes: {', '.join(steps)}"


def _print_result(page: Page, report: Report) -> None:
    page.line()
    page.table(result_table(report))
    page.line()
    page.prose(legend(report), style="dim")
    page.line()
    for lines in (decisions(report), summary(report)):
        for line in lines:
            page.line(line)
        page.line()


def show_plan(request: Request) -> int:
    """Print what would be done; write nothing."""
    if request.report is not None:
        raise UsageError("--report and --dry-run exclude each other: a dry run has nothing to report")
    job = _prepare(request)
    samples = prepare_samples(job.model, job.data, job.test_data, request.seed)
    page = Page()
    page.line(f"model: {request.model}, {len(weighted_layers(job.model))} weighted layers")
    for number, passed in enumerate(job.scheduled.passes, 1):
        options = ", ".join(f"{name}={value!r}" for name, value in passed.model_dump().items())
        added = " (required by another)" if job.is_required(passed) else ""
        page.line(f"pass {number}: {passed.name}({options}){added}")
        if (effort := passed.effort(job.model, samples.calibration)) is not None:
            page.line(f"        will take {effort}")
    for purpose, dataset in (("calibrate", samples.calibration), ("evaluate", samples.evaluation)):
        if dataset is None:
            page.line(f"{purpose} on: {'one random input' if purpose == 'evaluate' else 'nothing'}")
        else:
            described = dataset.describe()
            page.line(f"{purpose} on: {described['source']}, {described['samples']} samples")
    page.line(f"would write: {request.destination}")
    return 0


def inspect_model(request: Request) -> int:
    """Print what is in the model, or write it as JSON."""
    _check_given(request)
    _check_report(request)
    target = Target.parse(request.target, request.threads)
    model = _load(request)
    feeds = None if request.data is None else Dataset.open(request.data, model).sample()
    with progress_bars(request.quiet) as progress:
        found = inspect(model, feeds, target, request.seed, progress)
    _write_report(request, found)
    if not request.silent:
        print_inspection(Page(), found)
    return 0


def convert_model(request: Request) -> int:
    """Pack a plain model, or restore a packed one, and say what came of it."""
    _check_given(request)
    source, destination = request.model, request.destination
    packed = is_packed(source)
    if packed == has_suffix(destination):
        wanted = "is packed already; give -o a name in .onnx" if packed else f"needs a pipeline or a name in {SUFFIX}"
        raise UsageError(f"--output {destination}: {source} {wanted}" if packed else f"--output {wanted}")
    check_writable(destination)
    check_spared(destination, "the result", _needed(request))
    if packed:
        before, after = source.stat().st_size, restore(source, destination)
    else:
        before = sum(path.stat().st_size for path in _load(request).files)
        after = pack(source, destination)
    if not request.silent:
        ratio = f", {before / after:.2f}x smaller" if after < before else ""
        Page().line(f"{source}: {size(before)} -> {destination}: {size(after)}{ratio}")
    return 0


def show_passes(name: str | None) -> int:
    """Print the names of all passes, or the manual page of one."""
    page = Page()
    if name is not None:
        print_manual(page, pass_class(name))
        return 0
    rows = table("pass", "what it does", text=("what it does",))
    for known in sorted(pass_names(), key=lambda known: pass_class(known).stage):
        cls = pass_class(known)
        rows.add_row(known, pass_summary(cls))
    page.table(rows, readable=True)
    page.line()
    if recipes := recipe_names():
        page.line(f"recipes: {', '.join(recipes)}")
    page.line("the manual page of a pass: onnxcomp --passes prune")
    return 0


def replay_failure(folder: Path, quiet: bool) -> int:
    """Run the pass of a reproducer again; 3 when it fails again."""
    with progress_bars(quiet) as progress:
        record = replay(folder, progress)
    if record.error is not None:
        raise PassError(f"{record.passed} fails again: {record.error}")
    if not quiet:
        Page().line(f"{record.passed} passes now: {len(record.checks)} checks in {record.seconds:.1f} s")
    return 0


# -- before --------------------------------------------------------------------------------------------------


def _prepare(request: Request) -> _Job:
    """Check all that is cheap to check, cheapest first, before anything is computed."""
    assert request.pipeline is not None
    _check_given(request)
    pipeline = Pipeline.parse(request.pipeline)
    scheduled = pipeline.scheduled(request.keep_order)
    target = Target.parse(request.target, request.threads)
    if request.max_drop is not None and not (math.isfinite(request.max_drop) and request.max_drop >= 0):
        raise UsageError(f"--max-drop {request.max_drop}: is no loss; give a number from 0 on")
    if request.max_drop is not None and request.data is None and request.test_data is None:
        raise UsageError("--max-drop needs samples to measure the loss on; give --data or --test-data")
    if request.metric is not None and math.isinf(metric_named(request.metric).perfect) and request.max_drop is not None:
        raise UsageError(f"--max-drop: {request.metric} has no largest value to drop from; use cosine or max_error")
    check_writable(request.destination)
    check_spared(request.destination, "the result", _needed(request))
    _check_report(request)
    timings = open_timings(request.timings)
    model = _load(request)
    data = None if request.data is None else Dataset.open(request.data, model)
    test_data = None if request.test_data is None else Dataset.open(request.test_data, model)
    return _Job(pipeline, scheduled, target, model, data, test_data, timings)


def _check_given(request: Request) -> None:
    """What is named must be there; the model first, as other messages build on its path."""
    for option in ("data", "test_data", "metric", "report", "timings"):
        if getattr(request, option) == "":
            raise UsageError(f"--{option.replace('_', '-')} is empty; name something or leave it out")
    if not request.model.exists() or request.model.is_dir():
        Model.load(request.model)  # says what is wrong with it


def _load(request: Request) -> Model:
    """The model; what is written must spare its external data too, which only the model names."""
    model = Model.load(request.model)
    if request.pipeline is not None or request.output is not None:
        check_weights_spared(request.destination, "the result", model)
    if request.report not in (None, "-"):
        check_weights_spared(Path(str(request.report)), "the report", model)
    return model


def _check_report(request: Request) -> None:
    if request.report in (None, "-"):
        return
    path = Path(str(request.report))
    check_writable(path)
    result = [("the result", request.destination)] if request.pipeline is not None else []
    check_spared(path, "the report", [*_needed(request), *result])


def _needed(request: Request) -> list[tuple[str, Path]]:
    """Files that the user named to be read."""
    named = {
        "the model": str(request.model),
        "the data": request.data,
        "the test data": request.test_data,
        "the metric": request.metric,
        "the recipe": request.pipeline,
        "the table of timings": request.timings,
    }
    return [(name, path) for name, text in named.items() for path in files_named(text or "")]


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
    """Warnings, and a sentence for each pass that failed, on stderr; the exit code."""
    if not request.quiet:
        for warning in report.warnings:
            sys.stderr.write(f"onnxcomp: warning: {printable(warning)}\n")
    for failed in report.failed_passes:
        place = failed.verification.reproducer
        again = f"; to repeat it: onnxcomp --replay {place}" if place else ""
        sys.stderr.write(
            f"onnxcomp: error: {failed.name} was undone: {printable(str(failed.verification.error))}; "
            f"{request.destination} is the model without it{again}\n"
        )
    return 0 if report.succeeded else 3
