"""Packed models as models, in sessions and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

import onnxcomp
from onnxcomp import Model, OnnxcompError
from onnxcomp.container import restoring
from onnxcomp.container.format import is_packed
from onnxcomp.container.restoring import header_of
from tests import models
from tests.command import Command
from tests.packing import external

Array = np.ndarray[Any, Any]


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
