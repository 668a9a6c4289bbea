"""Seconds and memory that calibration takes, on the same samples in turn."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.bench import HERE, Bench, say
from harness.entries import onnxcomp_program
from harness.process import Outcome, run
from harness.quant_results import Cost, Costs
from harness.zoo import MODELS, ZooModel

__all__ = ["COSTS", "FEW", "MANY", "SAMPLES", "measure_costs"]

MODEL = "mobilenetv2"
SAMPLES = 128
FEW, MANY = 64, 1024


@dataclass(frozen=True)
class _Run:
    """One thing to measure.

    Attributes:
        name: identifies it.
        pipeline: of onnxcomp; None for a peer.
        peer: name of the peer.
        samples: to calibrate on.
    """

    name: str
    samples: int
    pipeline: str | None = None
    peer: str = ""

    def row(self) -> Cost:
        tool, setting = ("onnxcomp", f"-p {self.pipeline}") if self.pipeline else ("onnxruntime", _PEERS[self.peer])
        return Cost(name=self.name, tool=tool, setting=setting, samples=self.samples)


_PEERS = {
    "ort-minmax": "quantize_static, MinMax",
    "ort-entropy": "quantize_static, Entropy",
    "ort-percentile-full": "quantize_static, Percentile",
}
COSTS = (
    _Run("onnxcomp-minmax", SAMPLES, 'quant(ranges="minmax",rounding="nearest",sqnr=0,samples=128)'),
    _Run("onnxcomp-default", SAMPLES, "quant(samples=128)"),
    *(_Run(name, SAMPLES, peer=name) for name in _PEERS),
    _Run("onnxcomp-few", FEW, f"quant(samples={FEW})"),
    _Run("onnxcomp-many", MANY, f"quant(samples={MANY})"),
)


def measure_costs(bench: Bench) -> Costs:
    """Run everything of ``COSTS``, one after the other."""
    model, work = MODELS[MODEL], bench.work / "costs"
    work.mkdir()
    data = work / "samples.npz"
    # In a process of its own: Linux counts in a child's peak what its parent held when it started it.
    made = run(
        [sys.executable, "-m", "harness.more_samples", MODEL, str(MANY), str(data)],
        work / "more.log",
        bench.limits,
        HERE,
    )
    if made.failure is not None:
        raise SystemExit(f"the samples cannot be made: {made.failure}")
    rows = [_measure(bench, model, wanted, data, work) for wanted in COSTS]
    return Costs(
        model=MODEL, date=time.strftime("%Y-%m-%d"), command=bench.command, environment=bench.environment, rows=rows
    )


def _measure(bench: Bench, model: ZooModel, wanted: _Run, data: Path, work: Path) -> Cost:
    output, report = work / f"{wanted.name}.onnx", work / f"{wanted.name}.json"
    if wanted.pipeline is None:
        files = [str(model.path), str(data), str(output)]
        command = [sys.executable, "-m", "harness.peers", wanted.peer, *files, "--samples", str(wanted.samples)]
    else:
        # Evaluated on other samples, so that all of the file is there to calibrate on.
        evaluated = ["--test-data", str(model.folder / model.figures[-1].samples)]
        made = ["-p", wanted.pipeline, "--data", str(data), *evaluated, "-o", str(output), "--report", str(report)]
        command = [onnxcomp_program(), str(model.path), *made]
    outcome = run(command, work / f"{wanted.name}.log", bench.limits, cwd=HERE)
    row = wanted.row()
    row.failure, row.seconds, row.peak_bytes = outcome.failure, outcome.seconds, outcome.peak_bytes
    if row.failure is None:
        row.own_seconds = _of_pass(report) if wanted.pipeline else _told(outcome)
    say(f"{row.name}: {row.failure or f'{row.own_seconds:.1f} s, {row.peak_bytes / 1e6:,.0f} MB'}")
    return row


def _of_pass(report: Path) -> float:
    """Seconds of the quant pass, without the verification of its result."""
    passes = json.loads(report.read_text(encoding="utf-8"))["passes"]
    return float(next(entry["seconds"] for entry in passes if entry["name"] == "quant"))


def _told(outcome: Outcome) -> float:
    return float(next(json.loads(line)["seconds"] for line in _json_lines(outcome.output)))


def _json_lines(text: str) -> Iterator[str]:
    return (line for line in reversed(text.splitlines()) if line.startswith("{"))
