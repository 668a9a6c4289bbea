"""Restored files stay in their folder, replace nothing, and are gone again when restoring fails."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import onnxcomp
from onnxcomp.container.format import Header, StoredFile, block, is_packed
from onnxcomp.container.wire import Writer
from onnxcomp.errors import InputError
from tests import models
from tests.packing import external


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (folder := tmp_path / "there").mkdir()
    return folder


def packing(folder: Path, **contents: bytes) -> Path:
    """A container with external files of these names (with ``__`` for a slash)."""
    files = {"": b"model", **{name.replace("__", "/"): data for name, data in contents.items()}}
    stored = tuple(StoredFile(name, len(data), hashlib.sha256(data).digest()) for name, data in files.items())
    container = Header(stored, {}).encoded()
    for data in files.values():
        body = Writer()
        body.number(0)
        body.data(data)
        container += block(body.done())
    (folder / "net.onnxz").write_bytes(container)
    return folder / "net.onnxz"


def tree(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder, and below it."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        special = path.is_symlink() or not path.is_file()
        found[path.relative_to(folder).as_posix()] = "link, folder or pipe" if special else path.read_bytes()
    return found


def refused(source: Path, destination: Path) -> str:
    """The sentence with which a container is refused; nothing is left of what was restored of it."""
    folder = source.parent
    before = tree(folder)
    with pytest.raises(InputError) as caught:
        onnxcomp.restore(source, destination)
    assert tree(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_files_than_may_be_open_come_back(tmp_path: Path, there: Path) -> None:
    proto = models.initializers_of({f"w{index}": np.zeros(8, np.float32) for index in range(200)})
    for index, tensor in enumerate(proto.graph.initializer):
        (tmp_path / f"{index}.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{index}.bin")
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 50, limits[1]))
    try:
        onnxcomp.restore(tmp_path / "net.onnxz", there / "net.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list(there.iterdir())) == 201


@pytest.mark.parametrize("place", [-1, -60, -4100], ids=["last byte", "last file", "an earlier one"])
def test_a_failure_leaves_neither_files_nor_folders(place: int, tmp_path: Path, there: Path) -> None:
    source = packing(tmp_path, a__b__first=bytes(range(99)), a__c=os.urandom(4000), d__e=b"last")
    data = bytearray(source.read_bytes())
    data[place] ^= 1
    source.write_bytes(data)
    (there / "a").mkdir()  # was there before, and stays
    assert "cannot be restored" in refused(source, there / "net.onnx")


def test_what_was_there_before_stays_when_restoring_fails(tmp_path: Path, there: Path) -> None:
    source = packing(tmp_path, kept=b"the same", last=b"last")
    (there / "kept").write_bytes(b"the same")
    source.write_bytes(source.read_bytes()[:-1])
    refused(source, there / "net.onnx")
    assert tree(there) == {"kept": b"the same"}


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    source = packing(tmp_path, a__w=b"weights")
    assert f"its folder {tmp_path / 'none'} does not exist" in refused(source, tmp_path / "none/net.onnx")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, there: Path) -> None:
    (there / "a").write_bytes(b"a file")
    for name in ("a__w", "a__b__w"):
        said = refused(packing(tmp_path, first=b"first", **{name: b"weights"}), there / "net.onnx")
        assert "Not a directory; restore it into another folder" in said


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, there: Path) -> None:
    (there / "w").mkdir()
    assert "its external data w would replace" in refused(packing(tmp_path, w=b"weights"), there / "net.onnx")


@pytest.mark.parametrize("target", ["../outside", "../missing"])
@pytest.mark.parametrize("name", ["a/w", "a/b/w"])
def test_links_do_not_lead_out_of_the_folder(target: str, name: str, tmp_path: Path, there: Path) -> None:
    (tmp_path / "outside").mkdir()
    (there / "a").symlink_to(target)
    said = refused(packing(tmp_path, **{name.replace("/", "__"): b"weights"}), there / "net.onnx")
    assert f"its external data {name} would leave {there} through a link" in said


def test_a_link_within_the_folder_may_be_used(tmp_path: Path, there: Path) -> None:
    (there / "real").mkdir()
    (there / "a").symlink_to("real")
    onnxcomp.restore(packing(tmp_path, a__w=b"weights"), there / "net.onnx")
    assert (there / "real/w").read_bytes() == b"weights"


def test_links_and_pipes_in_the_place_of_a_file_are_refused(tmp_path: Path, there: Path) -> None:
    (tmp_path / "same").write_bytes(b"weights")
    source = packing(tmp_path, w=b"weights")
    for target in ("../same", "../missing", "w"):
        (there / "w").symlink_to(target)
        assert "w would replace" in refused(source, there / "net.onnx")
        (there / "w").unlink()
    os.mkfifo(there / "w")
    assert "w would replace" in refused(source, there / "net.onnx")


def test_a_pipe_is_no_container(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_packed(tmp_path / "pipe")
    assert "pipe: is no plain file" in refused(tmp_path / "pipe", tmp_path / "net.onnx")


NAMES = {"w": ["w", "w"], "a folder": ["w", "w/x"], "a folder above": ["w", "w/x/y"]}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_that_cannot_be_there_together_are_refused(names: list[str], tmp_path: Path, there: Path) -> None:
    files = (StoredFile("", 0, bytes(32)), *(StoredFile(name, 0, bytes(32)) for name in names))
    (tmp_path / "net.onnxz").write_bytes(Header(files, {}).encoded())
    assert "two of its files have the same name" in refused(tmp_path / "net.onnxz", there / "net.onnx")


def test_names_too_long_for_a_file_system_are_refused(tmp_path: Path, there: Path) -> None:
    said = refused(packing(tmp_path, **{"a__" + "é" * 128: b"weights"}), there / "net.onnx")
    assert "a file's name has more than 255 bytes" in said
    said = refused(packing(tmp_path, **{"__".join(["n" * 250] * 40): b"weights"}), there / "net.onnx")
    assert "name too long; restore it into another folder" in said


def test_the_model_is_not_restored_to_a_name_that_its_weights_need(tmp_path: Path, there: Path) -> None:
    source = packing(tmp_path, a__w=b"weights")
    assert "is the name of the model's external data" in refused(source, there / "a")


def test_a_file_that_comes_meanwhile_is_not_replaced(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where upper and lower case are the same: the second file finds the first in its place."""
    source = packing(tmp_path, w=b"weights", x=b"others")
    lexists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: Path(path).name == "x" or lexists(path))
    assert "its external data x would replace" in refused(source, there / "net.onnx")


def test_nothing_is_packed_or_restored_onto_itself(tmp_path: Path) -> None:
    plain = external(tmp_path, "net.bin")
    os.link(plain, tmp_path / "other.onnx")
    before = tree(tmp_path)
    for name in ("net.onnx", "net.bin", "other.onnx", "./net.bin"):
        with pytest.raises(InputError, match="is the model that is to be packed, or its weights"):
            onnxcomp.pack(plain, tmp_path / name)
    assert tree(tmp_path) == before
    onnxcomp.pack(plain, tmp_path / "net.onnxz")
    assert "is the packed model itself" in refused(tmp_path / "net.onnxz", tmp_path / "net.onnxz")
