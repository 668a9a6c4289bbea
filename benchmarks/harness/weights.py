"""What a model file computes and stores; as a command, prints it as JSON.

python -m harness.weights MODEL CANDIDATE
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import onnxcomp
from harness.zoo import MODELS
from onnxcomp.data import Dataset
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.cost import cost
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.shapes import observed

__all__ = ["flops_of", "load_ms", "onnxz_bytes", "packed_bytes", "restored_share", "zeros"]

_LOADS = 5
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


def onnxz_bytes(path: Path) -> int:
    """Bytes of a model in onnxcomp's packed form."""
    with tempfile.TemporaryDirectory() as folder:
        return onnxcomp.pack(path, Path(folder) / "packed.onnxz")


def load_ms(path: Path) -> float:
    """Median milliseconds that ONNX Runtime takes to make a session of the file, after a first time."""
    times = []
    for _ in range(_LOADS + 1):
        start = time.perf_counter()
        session.create(path)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def restored_share(model: Model) -> float | None:
    """Bytes of all constants that quantized weights are made of, over those of the weights in float32."""
    layers = [layer for layer in weighted_layers(model) if layer.quantized]
    sources: dict[int, int] = {}
    for layer in layers:
        sources |= dict(_sources(layer.node.inputs[layer.weight_index]))
    weights = sum(int(np.prod(layer.shape, dtype=np.int64)) for layer in layers)
    return sum(sources.values()) / (4 * weights) if weights else None


def _sources(tensor: Any) -> Iterator[tuple[int, int]]:
    """Constants behind a tensor: their ids and bytes."""
    if is_constant(tensor):
        value = value_of(tensor)
        bits = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}.get(str(value.dtype), 8 * value.dtype.itemsize)
        yield id(tensor), value.size * bits // 8
    elif len(tensor.inputs) == 1:
        for item in tensor.inputs[0].inputs:
            yield from _sources(item)


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
        "onnxz_bytes": onnxz_bytes(options.candidate),
        "load_ms": load_ms(options.candidate),
        "restored_share": restored_share(Model.load(options.candidate)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
