"""Judge one model file; as a command, prints the figures as JSON. It runs apart: a bad file may crash it.

python -m harness.accuracy MODEL CANDIDATE REFERENCE [--report FILE] [--unfused]
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

from harness.decisions import agreement
from harness.kernels import kernels_of
from harness.zoo import MODELS, Figure, ZooModel
from onnxcomp.data import Dataset
from onnxcomp.evaluate import metric_named
from onnxcomp.fidelity import FidelitySums
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime.session import run

NO_REASON = "the pass gave no reason"  # what the pass manager writes for a pass that forgot a layer

Batches = Iterator[dict[str, Any]]


def evaluate(
    model: ZooModel, candidate: Path, reference: Path, report: Path | None = None, unfused: bool = False
) -> dict[str, Any]:
    """Figures of a candidate on all test samples, and its distance from the original.

    Args:
        model: what it was made from.
        candidate: its file.
        reference: folder that keeps the original's outputs; filled when it is empty.
        report: of onnxcomp, to count the weighted layers that it does not mention.
        unfused: run it once more without ONNX Runtime's optimizations, and compare with that.
    """
    original = Model.load(model.path)
    session = open_session(candidate)
    kernels = kernels_of(candidate)
    judged: dict[str, Any] = {
        "figures": {},
        "samples": {},
        "calibration_samples": len(Dataset.open(str(model.data), original)),
        "undecided": None if report is None else undecided(original, report),
        "integer_kernels": kernels.integer,
        "float_layers": kernels.float_layers,
    }
    for name in dict.fromkeys(figure.samples for figure in model.figures):
        figures = [figure for figure in model.figures if figure.samples == name]
        data = Dataset.open(str(model.folder / name), original)
        plain = open_session(candidate, optimize=False) if unfused and name == model.figures[0].samples else None
        values, distance = _judge(model, figures, session, data, _kept(model.path, data, reference / name), plain)
        judged["figures"] |= values
        judged["samples"] |= dict.fromkeys(values, len(data))
        if name == model.figures[0].samples:
            judged |= distance
    return judged


def undecided(original: Model, report: Path) -> int:
    """How many weighted layers of the original the report gives neither an action nor a reason for."""
    passes = json.loads(report.read_text(encoding="utf-8"))["passes"]
    decisions = [decision for entry in passes for decision in entry["decisions"]]
    decided = {decision["layer"] for decision in decisions if decision["reason"] != NO_REASON}
    return sum(layer.name not in decided for layer in weighted_layers(original))


def open_session(path: Path, threads: int = 0, optimize: bool = True) -> ort.InferenceSession:
    """A session on a file, as a deployment would open it; 0 threads: all cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not threads:  # it is not timed, so leave the cores to others while there is nothing to do
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _judge(
    model: ZooModel,
    figures: list[Figure],
    session: ort.InferenceSession,
    data: Dataset,
    reference: Batches,
    plain: ort.InferenceSession | None,
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The figures on these data by name, and the distances from the original and from the unfused candidate."""
    metrics = {figure.name: metric_named(figure.metric) for figure in figures}
    keep = any(metric.of_outputs is not None for metric in metrics.values())
    sums = FidelitySums()
    kept: list[dict[str, Any]] = []
    agreed: list[Any] = []
    agreed_unfused: list[Any] = []
    for feeds, expected in zip(data.feeds(), reference, strict=True):
        found = run(session, feeds)
        sums.update(expected, found)
        agreed.append(agreement(model.decision, expected, found))
        if plain is not None:
            agreed_unfused.append(agreement(model.decision, run(plain, feeds), found))
        if keep:
            kept.append(found)
    fidelity = sums.result()
    values = {
        name: metric.of_fidelity(fidelity) if metric.of_fidelity else float(metric.of_outputs(kept, data.labels))  # type: ignore[misc]
        for name, metric in metrics.items()
    }
    distance = {
        "sqnr_db": _finite(fidelity.sqnr_db),
        "agreement": float(np.concatenate(agreed).mean()),
        "unfused_agreement": float(np.concatenate(agreed_unfused).mean()) if agreed_unfused else None,
    }
    return {name: _finite(value) for name, value in values.items()}, distance


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
    parser.add_argument("--unfused", action="store_true")
    options = parser.parse_args()
    model = MODELS[options.model]
    print(json.dumps(evaluate(model, options.candidate, options.reference, options.report, options.unfused)))


if __name__ == "__main__":
    main()
