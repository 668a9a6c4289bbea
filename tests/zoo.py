"""The real models that tests run on: the committed ones, and those that models/fetch.py left in the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxcomp.data import Dataset
from onnxcomp.model import Model

__all__ = ["CACHE", "COMMITTED", "calibration", "each_model", "zoo_model"]

COMMITTED = Path(__file__).parents[1] / "models"
CACHE = Path(os.environ.get("ONNXCOMP_CACHE") or Path.home() / ".cache" / "onnxcomp")

_FETCHED = {
    "mobilenetv2": "mobilenetv2/mobilenetv2.onnx",
    "mobilenetv2_bn": "mobilenetv2/mobilenetv2_bn.onnx",
    "ppocr_rec": "ppocr_rec/ppocr_rec.onnx",
    "minilm": "minilm/minilm.onnx",
    "ppocr_det": "ppocr_det/ppocr_det.onnx",
    "ppocr_cls": "ppocr_cls/ppocr_cls.onnx",
    "mnist": "mnist/mnist.onnx",
    "silero_vad": "silero_vad/silero_vad.onnx",
    "old_rec": "ppocr_old/rec/rec.onnx",
    "old_det": "ppocr_old/det/det.onnx",
    "old_cls": "ppocr_old/cls/cls.onnx",
}
_HERE = ("fashion_resnet", "fashion_resnet_bn")

each_model = pytest.mark.parametrize("name", [*_HERE, *_FETCHED])
"""Runs a test once for every model of the zoo, by name."""


def zoo_model(name: str) -> Path:
    """The file of a model; skips the test where it has not been fetched."""
    path = COMMITTED / f"{name}.onnx" if name in _HERE else CACHE / _FETCHED[name]
    if not path.exists():
        pytest.skip(f"{path} is not there; fetch it with models/fetch.py")
    return path


def calibration(path: Path, samples: int) -> Dataset:
    """The first calibration samples that stand beside a model of the zoo."""
    model = Model.load(path)
    if path.parent == COMMITTED:
        source = COMMITTED / "fashion_calibration.npz"
    else:
        source = path.parent / "calibration.npz"
        source = source if source.exists() else path.parent / "calibration"
    return Dataset.open(str(source), model).take(samples)
