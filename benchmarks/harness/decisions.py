"""What a model's outputs are taken for, and how far two models decide alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.zoo import MODEL_CODE
from onnxcomp.sources import load_function

__all__ = ["DECISIONS", "agreement"]

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Array]

TEXT_THRESHOLD = 0.3  # of PP-OCR's detector
VOICE_THRESHOLD = 0.5  # of Silero's detector


def agreement(decision: str, expected: Outputs, found: Outputs) -> Array:
    """How far the decisions of two models on one batch agree, one value from 0 to 1 for each sample.

    Classes, lines and signs agree or not; of text masks it is the intersection over the union.
    """
    return _COMPARE.get(decision, _equal)(DECISIONS[decision](expected), DECISIONS[decision](found))


def _first(outputs: Outputs) -> Array:
    return next(iter(outputs.values()))


def _classes(outputs: Outputs) -> Array:
    return _first(outputs).argmax(axis=-1)


def _lines(outputs: Outputs) -> Array:
    return np.array(_function("ppocr_metric.py:read_lines")([dict(outputs)]), dtype=object)


def _sentiment(outputs: Outputs) -> Array:
    return np.asarray(_function("minilm_metric.py:probe_decisions")([dict(outputs)]))


def _text(outputs: Outputs) -> Array:
    return _first(outputs) > TEXT_THRESHOLD


def _voice(outputs: Outputs) -> Array:
    return outputs["output"] > VOICE_THRESHOLD


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    return load_function(str(MODEL_CODE / name))


def _equal(expected: Array, found: Array) -> Array:
    same = np.asarray(expected == found)
    return same.reshape(len(same), -1).mean(axis=1)


def _overlap(expected: Array, found: Array) -> Array:
    axes = tuple(range(1, expected.ndim))
    union = (expected | found).sum(axis=axes)
    return np.where(union == 0, 1.0, (expected & found).sum(axis=axes) / np.maximum(union, 1))


DECISIONS: dict[str, Callable[[Outputs], Array]] = {
    "classes": _classes,
    "lines": _lines,
    "sentiment": _sentiment,
    "text": _text,
    "voice": _voice,
}
_COMPARE: dict[str, Callable[[Array, Array], Array]] = {"text": _overlap}
