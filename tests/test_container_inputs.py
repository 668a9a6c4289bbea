"""Unusual models are packed so that they come back, or are refused before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxcomp
from onnxcomp.container import format
from onnxcomp.container.format import Header
from onnxcomp.errors import InputError
from tests import models
from tests.packing import external, holding, there_and_back


def located(folder: Path, *locations: str) -> Path:
    """A model with a weight of 256 bytes in each of these places, which must exist."""
    proto = models.initializers_of({f"w{index}": np.zeros(64, np.float32) for index in range(len(locations))})
    for tensor, location in zip(proto.graph.initializer, locations, strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def not_packed(path: Path) -> str:
    """The sentence with which the model is refused; nothing is written."""
    before = sorted(os.listdir(path.parent))
    with pytest.raises(InputError) as caught:
        onnxcomp.pack(path, path.parent / "net.onnxz")
    assert sorted(os.listdir(path.parent)) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_names_that_lead_upwards_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/er")
    for name in ("w.bin", "deep/w.bin"):
        (tmp_path / name).write_bytes(os.urandom(256))
    said = not_packed(located(tmp_path, "w.bin", "link/../w.bin"))  # the second is deep/w.bin, and not w.bin
    assert "external data of 'w1' is in 'link/../w.bin'" in said
    assert "deep/../w.bin" in not_packed(located(tmp_path, "deep/../w.bin"))


def test_two_spellings_of_a_name_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(os.urandom(256))
    onnxcomp.pack(located(tmp_path, "w.bin", ".//w.bin"), tmp_path / "net.onnxz")
    (tmp_path / "there").mkdir()
    onnxcomp.restore(tmp_path / "net.onnxz", tmp_path / "there/net.onnx")
    assert (tmp_path / "there/w.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()


def test_names_that_are_no_text_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "name.bin").write_bytes(bytes(256))
    path = located(tmp_path, "name.bin")
    path.write_bytes(path.read_bytes().replace(b"name.bin", b"n\xff\xfee.bin"))
    assert "is no name of a file" in not_packed(path)


def test_a_header_that_cannot_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path, "net.bin")
    monkeypatch.setattr(format, "_MOST_FILES", 1)
    assert "net.onnx: cannot be packed, a number is 2 where 1 is the most there can be" in not_packed(path)
    monkeypatch.undo()
    monkeypatch.setattr(Header, "encoded", lambda _, encoded=Header.encoded: encoded(Header((), {})))
    assert "cannot be packed" in not_packed(path)


@pytest.mark.parametrize("element", [-1, 0, 255, 300, 2**31 - 1])
def test_types_that_nobody_knows_come_back(element: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, 900, np.uint8)
    there_and_back(holding(data, element), tmp_path)


@pytest.mark.parametrize("dims", [(-1, 900), (-30, -30), (0, 900), (2**62, 900), (7, 7), ()])
def test_dimensions_that_make_no_sense_come_back(dims: tuple[int, ...], tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 9, 900, np.uint8)
    proto: onnx.ModelProto = holding(data)
    proto.graph.initializer[0].dims[:] = dims
    there_and_back(proto, tmp_path)
