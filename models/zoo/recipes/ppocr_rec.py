"""PP-OCRv4 text recogniser from rapidocr-onnxruntime with drawn lines and their exact texts."""

import shutil
from pathlib import Path

import ppocr_metric

from zoo.evaluate import run_model
from zoo.ocr_samples import ragged_reading_samples, reading_samples
from zoo.packages import Packages
from zoo.samples import save_samples
from zoo.text_lines import text_source

LICENCE = "model Apache-2.0 (PaddleOCR); fonts: Bitstream Vera licence; words: SCOWL"
SEED = 20240504


def rapidocr_models(packages: Packages) -> Path:
    """Return the folder of the three PP-OCR models."""
    return packages.pypi("rapidocr-onnxruntime", "1.4.4") / "rapidocr_onnxruntime/models"


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the accuracy in lines and the error rate in characters."""
    model = folder / "ppocr_rec.onnx"
    shutil.copyfile(rapidocr_models(packages) / "ch_PP-OCRv4_rec_infer.onnx", model)
    source = text_source(packages)
    inputs, texts = reading_samples(source, 128, SEED)
    save_samples(folder / "calibration.npz", {"x": inputs, "labels": texts})
    for index, line in enumerate(ragged_reading_samples(source, 128, SEED + 1)):
        save_samples(folder / "calibration_ragged" / f"{index:03d}.npz", {"x": line})
    inputs, texts = reading_samples(source, 400, SEED + 2)
    save_samples(folder / "test.npz", {"x": inputs, "labels": texts})
    outputs, characters = run_model(model, {"x": inputs}, batch=16), ppocr_metric.character_list(model)
    return {
        "line accuracy": ppocr_metric.line_accuracy(outputs, texts, characters),
        "character error rate": ppocr_metric.character_error_rate(outputs, texts, characters),
    }
