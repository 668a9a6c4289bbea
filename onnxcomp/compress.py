"""A whole compilation: load, schedule, run, verify, evaluate, time, report."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.context import Context, Progress, silent
from onnxcomp.data import Dataset
from onnxcomp.errors import InputError
from onnxcomp.evaluate import Evaluation, Evaluator, Metric, metric_named
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.hooks import Budget, Measure, Timing, Verify
from onnxcomp.manager import Hook, PassManager, PassRecord, Step
from onnxcomp.model import Model
from onnxcomp.passbase import Pass
from onnxcomp.pipeline import Pipeline
from onnxcomp.report import build
from onnxcomp.report.schema import Report
from onnxcomp.reproduce import Reproducer
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime import latency, shapes
from onnxcomp.runtime.target import Target

__all__ = ["Result", "compress"]

Feeds = Mapping[str, Any]

_HELD_OUT = 0.25  # of the data, when there is no other to evaluate on
_LEAST_SPLIT = 8  # samples; fewer serve both purposes, and the report says so


@dataclass(frozen=True)
class Result:
    """What a compilation made.

    Attributes:
        model: the compressed model; not written anywhere yet unless an output was named.
        report: what was done and measured.
    """

    model: Model
    report: Report


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
    target: Target | None = None,
    seed: int = 0,
    keep_order: bool = False,
    output: str | os.PathLike[str] | None = None,
    reproducers: str | os.PathLike[str] | None = None,
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
        target: the machine the result is for; default: this one, one thread.
        seed: of every random choice.
        keep_order: run the passes as they stand.
        output: file to write.
        reproducers: folder for reproducers of failed passes; default: none are written.
        progress: shows how far long loops are.
        command: command line, for the report.

    Raises:
        UsageError, InputError: something given does not make sense or cannot be used; nothing is written.
    """
    start = time.perf_counter()
    asked = _pipeline(pipeline)
    scheduled = asked.scheduled(keep_order)
    target = target or Target.host()
    original = model if isinstance(model, Model) else Model.load(model)
    work = Model.from_proto(original.proto())
    samples = _samples(original, data, test_data, seed)
    evaluation = samples.evaluation or Dataset.from_feeds([samples.probe])
    evaluator = Evaluator(original, evaluation, _metric(metric))
    before = evaluator.evaluate(original)
    recorder = _Recorder(original, samples, target)
    measure = Measure(evaluator, before)
    hooks: list[Hook] = [] if reproducers is None else [Reproducer(Path(reproducers))]
    hooks.append(recorder)
    if max_drop is not None:
        hooks.append(Budget(before.metric_original, max_drop, before.higher_is_better))
    hooks += [measure, Verify(original, [samples.probe]), Timing()]
    ctx = Context(target=target, data=samples.calibration, seed=seed, original=original, progress=progress)
    records = PassManager(scheduled, hooks).run(work, ctx)
    report = build.report(
        input=build.input_of(original, recorder.original_bytes, recorder.original_cost),
        options=build.options(
            asked, scheduled, data, test_data, metric, max_drop, seed, target, keep_order, samples
        ),
        environment=build.environment(target, command),
        data=build.data(samples.calibration, samples.evaluation, samples.held_out),
        passes=[build.pass_report(record) for record in records],
        result=build.result(
            recorder, measure.latest, before, max_drop, records, seconds=time.perf_counter() - start
        ),
    )
    if output is not None:
        work.save(output)
        report.result.output = str(output)
    return Result(work, report)
