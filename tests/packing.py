"""Packing models in tests: there and back, and what is packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, settings
from onnx import TensorProto

import onnxcomp
from tests import models

__all__ = ["codes", "external", "holding", "quick", "there_and_back"]

Array = np.ndarray[Any, Any]

quick = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def there_and_back(proto: onnx.ModelProto | bytes, folder: Path) -> int:
    """Packs and restores a model, checks that its bytes are the same, and returns the size of the container."""
    plain, packed, again = folder / "net.onnx", folder / "net.onnxz", folder / "again.onnx"
    plain.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    size = onnxcomp.pack(plain, packed)
    assert size == packed.stat().st_size
    assert onnxcomp.restore(packed, again) == plain.stat().st_size
    assert again.read_bytes() == plain.read_bytes()
    return size


def codes(*shape: int, spread: float = 20.0, seed: int = 0) -> Array:
    """Like int8 weights: normal, each row with a scale of its own."""
    generator = np.random.default_rng(seed)
    scale = spread * np.exp2(generator.normal(0, 1, (shape[0],) + (1,) * (len(shape) - 1)))
    return np.clip(np.rint(generator.normal(0, 1, shape) * scale), -127, 127).astype(np.int8)


def holding(array: Array, element: int | None = None) -> onnx.ModelProto:
    proto = models.initializers_of({"w": array})
    if element is not None:
        proto.graph.initializer[0].data_type = element
    return proto


def external(folder: Path, name: str = "weights/net.bin") -> Path:
    """A model with external data, some of it shared, with bytes between that belong to no tensor."""
    first, second = codes(64, 64), np.random.default_rng(1).normal(size=2000).astype(np.float32)
    proto = models.initializers_of({"a": first, "b": second, "c": first})
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"between" * 9 + first.tobytes() + second.tobytes() + b"behind")
    for tensor, offset in zip(proto.graph.initializer, (63, 63 + first.nbytes, 63), strict=True):
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in ("location", name), ("offset", offset), ("length", len(tensor.raw_data)):
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"
