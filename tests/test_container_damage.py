"""Packed models that are damaged or hostile are refused, and leave nothing behind."""

from __future__ import annotations

import contextlib
import functools
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxcomp
from onnxcomp.container import decoding, encoding, format, packing, segments
from onnxcomp.container.format import GROWTH
from onnxcomp.container.rans import CodeError
from onnxcomp.container.restoring import header_of
from onnxcomp.container.wire import Reader, Writer, deflated, inflated
from onnxcomp.errors import InputError
from tests import models
from tests.packing import codes, external, holding, quick, there_and_back

Array = np.ndarray[Any, Any]


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
    assert "holds more than it should" in refused(packed + bytes(1), tmp_path)


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
    body = Writer()
    body.number(encoding.CODED)
    body.number(size)
    body.number(len(head))
    body.data(deflated(head))
    body.plain(bytes(64))
    with pytest.raises((CodeError, ValueError, IndexError, OverflowError)):
        decoding.decode(body.done(), size)


@pytest.mark.parametrize("kind", ["of one byte", "of few"])
def test_a_head_cannot_describe_more_arrays_than_its_block_is_worth(kind: str) -> None:
    size, count = (2**24, segments.MOST_ARRAYS + 1) if kind == "of few" else (2**14, 2**14)
    nbytes = size // count
    head = Writer()
    for number in (size - nbytes * count, 0, count, *(0, 2, 1, nbytes, 1) * count, 0, *(0, 0) * count):
        head.number(number)
    body = Writer()
    for number in (encoding.CODED, size, len(head.done())):
        body.number(number)
    body.data(deflated(head.done()))
    body.plain(bytes(64))
    with pytest.raises(CodeError, match=f"a number is {count} where"):
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


OUTSIDE = ["./w.bin", "a//w.bin", "../w.bin", "/tmp/w.bin", "a/../../w.bin", "a\\w.bin", "w\0.bin", ".", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_outside_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    files = (format.StoredFile("", 1, bytes(32)), format.StoredFile(name, 1, bytes(32)))
    assert "in the model's folder" in refused(format.Header(files, {}).encoded(), tmp_path)


def test_no_version_is_refused(packed: bytes, tmp_path: Path) -> None:
    data = bytearray(packed)
    data[len(format.MAGIC)] = 0
    assert "it is of no version of the format" in refused(bytes(data), tmp_path)


def test_a_newer_version_is_named(packed: bytes, tmp_path: Path) -> None:
    data = bytearray(packed)
    data[len(format.MAGIC)] = 9
    assert "version 9 of the format, and 1 is known; update onnxcomp" in refused(bytes(data), tmp_path)


def test_zeros_take_no_less_than_the_format_allows(tmp_path: Path) -> None:
    size = there_and_back(holding(np.zeros(1_000_000, np.float32)), tmp_path)
    assert 4_000_000 / GROWTH <= size < 4_000_000 / GROWTH + 4000


def test_zeros_at_the_end_are_as_many_as_they_must_be(tmp_path: Path) -> None:
    proto = holding(codes(9, 9))
    proto.doc_string = 8_000_000 * " "  # which LZMA makes smaller than is allowed
    there_and_back(proto, tmp_path)
    data = (tmp_path / "net.onnxz").read_bytes()
    for path in tmp_path.iterdir():
        path.unlink()
    assert data.endswith(bytes(100))
    assert "holds more than it should" in refused(data + bytes(1), tmp_path)
    assert "cannot hold" in refused(data[:-1], tmp_path)


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
    for data in (b"no model at all", b""):
        (tmp_path / "net.onnx").write_bytes(data)
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


@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
@settings(quick, max_examples=60)
def test_a_head_with_other_bytes_gives_a_code_error_or_a_block(edits: list[tuple[float, int]]) -> None:
    """As someone would write it who knows the format: only what it says is wrong, and the rest fits."""
    reader = Reader(several_arrays())
    kind, size, head_size = reader.number(), reader.number(), reader.number()
    head = bytearray(inflated(reader.data(), head_size))
    for place, value in edits:
        head[int(place * len(head))] = value
    body = Writer()
    for number in (kind, size, len(head)):
        body.number(number)
    body.data(deflated(bytes(head)))
    body.plain(reader.plain(reader.left))
    with contextlib.suppress(CodeError):  # what restoring makes one sentence of
        assert len(decoding.decode(body.done(), size)) == size


@functools.cache
def several_arrays() -> bytes:
    """The code of a block with arrays of several forms."""
    generator = np.random.default_rng(0)
    sparse = np.where(generator.random((40, 64)) < 0.6, 0, codes(40, 64)).astype(np.int8)
    smooth = np.rint(generator.normal(0, 20, (20, 16, 1)) + generator.normal(0, 6, (20, 16, 9))).astype(np.int8)
    scales = generator.random(100).astype(np.float32)
    arrays = [codes(48, 64), sparse, smooth, scales, scales * np.float32(0.3), scales]
    data, found = b"head", []
    for array in arrays:
        rows, columns, taps = (*array.shape, 1, 1)[:3] if array.ndim > 1 else (1, array.size, 1)
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        found.append(segments.Segment(len(data), array.nbytes, element, (rows, columns, taps)))
        data += array.tobytes() + b"between"
    return encoding.encode(data, found)
