"""The models that are measured, and how each is judged."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MODELS", "Figure", "ZooModel", "cache_root", "samples_in"]

ROOT = Path(__file__).resolve().parents[2]
MODEL_CODE = ROOT / "models"


@dataclass(frozen=True)
class Figure:
    """A figure of merit on a set of samples.

    Attributes:
        name: column of the table.
        metric: as for ``onnxcomp --metric``: top1, agreement, sqnr or file.py:function.
        samples: file or folder in the model's folder.
        higher_is_better: whether a decrease is a loss.
        unit: ``points`` for a share, whose loss is told in percentage points, or ``dB``.
    """

    name: str
    metric: str
    samples: str = "test.npz"
    higher_is_better: bool = True
    unit: str = "points"


@dataclass(frozen=True)
class ZooModel:
    """A model of models/fetch.py.

    Attributes:
        name: of its folder in the cache.
        file: name of the model in it.
        figures: what it is judged by; the first is the one that counts.
        calibration: samples that all tools calibrate on, disjoint from those of the figures.
        decision: what the outputs are taken for, see ``harness.decisions``.
        lengths: of the sequences that it is timed at, where one sample is not all: the first is that of a sample.
        training: many samples without labels, of ``models/fetch.py --training``; disjoint from those of the figures.
    """

    name: str
    file: str
    figures: tuple[Figure, ...]
    calibration: str = "calibration.npz"
    decision: str = "classes"
    lengths: tuple[int, ...] = ()
    training: str = "training.npz"

    @property
    def folder(self) -> Path:
        """Where models/fetch.py has put it."""
        return cache_root() / self.name

    @property
    def path(self) -> Path:
        """The fp32 original."""
        return self.folder / self.file

    @property
    def data(self) -> Path:
        """The calibration samples."""
        return self.folder / self.calibration

    @property
    def training_data(self) -> Path:
        """The samples to train on; only some models have them."""
        return self.folder / self.training

    @property
    def test(self) -> Path:
        """The samples that it is judged on."""
        return self.folder / self.figures[0].samples


def cache_root() -> Path:
    """Where models/fetch.py keeps the models."""
    return Path(os.environ.get("ONNXCOMP_CACHE") or Path.home() / ".cache" / "onnxcomp")


def samples_in(path: Path) -> int:
    """Of the first array of an .npz, whose values are left unread: this process stays small."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return int(read(file)[0][0])


def _metric(name: str) -> str:
    file, _, function = name.partition(":")
    return f"{MODEL_CODE / file}:{function}"


_TOP1 = Figure("top-1", "top1")
_SQNR = Figure("SQNR", "sqnr", unit="dB")

MODELS = {
    model.name: model
    for model in (
        ZooModel("fashion", "fashion_resnet.onnx", (_TOP1,)),
        ZooModel("mnist", "mnist.onnx", (_TOP1,)),
        ZooModel(
            "mobilenetv2",
            "mobilenetv2.onnx",
            (
                Figure("agreement", "agreement"),
                Figure("agreement on things", "agreement", "things.npz"),
                Figure("top-1 of 20", "top1", "foolbox.npz"),
            ),
        ),
        ZooModel(
            "ppocr_rec",
            "ppocr_rec.onnx",
            (
                Figure("lines right", _metric("ppocr_metric.py:line_accuracy")),
                Figure("character errors", _metric("ppocr_metric.py:character_error_rate"), higher_is_better=False),
            ),
            decision="lines",
        ),
        ZooModel(
            "minilm",
            "minilm.onnx",
            (Figure("probe", _metric("minilm_metric.py:probe_accuracy")),),
            decision="sentiment",
            lengths=(64, 128),
        ),
        ZooModel("ppocr_cls", "ppocr_cls.onnx", (_TOP1,)),
        ZooModel("ppocr_det", "ppocr_det.onnx", (_SQNR,), decision="text"),
        ZooModel(
            "silero_vad",
            "silero_vad.onnx",
            (Figure("SQNR", "sqnr", "test", unit="dB"),),
            "calibration",
            decision="voice",
        ),
    )
}
