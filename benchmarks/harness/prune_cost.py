"""Seconds and memory that pruning takes, and seconds of finding the dependency groups of a large graph."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from harness.bench import HERE, Bench, python, say
from harness.entries import CHANNELS, ELEMENTS, Entry, report_of
from harness.process import on_cores, run
from harness.prune_results import Discovery
from harness.quant_results import Cost, Costs
from harness.zoo import MODELS

__all__ = ["COSTS", "MODEL", "NODES", "SAMPLES", "measure_discovery", "measure_prune_costs"]

MODEL = "mobilenetv2"
SAMPLES = 256  # all of its calibration file
CORES = 2
NODES = 10_000


@dataclass(frozen=True)
class _Run:
    """An entry, with the name that its cost has."""

    name: str
    entry: Entry


COSTS = (
    _Run("onnxcomp-channels", CHANNELS["onnxcomp-15"]),
    _Run("onnxcomp-elements", ELEMENTS["onnxcomp-half"]),
    _Run("onnxsim-wanda", CHANNELS["onnxsim-wanda-15"]),
    _Run("onnxsim-wanda-tuned", CHANNELS["onnxsim-wanda-tuned-15"]),
)


def measure_prune_costs(bench: Bench) -> Costs:
    """Run everything of ``COSTS``, one after the other, on two cores."""
    work = bench.work / "costs"
    work.mkdir(exist_ok=bench.reuse)
    return Costs(
        model=MODEL,
        date=time.strftime("%Y-%m-%d"),
        command=bench.command,
        environment=bench.environment,
        rows=[_measure(bench, wanted) for wanted in COSTS],
    )


def _measure(bench: Bench, wanted: _Run) -> Cost:
    """A process from start to exit; onnxcomp's own seconds are those of its pass."""
    entry = wanted.entry
    folder = bench.work / "costs" / wanted.name
    folder.mkdir(exist_ok=bench.reuse)
    output = folder / "model.onnx"
    command = entry.command(MODELS[MODEL], output, SAMPLES)
    outcome = run([*on_cores(CORES), *command], bench.work / "costs" / f"{wanted.name}.log", bench.limits, cwd=HERE)
    row = Cost(name=wanted.name, tool=entry.tool, setting=entry.setting, samples=SAMPLES, failure=outcome.failure)
    row.seconds, row.peak_bytes = outcome.seconds, outcome.peak_bytes
    if row.failure is None and entry.pipeline is not None:
        passes = json.loads(report_of(output).read_text(encoding="utf-8"))["passes"]
        row.own_seconds = next(part["seconds"] for part in passes if part["name"] == "prune")
    say(f"{row.name}: {row.failure or f'{row.seconds:.1f} s, {row.peak_bytes / 1e6:,.0f} MB'}")
    return row


def measure_discovery(bench: Bench) -> Discovery:
    """In a process of its own.

    Raises:
        SystemExit: it fails.
    """
    outcome = python(["harness.large_graph", str(NODES)], bench.work / "discovery.log")
    if outcome.failure is not None:
        raise SystemExit(f"the groups of a large graph cannot be found: {outcome.failure}")
    found = json.loads(outcome.output)
    say(f"groups of {found['nodes']:,} nodes: {min(found['seconds']):.2f} s")
    return Discovery(date=time.strftime("%Y-%m-%d"), environment=bench.environment, **found)
