"""PP-OCR direction classifier from rapidocr-onnxruntime with drawn lines, half of them upside down."""

import shutil
from pathlib import Path

from zoo.evaluate import run_model, top1
from zoo.ocr_samples import turn_samples
from zoo.packages import Packages
from zoo.recipes.ppocr_rec import rapidocr_models
from zoo.samples import save_samples
from zoo.text_lines import text_source

LICENCE = "model Apache-2.0 (PaddleOCR); fonts: Bitstream Vera licence; words: SCOWL"
SEED = 20240507


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the fraction of lines whose direction is recognised."""
    model = folder / "ppocr_cls.onnx"
    shutil.copyfile(rapidocr_models(packages) / "ch_ppocr_mobile_v2.0_cls_infer.onnx", model)
    source = text_source(packages)
    inputs, labels = turn_samples(source, 128, SEED)
    save_samples(folder / "calibration.npz", {"x": inputs, "labels": labels})
    inputs, labels = turn_samples(source, 500, SEED + 1)
    save_samples(folder / "test.npz", {"x": inputs, "labels": labels})
    return {"top-1": top1(run_model(model, {"x": inputs}), labels)}
