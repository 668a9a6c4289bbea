"""A whole compilation: load, schedule, run, verify, evaluate, time, report."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.container.format import has_suffix
from onnxcomp.container.packing import pack_model
from onnxcomp.context import Context, Progress, silent
from onnxcomp.data import Dataset
from onnxcomp.destinations import check_weights_spared
from onnxcomp.errors import UsageError
from onnxcomp.evaluate import Evaluation, Evaluator, Metric, metric_named
from onnxcomp.fidelity import Fidelity
from onnxcomp.hooks import Measure, Timing, Verify
from onnxcomp.manager import Hook, PassManager, PassRecord
from onnxcomp.model import Model
from onnxcomp.passbase import Pass
from onnxcomp.pipeline import Pipeline
from onnxcomp.recorder import Recorder
from onnxcomp.report import schema
from onnxcomp.report.environment import describe_environment, describe_input, peak_memory
from onnxcomp.report.timings import open_timings
from onnxcomp.reproduce import Reproducer
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable
from onnxcomp.version import installed_version

__all__ = ["Result", "Samples", "compress", "prepare_samples"]

Feeds = Mapping[str, Any]

_HELD_OUT = 0.25  # of the data, when there is no other to evaluate on
_LEAST_SPLIT = 8  # samples; fewer serve both purposes, and the report says so


@dataclass(frozen=True)
class Result:
    """What a compilation made.

    Attributes:
        model: the compressed model, written only where an output was named.
        report: what was done and measured.
    """

    model: Model
    report: schema.Report


@dataclass(frozen=True)
class Samples:
    """What is calibrated on, and what is evaluated on.

    Attributes:
        held_out: no sample of the evaluation is a calibration sample.
        probe: one feed, for shapes, verification and time.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    held_out: bool
    probe: Feeds


def compress(
    model: Model | str | os.PathLike[str],
    pipeline: Pipeline | str | Sequence[Pass],
    *,
    data: Dataset | str | None = None,
    test_data: Dataset | str | None = None,
    metric: str | Callable[..., float] | None = None,
    max_drop: float | None = None,
    target: Target | str | None = None,
    seed: int = 0,
    keep_order: bool = False,
    timings: TimingTable | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    reproducer_dir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    command: Sequence[str] = (),
) -> Result:
    """Compress a model and measure what that did to it.

    Example::

        result = compress("net.onnx", "prune,quant", data="calibration.npz", output="small.onnx")
        print(result.report.result.size_ratio)

    Args:
        model: a path, or a model (which is not changed).
        pipeline: its text, a recipe, or passes.
        data: calibration samples (see ``Dataset.open``). A quarter is held out to evaluate on unless
            ``test_data`` is given.
        test_data: samples to evaluate on.
        metric: a built-in name, ``module:function`` or a function (see ``evaluate.Metric``).
        max_drop: largest allowed loss of the metric; a pass that exceeds it is rolled back.
        target: the machine the result is for, or its name; default: this one, one thread.
        seed: of every random choice.
        keep_order: run the passes as they stand.
        timings: measured time that decides: ``off``, the report of an earlier run (then the same input gives
            the same bytes), or a table; default: everything is measured.
        output: file to write.
        reproducer_dir: folder for reproducers of failed passes; default: none are written.
        progress: shows how far long loops are.
        command: command line, for the report.

    Raises:
        UsageError, InputError: something given does not make sense or cannot be used; nothing is written.
    """
    start = time.perf_counter()
    _check_numbers(max_drop, seed)
    asked = _pipeline(pipeline)
    scheduled = asked.scheduled(keep_order)
    target = Target.parse(target) if isinstance(target, str) else target or Target.host()
    table = timings if isinstance(timings, TimingTable) else open_timings(timings)
    original = model if isinstance(model, Model) else Model.load(model)
    if output is not None:
        check_weights_spared(Path(output), "the result", original)
    samples = prepare_samples(original, data, test_data, seed)
    evaluator = Evaluator(original, samples.evaluation or Dataset.from_feeds([samples.probe]), _metric(metric))
    before = evaluator.evaluate(original)
    recorder, measure = Recorder(original, samples.probe, target), Measure(evaluator, before, max_drop)
    hooks: list[Hook] = [] if reproducer_dir is None else [Reproducer(Path(reproducer_dir), samples.evaluation)]
    verify = Verify(original, [samples.probe])
    hooks += [recorder, measure, verify, Timing()]
    ctx = Context(
        target=target, data=samples.calibration, seed=seed, original=original, progress=progress, timings=table
    )
    work = original.copy()
    records = PassManager(scheduled, hooks).run(work, ctx)
    report = schema.Report(
        input=describe_input(original, recorder.original_cost.parameters, recorder.original_cost.flops),
        options=schema.Options(
            pipeline=str(asked),
            scheduled=str(scheduled),
            data=_source(data),
            test_data=_source(test_data),
            metric=None if metric is None else str(getattr(metric, "__name__", metric)),
            max_drop=max_drop,
            seed=seed,
            threads=target.threads,
            target=target.name,
            keep_order=keep_order,
            timings=table.source,
        ),
        environment=describe_environment(target, command),
        data=_data(samples),
        passes=[_pass_report(record) for record in records],
        timings=[schema.Timing(**entry.describe()) for entry in table.used],
        result=_result(recorder, work, measure.latest, records, max_drop, output),
        warnings=[*ctx.warnings, *verify.doubts, *_warnings(samples, table)],
    )
    if output is not None:
        # Last: it may replace the original, and an interruption before it leaves no trace.
        report.result.packed_bytes = _write(work, Path(output), report.options)
    report.result.seconds = time.perf_counter() - start
    return Result(work, report)


def prepare_samples(model: Model, data: Dataset | str | None, test_data: Dataset | str | None, seed: int) -> Samples:
    """Open the sources and decide what is calibrated on and what is evaluated on.

    Raises:
        InputError: a source cannot be used.
    """
    calibration = Dataset.open(data, model) if isinstance(data, str) else data
    evaluation = Dataset.open(test_data, model) if isinstance(test_data, str) else test_data
    held_out = evaluation is not None
    if calibration is not None and evaluation is None:
        if len(calibration) >= _LEAST_SPLIT:
            calibration, evaluation = calibration.split(1 - _HELD_OUT)
            held_out = True
        else:
            evaluation = calibration
    known = evaluation if evaluation is not None else calibration
    probe = known.sample() if known is not None else made_up.synthetic(model, seed)
    return Samples(calibration, evaluation, held_out, probe)


def _write(model: Model, output: Path, options: schema.Options) -> int | None:
    """Write the result; returns the bytes of a packed one."""
    if not has_suffix(output):
        model.save(output)
        return None
    recipe = {"onnxcomp": installed_version(), "pipeline": options.scheduled, "seed": options.seed}
    return pack_model(model, output, recipe)


def _check_numbers(max_drop: float | None, seed: int) -> None:
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"max_drop={max_drop} is no loss; give a number from 0 on")
    if seed < 0:
        raise UsageError(f"seed={seed} is not allowed; give a number from 0 on")


def _pipeline(pipeline: Pipeline | str | Sequence[Pass]) -> Pipeline:
    if isinstance(pipeline, Pipeline):
        return pipeline
    return Pipeline.parse(pipeline) if isinstance(pipeline, str) else Pipeline(pipeline)


def _metric(metric: str | Callable[..., float] | None) -> Metric | None:
    if metric is None or isinstance(metric, str):
        return None if metric is None else metric_named(metric)
    better = bool(getattr(metric, "higher_is_better", True))
    return Metric(getattr(metric, "__name__", "metric"), of_outputs=metric, higher_is_better=better)


# -- the report --------------------------------------------------------------------------------------------


def _source(data: Dataset | str | None) -> str | None:
    return data if data is None or isinstance(data, str) else str(data.describe()["source"])


def _data(samples: Samples) -> schema.Data:
    def described(dataset: Dataset | None) -> schema.Samples | None:
        return None if dataset is None else schema.Samples(**dataset.describe())

    return schema.Data(
        calibration=described(samples.calibration),
        evaluation=described(samples.evaluation),
        held_out=samples.held_out,
    )


def _warnings(samples: Samples, timings: TimingTable) -> list[str]:
    warnings = []
    if samples.evaluation is None:
        warnings.append("there is no data to evaluate on: fidelity and metric are measured on one random input")
    elif not samples.held_out:
        warnings.append("evaluated on the calibration samples, which are too few to hold some out")
    if timings.incomplete:
        warnings.append(f"{timings.measured} timings were not in {timings.source} and were measured: bytes may differ")
    return warnings


def _fidelity(fidelity: Fidelity) -> schema.Fidelity:
    described = fidelity.describe()
    return schema.Fidelity(**{name: described[name] for name in schema.Fidelity.model_fields})


def _pass_report(record: PassRecord) -> schema.PassReport:
    return schema.PassReport(
        name=record.passed.name,
        options=record.passed.options(),
        status=record.status,
        seconds=record.seconds,
        verification=schema.Verification(
            status="passed" if record.error is None else "failed",
            checks=[schema.Check(**vars(check)) for check in record.checks],
            error=record.error,
            reproducer=record.reproducer,
        ),
        decisions=[schema.Decision(**vars(decision)) for decision in record.decisions],
        bytes=record.size,
        parameters=record.parameters,
        flops=record.flops,
        fidelity=None if record.fidelity is None else _fidelity(record.fidelity),
        metric=record.metric,
        latency_ratio=record.latency_ratio,
    )


def _result(
    recorder: Recorder,
    model: Model,
    evaluation: Evaluation,
    records: Sequence[PassRecord],
    max_drop: float | None,
    output: str | os.PathLike[str] | None,
) -> schema.Result:
    timed = recorder.final(model)
    over_budget = any(record.over_budget for record in records)
    return schema.Result(
        output=None if output is None else str(output),
        bytes=recorder.size,
        size_ratio=recorder.original_size / recorder.size,
        parameters=recorder.cost.parameters,
        flops=recorder.cost.flops,
        metric=schema.Metric(
            name=evaluation.metric,
            original=evaluation.metric_original,
            compressed=evaluation.metric_compressed,
            samples=evaluation.samples,
            higher_is_better=evaluation.higher_is_better,
        ),
        budget_met=None if max_drop is None else not over_budget,
        fidelity=_fidelity(evaluation.fidelity),
        latency_ratio=None if timed is None else timed.ratio,
        latency_spread=None if timed is None else (timed.low, timed.high),
        seconds=0.0,
        peak_memory_bytes=peak_memory(),
    )
