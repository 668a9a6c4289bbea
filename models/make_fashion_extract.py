"""Make the two committed extracts of Fashion-MNIST; the same bytes come out every time.

    python models/make_fashion_extract.py

``fashion_calibration.npz`` holds 512 training images, ``fashion_test.npz`` 100 test images of each class.
"""

from pathlib import Path

import numpy as np
from zoo import fashion
from zoo.packages import Packages, cache_root
from zoo.samples import pick_evenly, save_samples

HERE = Path(__file__).resolve().parent
SEED = 20240501


def main() -> None:
    """Write both files next to this script."""
    packages = Packages(cache_root())
    images, labels = fashion.calibration(packages)
    save_samples(HERE / "fashion_calibration.npz", {"image": images, "labels": labels}, compress=True)
    images, labels = fashion.load(packages, "t10k")
    chosen = pick_evenly(labels, 100, np.random.default_rng(SEED))
    save_samples(HERE / "fashion_test.npz", {"image": images[chosen], "labels": labels[chosen]}, compress=True)
    for path in sorted(HERE.glob("fashion_*.npz")):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
