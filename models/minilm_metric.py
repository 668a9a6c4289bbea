"""Metric of the sentence encoder: how often a fixed logistic probe tells good reviews from bad ones.

    onnxcomp ~/.cache/onnxcomp/minilm/minilm.onnx --metric minilm_metric:probe_accuracy ...

fetch.py trains the probe on embeddings that the fp32 model gives to sentences of neither sample file, and
freezes it.
"""

import functools
import os
from pathlib import Path

import numpy as np


def probe_accuracy(
    outputs: list[dict[str, np.ndarray]],
    labels: np.ndarray,
    probe: tuple[np.ndarray, float] | None = None,
) -> float:
    """Return the fraction of right signs; ``probe`` (weights [384], bias) defaults to the cached one."""
    return float((probe_decisions(outputs, probe) == (labels > 0)).mean())


def probe_decisions(outputs: list[dict[str, np.ndarray]], probe: tuple[np.ndarray, float] | None = None) -> np.ndarray:
    """Return for every sample whether the probe takes its review for a good one."""
    weights, bias = probe or _cached_probe()
    embeddings = np.concatenate([next(iter(batch.values())) for batch in outputs])
    return embeddings @ weights + bias > 0


@functools.cache
def _cached_probe() -> tuple[np.ndarray, float]:
    cache = Path(os.environ.get("ONNXCOMP_CACHE") or Path.home() / ".cache" / "onnxcomp")
    with np.load(cache / "minilm" / "probe.npz") as stored:
        return stored["weights"], float(stored["bias"])
