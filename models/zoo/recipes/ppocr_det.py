"""PP-OCRv4 text detector from rapidocr-onnxruntime with drawn pages, half of them over photographs."""

import shutil
from pathlib import Path

import numpy as np

from zoo.evaluate import first_output, run_model
from zoo.ocr_samples import PAGE_SIDE, Box, page_samples
from zoo.packages import Packages
from zoo.photographs import photographs, random_crops
from zoo.recipes.ppocr_rec import rapidocr_models
from zoo.samples import save_samples
from zoo.text_lines import text_source

LICENCE = "model Apache-2.0 (PaddleOCR); photographs: free licences of their Debian packages"
SEED = 20240506


def line_recall(probabilities: np.ndarray, pages: list[list[Box]]) -> float:
    """Return the fraction of drawn lines along whose middle the text probability exceeds 0.3 on average."""
    found = []
    for page, boxes in zip(probabilities, pages, strict=True):
        found += [page[0, (top + bottom) // 2, left:right].mean() > 0.3 for left, top, right, bottom in boxes]
    return float(np.mean(found))


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the fraction of the drawn lines that the fp32 model finds."""
    model = folder / "ppocr_det.onnx"
    shutil.copyfile(rapidocr_models(packages) / "ch_PP-OCRv4_det_infer.onnx", model)
    source, (calibration, test) = text_source(packages), photographs(packages)
    pages, _ = page_samples(source, random_crops(calibration, 48, PAGE_SIDE, SEED), SEED)
    save_samples(folder / "calibration.npz", {"x": pages})
    pages, boxes = page_samples(source, random_crops(test, 96, PAGE_SIDE, SEED + 1), SEED + 1)
    save_samples(folder / "test.npz", {"x": pages})
    return {"line recall": line_recall(first_output(run_model(model, {"x": pages}, batch=8)), boxes)}
