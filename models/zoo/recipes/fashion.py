"""The committed Fashion-MNIST network with all 10,000 test images and 512 training images."""

import shutil
from pathlib import Path

from zoo import fashion
from zoo.evaluate import run_model, top1
from zoo.packages import Packages
from zoo.samples import save_samples

LICENCE = "model Apache-2.0; data MIT (Zalando SE)"
MODELS = Path(__file__).resolve().parents[2]


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the accuracy on the 10,000 test images."""
    for name in ("fashion_resnet.onnx", "fashion_resnet_bn.onnx"):
        shutil.copyfile(MODELS / name, folder / name)
    images, labels = fashion.calibration(packages)
    save_samples(folder / "calibration.npz", {"image": images, "labels": labels})
    images, labels = fashion.load(packages, "t10k")
    save_samples(folder / "test.npz", {"image": images, "labels": labels})
    return {"top-1": top1(run_model(folder / "fashion_resnet.onnx", {"image": images}), labels)}


def prepare_training(packages: Packages, path: Path) -> None:
    """Write the 60,000 training images without their labels."""
    images, _ = fashion.load(packages, "train")
    save_samples(path, {"image": images})
