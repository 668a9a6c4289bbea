"""Packed models in temporary files: they go with the model, and errors name what the user named."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp import Model
from onnxcomp.container import aside, packing
from onnxcomp.container.format import is_packed
from onnxcomp.errors import InputError, SessionError
from onnxcomp.storage import reader
from tests import models
from tests.command import Command
from tests.packing import codes, external, holding


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model whose weights are in a file that has the name of the container, but for its suffix."""
    onnxcomp.pack(external(tmp_path, "model.onnx"), tmp_path / "model.onnxz")
    return tmp_path / "model.onnxz"


def test_temporary_copies_go_with_the_last_model_that_reads_them(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_SMALL", 0)
    model = Model.load(packed)
    folder = model.files[0].parent
    assert len(list(folder.iterdir())) == 2
    copy = model.copy()
    del model
    gc.collect()
    assert folder.exists()
    assert copy.serialize() == Model.load(packed).serialize()
    del copy
    gc.collect()
    assert not folder.exists()


def test_a_copy_that_cannot_be_restored_leaves_no_folder(packed: Path) -> None:
    before = set(aside.process_folder().iterdir())
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"model\.onnxz: cannot be restored"):
        Model.load(packed)
    gc.collect()
    assert set(aside.process_folder().iterdir()) == before


def test_weights_may_have_any_name_beside_a_temporary_copy(packed: Path, tmp_path: Path) -> None:
    plain = tmp_path / "net.onnx"
    assert Model.load(packed).serialize() == Model.load(plain).serialize()
    assert onnxcomp.load_session(packed).run(None, {})[0].tobytes() == codes(64, 64).tobytes()


def test_what_is_wrong_with_a_packed_model_is_said_of_it(tmp_path: Path) -> None:
    no_graph = onnx.ModelProto()
    no_graph.CopyFrom(holding(codes(40, 40)))
    del no_graph.graph.node[:], no_graph.graph.output[:]
    no_graph.graph.node.add(op_type="Nothing", input=["x"], output=["y"])  # x is nowhere
    (tmp_path / "net.onnx").write_bytes(no_graph.SerializeToString())
    onnxcomp.pack(tmp_path / "net.onnx", tmp_path / "net.onnxz")
    with pytest.raises(InputError) as caught:
        Model.load(tmp_path / "net.onnxz")
    assert str(caught.value).startswith(f"{tmp_path / 'net.onnxz'}: ")
    with pytest.raises(SessionError) as failed:
        onnxcomp.load_session(tmp_path / "net.onnxz")
    for said in (str(caught.value), str(failed.value)):
        assert "model.onnx:" not in said
        assert "onnxcomp-" not in said


@pytest.mark.parametrize("action", ["load", "session", "save"])
def test_a_full_place_for_temporary_files_is_named(
    action: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(tmp_path / "net.onnx")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        {
            "load": lambda: Model.load(packed),
            "session": lambda: onnxcomp.load_session(packed),
            "save": lambda: model.save(packed),
        }[action]()
    assert str(caught.value).startswith(f"{packed}: its temporary copy in ")
    assert str(caught.value).endswith("cannot be written: No space left on device; set TMPDIR")


def test_a_missing_place_for_temporary_files_is_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"model\.onnxz: its temporary copy in .*none cannot be written: No such file"):
        onnxcomp.load_session(packed)


def test_capital_letters_pack_as_well(command: Command) -> None:
    (command.folder / "net.onnx").write_bytes(holding(codes(40, 40)).SerializeToString())
    command.succeeds("net.onnx", "-o", "net.ONNXZ")
    assert is_packed(command.folder / "net.ONNXZ")
    Model.load(command.folder / "net.onnx").save(command.folder / "saved.OnnxZ")
    assert is_packed(command.folder / "saved.OnnxZ")


def test_the_longest_name_can_be_packed(tmp_path: Path) -> None:
    model = Model.load(external(tmp_path))
    name = "n" * 249 + ".onnxz"
    model.save(tmp_path / name)
    assert Model.load(tmp_path / name).serialize() == model.serialize()


def test_other_errors_pass_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_proto(models.initializers_of({"w": np.zeros(9, np.float32)}))

    def fail(*_: Any) -> int:
        raise InputError("of another place: failed")

    monkeypatch.setattr(packing, "pack", fail)
    with pytest.raises(InputError, match=r"^of another place: failed$"):
        model.save(tmp_path / "net.onnxz")
