"""Packed models: restored to the bit, refused when damaged, and small."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import norm

import onnxcomp
from onnxcomp import Model, OnnxcompError
from onnxcomp.container import decoding, encoding, format, packing, restoring, segments
from onnxcomp.container.format import GROWTH, is_packed
from onnxcomp.container.restoring import header_of
from onnxcomp.errors import InputError
from tests import models
from tests.command import Command
from tests.generate import Program, networks, statements
from tests.zoo import each_model, zoo_model

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


# -- there and back --------------------------------------------------------------------------------------------

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


def test_unusual_encodings_of_a_message_come_back(tmp_path: Path) -> None:
    proto = holding(codes(64, 64))
    data = proto.SerializeToString() + b"\xfa\x07\x03new"  # a field of a newer ONNX
    there_and_back(data, tmp_path)


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


# -- what is small ---------------------------------------------------------------------------------------------


def coded(array: Array) -> int:
    """Bytes of an array's block."""
    data = array.tobytes()
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    shape = segments.shape_of(encoding_span(array, element))
    body = encoding.encode(data, [segments.Segment(0, len(data), element, shape)])
    assert decoding.decode(body, len(data)) == data
    return len(body)


def encoding_span(array: Array, element: int) -> Any:
    from onnxcomp.container.spans import Span

    return Span(0, array.nbytes, element, array.shape)


def entropy(array: Array) -> float:
    """Bytes that independent symbols of this distribution take."""
    _, counts = np.unique(array, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("spread", [0.3, 2.0, 30.0])
def test_codes_take_their_entropy(spread: float) -> None:
    array = np.rint(np.random.default_rng(0).laplace(0, spread, (300, 700)))
    array = np.clip(array, -127, 127).astype(np.int8)
    assert coded(array) <= 1.01 * entropy(array) + 300


def test_rows_of_other_scales_take_less_than_the_entropy_of_all() -> None:
    generator = np.random.default_rng(0)
    scale = 16 * np.exp2(generator.uniform(-2, 1, 256))
    array = np.clip(np.rint(generator.normal(0, scale[:, None], (256, 1024))), -127, 127).astype(np.int8)
    edges = norm.cdf((np.arange(-127, 127) + 0.5) / scale[:, None])
    shares = np.diff(edges, axis=1, prepend=0.0, append=1.0)
    by_row = -(shares * np.log2(np.maximum(shares, 1e-300))).sum() * 1024 / 8
    assert coded(array) <= 1.01 * by_row + 300 < 0.97 * entropy(array)


def test_neighbours_in_kernels_are_predicted() -> None:
    generator = np.random.default_rng(0)
    smooth = generator.normal(0, 20, (96, 64, 1, 1)) + generator.normal(0, 10, (96, 64, 3, 3))
    array = np.clip(np.rint(smooth), -127, 127).astype(np.int8)
    # By the chain rule: each tap given those before it is normal, of a variance that is known.
    after = [10**2 * (1 + 400 / (100 + 400 * tap)) for tap in range(9)]
    bits = sum(0.5 * np.log2(2 * np.pi * np.e * variance) for variance in after) * 96 * 64
    assert coded(array) <= 1.02 * bits / 8 + 300 < 0.97 * entropy(array)


def test_zeros_in_groups_take_the_entropy_of_their_places() -> None:
    generator = np.random.default_rng(0)
    array = generator.integers(1, 128, (256, 256)).astype(np.int8)
    keep = np.argsort(generator.random((256, 64, 4)), axis=2) < 2
    array[~keep.reshape(256, 256)] = 0
    places = 256 * 64 * np.log2(6) / 8
    assert coded(array) <= 1.02 * (places + 256 * 128 * np.log2(127) / 8) + 300


def test_blocks_of_zeros_take_next_to_nothing() -> None:
    generator = np.random.default_rng(0)
    array = codes(256, 256)
    keep = np.kron(generator.random((16, 16)) < 0.5, np.ones((16, 16), bool))
    array = np.where(keep, np.where(array == 0, 1, array), 0).astype(np.int8)
    assert coded(array) <= 1.02 * entropy(array[keep]) + 500


def test_nibbles_take_their_entropy() -> None:
    generator = np.random.default_rng(0)
    array = np.clip(np.rint(generator.normal(0, 2, (300, 400))), -8, 7).astype(np.int64)
    data = ((array[:, ::2] & 15) | (array[:, 1::2] & 15) << 4).astype(np.uint8)
    segment = segments.Segment(0, data.size, TensorProto.INT4, (300, 200, 1))
    body = encoding.encode(data.tobytes(), [segment])
    assert decoding.decode(body, data.size) == data.tobytes()
    assert len(body) <= 1.02 * entropy(array) + 300


def test_exponents_of_floats_take_their_entropy() -> None:
    array = np.random.default_rng(0).normal(0, 0.02, (200, 500)).astype(np.float32)
    exponents = (array.view(np.uint32) >> 23) & 255
    assert coded(array) <= entropy(exponents) + 1.003 * 3 * array.size + 300


def test_a_multiple_of_another_array_takes_nothing(tmp_path: Path) -> None:
    scales = np.random.default_rng(0).random(1000).astype(np.float32)
    alone = there_and_back(holding(scales), tmp_path)
    both = models.initializers_of({"a": scales, "b": scales * np.float32(0.0123), "c": scales})
    assert there_and_back(both, tmp_path) < alone + 100


def test_noise_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    assert there_and_back(holding(noise), tmp_path) < noise.nbytes + 400


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small container with arrays of every form."""
    folder = tmp_path_factory.mktemp("packed")
    generator = np.random.default_rng(0)
    scales = generator.random(100).astype(np.float32)
    kernels = np.rint(generator.normal(0, 20, (20, 16, 1, 1)) + generator.normal(0, 9, (20, 16, 3, 3)))
    sparse = np.where(generator.random((40, 64)) < 0.6, 0, codes(40, 64)).astype(np.int8)
    arrays = {
        "scaled": codes(48, 64), "kernels": np.clip(kernels, -127, 127).astype(np.int8), "sparse": sparse,
        "scales": scales, "multiple": scales * np.float32(0.3), "same": scales,
        "weights": generator.normal(size=(20, 30)).astype(np.float32), "empty": np.zeros(900, np.int16),
        "whole": np.tile(generator.normal(size=64), 9).astype(np.float32),
    }  # fmt: skip
    there_and_back(models.initializers_of(arrays), folder)
    return (folder / "net.onnxz").read_bytes()


def refused(data: bytes, folder: Path) -> str:
    """Restores damaged bytes; returns the sentence that refuses them. Nothing may be left behind."""
    (source := folder / "damaged.onnxz").write_bytes(data)
    target = folder / "out.onnx"
    with pytest.raises(InputError) as caught:
        onnxcomp.restore(source, target)
    assert [path.name for path in folder.iterdir()] == ["damaged.onnxz"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_refused(packed: bytes, tmp_path: Path) -> None:
    for length in {*range(0, len(packed), 397), *range(80), len(packed) - 1}:
        assert "damaged.onnxz" in refused(packed[:length], tmp_path)


def test_bytes_behind_the_end_are_refused(packed: bytes, tmp_path: Path) -> None:
    assert "holds more than it should" in refused(packed + b"x", tmp_path)
    assert "holds more than it should" in refused(packed + bytes(100_000), tmp_path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(quick, max_examples=50)
def test_every_flipped_bit_is_refused(packed: bytes, place: float, bit: int, tmp_path: Path) -> None:
    data = bytearray(packed)
    data[int(place * len(data))] ^= 1 << bit
    refused(bytes(data), tmp_path)


def with_right_checksums(data: bytes) -> bytes:
    """What someone who wants to do harm would write: all checksums of blocks are right."""
    stream = bytearray(data)
    at = len(format.MAGIC) + 1
    while at < len(stream):
        size = shift = 0
        while True:
            byte = stream[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        end = at + size
        if end + 4 > len(stream):
            break
        stream[end : end + 4] = zlib.crc32(bytes(stream[at:end])).to_bytes(4, "little")
        at = end + 4
    return bytes(stream)


@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
@settings(quick, max_examples=60)
def test_damage_behind_right_checksums_is_refused(
    packed: bytes, edits: list[tuple[float, int]], tmp_path: Path
) -> None:
    data = bytearray(packed)
    for place, value in edits:
        data[int(place * len(data))] = value
    damaged = with_right_checksums(bytes(data))
    if damaged != packed:
        (tmp_path / "damaged.onnxz").write_bytes(damaged)
        try:
            onnxcomp.restore(tmp_path / "damaged.onnxz", tmp_path / "out.onnx")
        except InputError:
            assert not (tmp_path / "out.onnx").exists()
        else:  # only what says nothing about the model may have been changed
            assert header_of(tmp_path / "damaged.onnxz").files == header_of_bytes(packed, tmp_path).files
            (tmp_path / "out.onnx").unlink()


def header_of_bytes(data: bytes, folder: Path) -> format.Header:
    (folder / "whole.onnxz").write_bytes(data)
    header = header_of(folder / "whole.onnxz")
    (folder / "whole.onnxz").unlink()
    return header


@given(head=st.binary(min_size=1, max_size=300), size=st.integers(1, 2**24))
@settings(quick, max_examples=200)
def test_a_head_that_says_anything_is_refused(head: bytes, size: int) -> None:
    from onnxcomp.container.rans import CodeError
    from onnxcomp.container.wire import Writer, deflated

    body = Writer()
    body.number(encoding.CODED)
    body.number(size)
    body.number(len(head))
    body.data(deflated(head))
    body.plain(bytes(64))
    with pytest.raises((CodeError, ValueError, IndexError, OverflowError)):
        decoding.decode(body.done(), size)


def claiming(size: int, name: str = "") -> bytes:
    return format.Header((format.StoredFile(name, size, bytes(32)),), {}).encoded()


def test_a_container_cannot_claim_more_than_it_can_hold(tmp_path: Path) -> None:
    assert "cannot hold" in refused(claiming(2**50), tmp_path)


def test_a_model_does_not_replace_its_own_external_data(tmp_path: Path) -> None:
    onnxcomp.pack(external(tmp_path, "net.bin"), tmp_path / "net.onnxz")
    (there := tmp_path / "there").mkdir()
    with pytest.raises(InputError, match=r"net\.bin: is the name of the model's external data"):
        onnxcomp.restore(tmp_path / "net.onnxz", there / "net.bin")
    assert not list(there.iterdir())


@pytest.mark.parametrize(
    "name", ["./w.bin", "a//w.bin", "../w.bin", "/tmp/w.bin", "a/../../w.bin", "a\\w.bin", "w\0.bin", ".", ""]
)
def test_names_outside_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    files = (format.StoredFile("", 1, bytes(32)), format.StoredFile(name, 1, bytes(32)))
    assert "in the model's folder" in refused(format.Header(files, {}).encoded(), tmp_path)


def test_a_newer_version_is_named(packed: bytes, tmp_path: Path) -> None:
    data = bytearray(packed)
    data[len(format.MAGIC)] = 9
    assert "version 9 of the format, and 1 is known; update onnxcomp" in refused(bytes(data), tmp_path)


def test_zeros_take_no_less_than_the_format_allows(tmp_path: Path) -> None:
    size = there_and_back(holding(np.zeros(1_000_000, np.float32)), tmp_path)
    assert 4_000_000 / GROWTH <= size < 4_000_000 / GROWTH + 4000


def test_restoring_takes_memory_for_a_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "BLOCK", 2**15)
    peaks = []
    for rows in (32, 320):
        (tmp_path / "net.onnx").write_bytes(holding(codes(rows, 1024)).SerializeToString())
        onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
        tracemalloc.start()
        onnxcomp.restore(tmp_path / "net.onnxz", tmp_path / "again.onnx")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 2**18


def test_what_is_no_model_is_not_packed(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(b"no model at all")
    with pytest.raises(InputError, match="is not an ONNX model"):
        onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
    with pytest.raises(InputError, match="no such file"):
        onnxcomp.pack(tmp_path / "none.onnx", tmp_path / "net.onnxz")
    (tmp_path / "packed.onnxz").write_bytes(packed)
    with pytest.raises(InputError, match="is packed already"):
        onnxcomp.pack(tmp_path / "packed.onnxz", tmp_path / "net.onnxz")
    with pytest.raises(InputError, match="does not begin as a packed model does"):
        onnxcomp.restore(tmp_path / "net.onnx", tmp_path / "again.onnx")
    with pytest.raises(InputError, match="no such file"):
        onnxcomp.restore(tmp_path / "none.onnxz", tmp_path / "again.onnx")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "packed.onnxz"]


def test_a_packing_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").write_bytes(holding(codes(64, 64)).SerializeToString())
    (tmp_path / "net.onnxz").write_bytes(b"old")

    def fail(*_: Any) -> bytes:
        raise InputError("full")

    monkeypatch.setattr(packing.encoding, "encode", fail)
    with pytest.raises(InputError, match="full"):
        onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
    assert (tmp_path / "net.onnxz").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnxz"]


# -- models, sessions, the command -----------------------------------------------------------------------------


def test_a_packed_model_is_loaded_and_saved_as_any(tmp_path: Path) -> None:
    plain = external(tmp_path, "net.bin")
    model = Model.load(plain)
    model.save(tmp_path / "net.onnxz")
    assert is_packed(tmp_path / "net.onnxz")
    loaded = Model.load(tmp_path / "net.onnxz")
    assert loaded.path == tmp_path / "net.onnxz"
    assert loaded.serialize() == model.serialize()


def runnable(path: Path) -> dict[str, Array]:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32), "w")
    x, y = models.value("x", "n", 30), models.value("y", "n", 40)
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path.write_bytes(models.model_of(graph).SerializeToString())
    return {"x": np.random.default_rng(1).normal(size=(2, 30)).astype(np.float32)}


def test_sessions_of_packed_and_plain_models_are_the_same(tmp_path: Path) -> None:
    feeds = runnable(tmp_path / "net.onnx")
    onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
    outputs = [onnxcomp.load_session(tmp_path / name).run(None, feeds)[0] for name in ("net.onnx", "net.onnxz")]
    np.testing.assert_array_equal(*outputs)
    with pytest.raises(OnnxcompError, match=r"none\.onnx: ONNX Runtime cannot load it"):
        onnxcomp.load_session(tmp_path / "none.onnx")


def test_the_command_packs_restores_and_inspects(command: Command) -> None:
    runnable(command.folder / "net.onnx")
    before = (command.folder / "net.onnx").read_bytes()
    said = command.succeeds("net.onnx", "-o", "net.onnxz").out
    assert said.startswith("net.onnx: ")
    assert "-> net.onnxz: " in said
    command.succeeds("net.onnxz", "-o", "again.onnx", "-q")
    assert (command.folder / "again.onnx").read_bytes() == before
    assert command.succeeds("net.onnxz", "--report", "-").json()["input"]["bytes"] == len(before)


def test_the_command_compiles_and_packs(command: Command) -> None:
    runnable(command.folder / "net.onnx")
    said = command.succeeds("net.onnx", "-p", "fold", "-o", "small.onnxz", "--seed", 7)
    size = (command.folder / "small.onnxz").stat().st_size
    assert f"packed {size / 1000:.2f} kB" in " ".join(said.out.split())
    header = header_of(command.folder / "small.onnxz")
    assert header.recipe["pipeline"] == "fold"
    assert header.recipe["seed"] == 7
    report = command.succeeds("small.onnxz", "-p", "fold", "-o", "again.onnxz", "--report", "-").json()
    assert report["result"]["packed_bytes"] == (command.folder / "again.onnxz").stat().st_size


def test_the_command_says_what_it_cannot_pack(command: Command) -> None:
    runnable(command.folder / "net.onnx")
    command.succeeds("net.onnx", "-o", "net.onnxz")
    assert "is packed already" in command.fails("net.onnxz", "-o", "other.onnxz")
    assert "needs a pipeline" in command.fails("net.onnx", "-o", "other.onnx")
    assert "--data needs a pipeline" in command.fails("net.onnx", "-o", "other.onnxz", "--data", "x.npz")
    assert "is the model" in command.fails("net.onnxz", "-o", "net.onnxz", "-p", "fold")
    (command.folder / "cut.onnxz").write_bytes((command.folder / "net.onnxz").read_bytes()[:-20])
    assert "cut.onnxz: cannot be restored" in command.fails("cut.onnxz", "-o", "other.onnx")
    assert "cut.onnxz: cannot be restored" in command.fails("cut.onnxz")
    assert restoring.header_of(command.folder / "net.onnxz").files[0].size
