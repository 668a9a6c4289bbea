"""Fashion-MNIST: 60,000 training and 10,000 test images (MIT), Debian package dataset-fashion-mnist."""

from pathlib import Path

import numpy as np

from zoo.idx import read_images, read_labels
from zoo.packages import Packages

CALIBRATION_SEED = 20240502


def load(packages: Packages, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one part: ``train`` or ``t10k``."""
    folder: Path = packages.debian("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = read_images(folder / f"{part}-images-idx3-ubyte.gz")
    return images, read_labels(folder / f"{part}-labels-idx1-ubyte.gz")


def calibration(packages: Packages, count: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Return a fixed random choice of training images with their labels."""
    images, labels = load(packages, "train")
    chosen = np.random.default_rng(CALIBRATION_SEED).choice(len(images), count, replace=False)
    return images[chosen], labels[chosen]
