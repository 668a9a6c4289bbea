"""Write a calibration file with more samples than a model of the zoo has: the same ones again, with noise.

python -m harness.more_samples MODEL COUNT FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from harness.zoo import MODELS

__all__ = ["repeated"]

NOISE = 0.02  # in standard deviations of the values


def repeated(values: np.ndarray[Any, Any], count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """So many rows: those of ``values`` as they are, then again with noise where they are float."""
    more = values[np.arange(count) % len(values)]
    if values.dtype.kind == "f":
        noise = rng.standard_normal((max(count - len(values), 0), *values.shape[1:]), dtype=np.float32)
        more[len(values) :] += (NOISE * values.std() * noise).astype(values.dtype)
    return more


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("count", type=int)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with np.load(MODELS[options.model].data) as stored:
        columns = {name: repeated(stored[name], options.count, rng) for name in stored.files if name != "labels"}
    np.savez(options.file, **columns)


if __name__ == "__main__":
    main()
