"""Models of gigabytes: what importing, exporting and compressing them takes.

    python benchmarks/large.py                       # LARGE.json
    python benchmarks/large.py --gigabytes 6 --rounds 3

- **through**: a model of 0.5 GB in one file is loaded and saved by ``onnx`` and by ``onnxcomp.Model``, in turn, each
  time in a process of its own.
- **compile**: a transformer of 3 GB of float32 weights in a file beside the model, compiled by the command. Peak memory
  is what Linux counts for the process, mapped files included.
"""

from __future__ import annotations

import argparse
import datetime
import filecmp
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from harness.process import Limits, Outcome, run
from harness.transformer import write_transformer

HERE = Path(__file__).resolve().parent
LIMITS = Limits(seconds=1800, bytes=16e9)
HALF = 0.5
PIPELINES = ("quant", "quant(mode='weights')", "reorder,quant")
LOADERS = {
    "onnx": "import onnx; start = time(); onnx.save(onnx.load({source!r}), {target!r})",
    "onnxcomp": "from onnxcomp import Model; start = time(); Model.load({source!r}).save({target!r})",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the weights that are compressed")
    parser.add_argument("--rounds", type=int, default=5, help="of loading and saving")
    parser.add_argument("--work", type=Path, help="folder for the models; it needs twice their size")
    parser.add_argument("--output", default=str(HERE / "LARGE.json"), help="JSON file; - is stdout")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="large-", dir=given.work) as folder:
        document = {
            "date": datetime.date.today().isoformat(),
            "versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxcomp")},
            "through": through(Path(folder), given.rounds),
            "compile": compiled(Path(folder), given.gigabytes),
        }
    text = json.dumps(document, indent=2) + "\n"
    sys.stdout.write(text)
    if given.output != "-":
        Path(given.output).write_text(text)
    return 0


def through(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of loading and saving, and the peak memory of the process; imports take no part in the seconds."""
    source, target = folder / "half.onnx", folder / "out.onnx"
    weights = _written(source, HALF, inline=True)
    seconds: dict[str, list[float]] = {name: [] for name in LOADERS}
    peaks: dict[str, list[int]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for name, code in LOADERS.items():
            program = "from time import perf_counter as time; " + code.format(source=str(source), target=str(target))
            outcome = _run([sys.executable, "-c", program + "; print(time() - start)"], folder)
            seconds[name].append(float(outcome.output))
            peaks[name].append(outcome.peak_bytes)
            if not filecmp.cmp(source, target, shallow=False):  # reading them would make this process large
                raise SystemExit(f"{name} wrote another model")
    source.unlink()
    target.unlink()
    ratios = [ours / theirs for ours, theirs in zip(seconds["onnxcomp"], seconds["onnx"], strict=True)]
    return {
        "weight_bytes": weights,
        "rounds": rounds,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "peak_bytes": {name: max(each) for name, each in peaks.items()},
        "time_ratio": statistics.median(ratios),
        "time_ratio_spread": [min(ratios), max(ratios)],
        "memory_ratio": max(peaks["onnxcomp"]) / max(peaks["onnx"]),
    }


def compiled(folder: Path, gigabytes: float) -> dict[str, Any]:
    """What each pipeline makes of a large model, and takes for it."""
    source = folder / "large.onnx"
    weights = _written(source, gigabytes)
    rows = []
    for pipeline in PIPELINES:
        report = folder / "report.json"
        command = [sys.executable, "-m", "onnxcomp", str(source), "-p", pipeline, "-q"]
        outcome = _run([*command, "-o", str(folder / "small.onnx"), "--report", str(report)], folder)
        found = json.loads(report.read_text())
        rows.append(
            {
                "pipeline": pipeline,
                "statuses": {record["name"]: record["status"] for record in found["passes"]},
                "size_ratio": found["result"]["size_ratio"],
                "latency_ratio": found["result"]["latency_ratio"],
                "sqnr_db": found["result"]["fidelity"]["sqnr_db"],
                "seconds": outcome.seconds,
                "peak_bytes": outcome.peak_bytes,
                "peak_over_weights": outcome.peak_bytes / weights,
            }
        )
        for made in folder.glob("small.onnx*"):
            made.unlink()
    return {"weight_bytes": weights, "rows": rows}


def _written(path: Path, gigabytes: float, inline: bool = False) -> int:
    """In a process of its own: what this one holds counts in the peak of those that it starts."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(write_transformer, path, gigabytes, inline).result()


def _run(command: list[str], folder: Path) -> Outcome:
    outcome = run(command, folder / "log.txt", LIMITS)
    if outcome.failure is not None:
        raise SystemExit(f"{command}: {outcome.failure}")
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
