"""Time, memory and gradients of training steps, each measured in processes of their own."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from harness.bench import HERE, Bench, say
from harness.process import Limits, on_cores, run
from harness.recover_results import StepRow, Steps
from harness.results import ratio_of

__all__ = ["BATCHES", "TOOLS", "measure_steps", "rows_of"]

BATCHES = {"fashion": 64, "mobilenetv2": 16}
TOOLS = {
    "onnxcomp": ("onnxcomp", "backward graph of `recover`"),
    "torch": ("torch", "autograd"),
    "torch-channels-last": ("torch", "autograd, channels last"),
    "onnxsim": ("onnxsim", "`compile_training_loop`, with the update of the weights"),
}
LIMITS = Limits(seconds=3600, bytes=16e9)


def measure_steps(bench: Bench, model: str) -> Steps:
    """All tools on one model.

    Raises:
        SystemExit: onnxcomp or torch fails.
    """
    work = bench.work / "steps"
    work.mkdir(exist_ok=True)
    batch, threads = BATCHES[model], bench.threads

    def child(what: str, more: str = "") -> Any:
        arguments = [sys.executable, "-m", "harness.stepping", what, model, str(batch), str(threads), more]
        log = work / f"{model}-{what}-{more}.log"
        outcome = run([*on_cores(threads), *filter(None, arguments)], Path(log), LIMITS, cwd=HERE)
        return outcome.failure if outcome.failure is not None else json.loads(outcome.output)

    found = {"times": child("times", str(bench.repeats)), "gradients": child("gradients")}
    found["memory"] = {name: child("memory", name) for name in TOOLS}
    if failed := [str(part) for part in (found["times"], found["gradients"]) if isinstance(part, str)]:
        raise SystemExit(f"the steps of {model} cannot be measured: {failed[0]}")
    rows = rows_of(found["times"], found["gradients"], found["memory"])
    for row in rows:
        say(f"{model}, {row.name}: {row.failure or f'{row.milliseconds:.1f} ms'}")
    return Steps(
        model=model,
        batch=batch,
        threads=threads,
        rounds=bench.repeats,
        date=time.strftime("%Y-%m-%d"),
        command=bench.command,
        environment=bench.environment,
        rows=rows,
    )


def rows_of(times: dict[str, Any], gradients: dict[str, Any], memory: dict[str, Any]) -> list[StepRow]:
    """What the processes printed, as rows: a text stands for a failure."""
    rows = []
    for name, (tool, setting) in TOOLS.items():
        row = StepRow(name=name, tool=tool, setting=setting)
        seconds, held = times[name], memory[name]
        if isinstance(seconds, str) or isinstance(held, str):
            row.failure = seconds if isinstance(seconds, str) else held
        else:
            row.milliseconds = 1e3 * statistics.median(seconds)
            row.times_torch = ratio_of(seconds, times["torch"])
            row.peak_bytes = held["bytes"]
        if name in gradients:
            row.error, row.worst_error = gradients[name]["all"], gradients[name]["worst"]
        rows.append(row)
    return rows
