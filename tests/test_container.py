"""Packed models are restored to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxcomp
from onnxcomp.container import encoding, heads, segments
from onnxcomp.errors import InputError
from tests import models
from tests.generate import Program, networks, statements
from tests.packing import codes, external, holding, quick, there_and_back
from tests.zoo import each_model, zoo_model

Array = np.ndarray[Any, Any]

BUILT: list[Callable[[], onnx.ModelProto]] = [
    models.documented,
    models.several_opsets,
    models.overloaded_functions,
    models.initializers_that_are_inputs,
    models.branches,
    models.constant_nodes,
    models.rare_attributes,
    models.sparse_initializer,
]


@pytest.mark.parametrize("build", BUILT)
def test_models_of_every_kind_come_back(build: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    there_and_back(build(), tmp_path)


@given(net=networks())
@quick
def test_generated_networks_come_back(net: Any, tmp_path: Path) -> None:
    there_and_back(net.proto(), tmp_path)


@given(body=statements(), seed=st.integers(0, 99))
@quick
def test_generated_programs_come_back(body: Any, seed: int, tmp_path: Path) -> None:
    there_and_back(Program(body, seed=seed).proto(), tmp_path)


def bits_of(element: int) -> int:
    return {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.get(
        TensorProto.DataType.Name(element), 8 * helper.tensor_dtype_to_np_dtype(element).itemsize
    )


ELEMENTS = [number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]


@pytest.mark.parametrize("element", ELEMENTS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("kind", ["noise", "zeros", "sparse", "structure", "repeated"])
def test_every_type_comes_back(element: int, kind: str, tmp_path: Path) -> None:
    rows, columns = 24, 40
    size = rows * columns * bits_of(element) // 8
    generator = np.random.default_rng(element)
    data = generator.integers(0, 256, size, np.uint8)
    if kind == "zeros":
        data[:] = 0
    elif kind == "sparse":
        data[generator.random(size) < 0.7] = 0
    elif kind == "structure":
        data = np.clip(np.rint(generator.normal(0, 4, size)), -127, 127).astype(np.int8).view(np.uint8)
    elif kind == "repeated":
        data = np.tile(data[: size // 8], 8)
    proto = models.initializers_of({"w": np.zeros(1, np.float32)})
    tensor = TensorProto(name="w", data_type=element, dims=(rows, columns), raw_data=data.tobytes())
    proto.graph.initializer[0].CopyFrom(tensor)
    size = there_and_back(proto, tmp_path)
    assert size < len(proto.SerializeToString()) + 200


@given(
    shape=st.lists(st.integers(0, 9), max_size=5),
    dtype=st.sampled_from([np.int8, np.uint8, np.float32, np.float16, np.int64, np.bool_]),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
@quick
def test_arrays_of_any_shape_come_back(shape: list[int], dtype: Any, zeros: float, seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    array = generator.normal(0, 30, shape).astype(dtype)
    array = np.where(generator.random(shape) < zeros, np.zeros((), dtype), array)
    there_and_back(holding(array), tmp_path)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, -0.0, 5e-45])
def test_special_floats_come_back(special: float, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    array[::3] = special
    array[1, :] = np.frombuffer(np.arange(0x7F800001, 0x7F800001 + 40, dtype=np.uint32).tobytes(), np.float32)
    there_and_back(holding(array), tmp_path)


def test_typed_fields_come_back(tmp_path: Path) -> None:
    proto = models.initializers_of({"w": np.zeros(1, np.float32)})
    proto.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [64], np.arange(64.0)))
    assert not proto.graph.initializer[0].HasField("raw_data")
    there_and_back(proto, tmp_path)


def test_a_weight_of_several_blocks_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK", 2**13)
    there_and_back(holding(codes(60, 32, 3, 3)), tmp_path)
    there_and_back(holding(np.random.default_rng(0).normal(size=(5, 2999)).astype(np.float32)), tmp_path)


def test_many_small_weights_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"w{index}": codes(int(generator.integers(1, 40)), 20, seed=index) for index in range(300)}
    size = there_and_back(models.initializers_of(arrays), tmp_path)
    monkeypatch.setattr(segments, "MOST_ARRAYS", 32)
    assert there_and_back(models.initializers_of(arrays), tmp_path) > size  # in more blocks


def test_a_head_that_lzma_makes_too_small_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = there_and_back(holding(codes(300, 400)), tmp_path)
    for module in (encoding, heads):
        monkeypatch.setattr(module, "HEAD_GROWTH", 1)
    assert there_and_back(holding(codes(300, 400)), tmp_path) > size  # without an array


def test_many_large_weights_and_their_ends_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a weight in its last block may be smaller than any weight is."""
    monkeypatch.setattr(segments, "BLOCK", 2**12)
    arrays = {f"w{index}": codes(2**12 + 1 + index, 1, seed=index) for index in range(9)}
    there_and_back(models.initializers_of({**arrays, "rows": codes(43, 200)}), tmp_path)


@pytest.mark.parametrize("special", [0.0, -0.0, 1e-40, 2e-38, np.inf, np.nan])
def test_products_on_which_processors_differ_are_not_relied_on(special: float, tmp_path: Path) -> None:
    scales = np.random.default_rng(0).random(500).astype(np.float32)
    alone = there_and_back(holding(scales), tmp_path)
    scales[7] = special
    size = there_and_back(models.initializers_of({"a": scales, "b": scales * np.float32(0.3)}), tmp_path)
    is_multiple = size < alone + 100
    assert is_multiple == (special == 0)  # 0.3 · 2e-38 is a denormal number


def test_unusual_encodings_of_a_message_come_back(tmp_path: Path) -> None:
    proto = holding(codes(64, 64))
    data = proto.SerializeToString() + b"\xfa\x07\x03new"  # a field of a newer ONNX
    there_and_back(data, tmp_path)


def test_external_data_come_back_beside_the_model(tmp_path: Path) -> None:
    plain = external(tmp_path)
    onnxcomp.pack(plain, tmp_path / "net.onnxz")
    (there := tmp_path / "there").mkdir()
    onnxcomp.restore(tmp_path / "net.onnxz", there / "other.onnx")
    assert (there / "other.onnx").read_bytes() == plain.read_bytes()
    assert (there / "weights/net.bin").read_bytes() == (tmp_path / "weights/net.bin").read_bytes()
    assert sorted(path.name for path in there.rglob("*")) == ["net.bin", "other.onnx", "weights"]
    onnxcomp.restore(tmp_path / "net.onnxz", there / "other.onnx")  # what is the same may be there


def test_external_data_replace_no_other_file(tmp_path: Path) -> None:
    onnxcomp.pack(external(tmp_path, "net.bin"), tmp_path / "net.onnxz")
    (there := tmp_path / "there").mkdir()
    (there / "net.bin").write_bytes(b"of another model")
    with pytest.raises(InputError, match=r"would replace .*net\.bin; restore it into another folder"):
        onnxcomp.restore(tmp_path / "net.onnxz", there / "net.onnx")
    assert [path.read_bytes() for path in there.iterdir()] == [b"of another model"]


def test_the_same_model_gives_the_same_container(tmp_path: Path) -> None:
    there_and_back(holding(codes(64, 32, 3, 3)), tmp_path)
    before = (tmp_path / "net.onnxz").read_bytes()
    there_and_back(holding(codes(64, 32, 3, 3)), tmp_path)
    assert (tmp_path / "net.onnxz").read_bytes() == before


@pytest.mark.zoo
@each_model
def test_real_models_come_back(name: str, tmp_path: Path) -> None:
    path = zoo_model(name)
    onnxcomp.pack(path, tmp_path / "net.onnxz")
    onnxcomp.restore(tmp_path / "net.onnxz", tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == path.read_bytes()
    assert (tmp_path / "net.onnxz").stat().st_size < 0.95 * path.stat().st_size
