"""A model's file packed in every way; as a command, prints sizes and seconds as JSON.

python -m harness.size_packing model.onnx FOLDER ROUNDS
"""

from __future__ import annotations

import json
import lzma
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zstandard
from onnx import helper, numpy_helper

import onnxcomp
from onnxcomp.container.tables import entropy

Array = np.ndarray[Any, Any]


def packed(plain: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Everything that is known of one file; its integer weights are left as codes.npz."""
    onnxz, again = folder / "packed.onnxz", folder / "again.onnx"
    data = plain.read_bytes()

    def restore() -> bytes:
        onnxcomp.restore(onnxz, again)
        return again.read_bytes()

    sizes = {"onnxz": _archive(lambda: onnxcomp.pack(plain, onnxz), restore, data, rounds, onnxz)}
    for name, pack, unpack in (
        ("zstd", zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress),
        ("xz", lambda plain: lzma.compress(plain, preset=9), lzma.decompress),
    ):
        file = folder / f"packed.{name}"
        write = lambda pack=pack, file=file: file.write_bytes(pack(data))  # noqa: E731
        read = lambda unpack=unpack, file=file: unpack(file.read_bytes())  # noqa: E731
        sizes[name] = _archive(write, read, data, 1, file)
    return {**sizes, "codes": _codes(plain, folder)}


def _archive(
    pack: Callable[[], Any], restore: Callable[[], bytes], data: bytes, rounds: int, file: Path
) -> dict[str, Any]:
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        start = time.process_time()
        pack()
        between = time.process_time()
        restored = restore()
        times.append((between - start, time.process_time() - between))
        if restored != data:
            raise SystemExit(f"{file.name} gives another model")
    seconds = [min(column) for column in zip(*times, strict=True)]
    return {"bytes": file.stat().st_size, "pack_seconds": seconds[0], "restore_seconds": seconds[1]}


def _codes(plain: Path, folder: Path) -> dict[str, Any] | None:
    """The integer weights, in a model of their own and by themselves."""
    arrays = {f"w{index}": array for index, array in enumerate(_integers(onnx.load(plain)))}
    if not arrays:
        return None
    np.savez(folder / "codes.npz", **arrays)
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    output = [helper.make_tensor_value_info("w0", tensors[0].data_type, None)]
    alone = folder / "codes.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "codes", [], output, tensors)), alone)
    counts = [np.bincount(array.view(np.uint8).ravel(), minlength=256)[None] for array in arrays.values()]
    return {
        "count": sum(array.size for array in arrays.values()),
        "entropy": sum(entropy(count) for count in counts),
        "packed": onnxcomp.pack(alone, folder / "codes.onnxz"),
    }


def _integers(model: onnx.ModelProto) -> list[Array]:
    found = [numpy_helper.to_array(tensor) for tensor in _tensors(model.graph)]
    return [np.ascontiguousarray(array) for array in found if array.dtype == np.int8 and array.ndim > 1 and array.size]


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    inner = [tensor for attribute in attributes if attribute.HasField("g") for tensor in _tensors(attribute.g)]
    return [*graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t")), *inner]


if __name__ == "__main__":
    print(json.dumps(packed(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
