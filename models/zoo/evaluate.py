"""Run a model over samples with ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime


def run_model(path: Path, feeds: dict[str, np.ndarray], batch: int = 64) -> list[dict[str, np.ndarray]]:
    """Return the named outputs of every batch; the first axis of each feed counts the samples."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    count = len(next(iter(feeds.values())))
    outputs = []
    for start in range(0, count, batch):
        part = {name: values[start : start + batch] for name, values in feeds.items()}
        outputs.append(dict(zip(names, session.run(names, part), strict=True)))
    return outputs


def first_output(outputs: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Return the first output of all batches in one array."""
    return np.concatenate([next(iter(batch.values())) for batch in outputs])


def top1(outputs: list[dict[str, np.ndarray]], labels: np.ndarray) -> float:
    """Return the fraction of samples whose largest score is at the index given by the label."""
    return float((first_output(outputs).argmax(axis=1) == labels).mean())
