"""Judge one model file; as a command, prints the figures as JSON. It runs apart: a bad file may crash it.

python -m harness.accuracy MODEL CANDIDATE REFERENCE
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from harness.zoo import MODELS, Figure, ZooModel
from onnxcomp.data import Dataset
from onnxcomp.evaluate import metric_named
from onnxcomp.fidelity import FidelitySums
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime.session import run

NO_REASON = "the pass gave no reason"  # what the pass manager writes for a pass that forgot a layer

Batches = Iterator[dict[str, Any]]


def evaluate(model: ZooModel, candidate: Path, reference: Path, report: Path | None = None) -> dict[str, Any]:
    """Figures of a candidate on all test samples, and its distance from the original.

    Args:
        model: what it was made from.
        candidate: its file.
        reference: folder that keeps the original's outputs; filled when it is empty.
        report: of onnxcomp, to count the weighted layers that it does not mention.
    """
    original = Model.load(model.path)
    session = open_session(candidate)
    figures: dict[str, float | None] = {}
    samples: dict[str, int] = {}
    sqnr = math.inf
    for figure in model.figures:
        data = Dataset.open(str(model.folder / figure.samples), original)
        value, distance = _figure(figure, session, data, _kept(model.path, data, reference / figure.samples))
        figures[figure.name], samples[figure.name] = _finite(value), len(data)
        if figure is model.figures[0]:
            sqnr = distance
    calibration = len(Dataset.open(str(model.data), original))
    return {
        "figures": figures,
        "samples": samples,
        "sqnr_db": _finite(sqnr),
        "calibration_samples": calibration,
        "undecided": None if report is None else undecided(original, report),
    }


def undecided(original: Model, report: Path) -> int:
    """How many weighted layers of the original the report gives neither an action nor a reason for."""
    passes = json.loads(report.read_text(encoding="utf-8"))["passes"]
    decisions = [decision for entry in passes for decision in entry["decisions"]]
    decided = {decision["layer"] for decision in decisions if decision["reason"] != NO_REASON}
    return sum(layer.name not in decided for layer in weighted_layers(original))


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A session on a file, as a deployment would open it; 0 threads: all cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _figure(figure: Figure, session: ort.InferenceSession, data: Dataset, reference: Batches) -> tuple[float, float]:
    """The figure and the signal to noise ratio in dB; either may be infinite."""
    metric = metric_named(figure.metric)
    sums = FidelitySums()
    kept: list[dict[str, Any]] = []
    for feeds, expected in zip(data.feeds(), reference, strict=True):
        found = run(session, feeds)
        sums.update(expected, found)
        if metric.of_outputs is not None:
            kept.append(found)
    fidelity = sums.result()
    if metric.of_fidelity is not None:
        return metric.of_fidelity(fidelity), fidelity.sqnr_db
    return float(metric.of_outputs(kept, data.labels)), fidelity.sqnr_db  # type: ignore[misc]


def _kept(original: Path, data: Dataset, folder: Path) -> Batches:
    """The original's outputs, from the folder or else computed and put there."""
    if folder.is_dir():
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as batch:
                yield dict(batch)
        return
    session = open_session(original)
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True)
    for index, feeds in enumerate(data.feeds()):
        outputs = run(session, feeds)
        np.savez(unfinished / f"{index:06d}.npz", **outputs)
        yield outputs
    unfinished.rename(folder)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main() -> None:
    """Parse the command line, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    print(json.dumps(evaluate(MODELS[options.model], options.candidate, options.reference, options.report)))


if __name__ == "__main__":
    main()
