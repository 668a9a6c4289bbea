"""What a model file computes and stores; as a command, prints it as JSON.

python -m harness.weights MODEL CANDIDATE
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.zoo import MODELS
from onnxcomp.data import Dataset
from onnxcomp.graph.cost import cost
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime.shapes import observed

__all__ = ["flops_of", "packed_bytes", "zeros"]

PRESET = 0  # float weights: higher ones take ten times as long, and save a hundredth more


def flops_of(path: Path, feeds: Mapping[str, Any]) -> int:
    """FLOPs of one run on these feeds."""
    model = Model.load(path)
    return cost(model, observed(model, dict(feeds))).flops


def zeros(model: Model) -> float:
    """Share of zeros among the weights that are multiplied: those of Conv, ConvTranspose, Gemm and MatMul.

    Tables that are only looked up would hide it: most of MiniLM is one.
    """
    arrays = {id(layer.weight): layer.array() for layer in weighted_layers(model) if layer.kind != "other"}
    count = sum(array.size for array in arrays.values())
    return sum(array.size - int(np.count_nonzero(array)) for array in arrays.values()) / count if count else 0.0


def packed_bytes(folder: Path) -> int:
    """Bytes of all files of a folder, or of one file, packed by LZMA."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else [folder]
    return sum(len(lzma.compress(path.read_bytes(), preset=PRESET)) for path in files)


def main() -> None:
    """Parse the command line, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--folder", action="store_true", help="pack all files beside it too")
    options = parser.parse_args()
    zoo = MODELS[options.model]
    data = Dataset.open(str(zoo.folder / zoo.figures[0].samples), Model.load(zoo.path))
    found = {
        "flops": flops_of(options.candidate, data.sample()),
        "zeros": zeros(Model.load(options.candidate)),
        "packed_bytes": packed_bytes(options.candidate.parent if options.folder else options.candidate),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
