"""Models whose weights stay in files: copies, external data, large models, temporary files."""

from __future__ import annotations

import atexit
import gc
import hashlib
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import Model, compress
from onnxcomp.errors import InputError
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.report.environment import describe_input
from onnxcomp.runtime import session
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.storage import payload, reader, skeleton, writer
from onnxcomp.storage.skeleton import LEAST
from tests.generate import Net

Array = np.ndarray[Any, Any]


# -- the model -----------------------------------------------------------------------------------------------


def network() -> Net:
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", 16))
    x = net.activation(net.conv(x, 32))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 12)
    return net


def first_weight(model: Model) -> Any:
    inputs = model.graph.nodes[0].inputs
    return inputs[min(1, len(inputs) - 1)]


def test_a_copy_shares_weights_until_one_is_replaced() -> None:
    model = network().model()
    before = model.serialize()
    copied = model.copy()
    assign(first_weight(copied), value_of(first_weight(copied)) * 2)
    assert model.serialize() == before
    weights = [value_of(first_weight(each)) for each in (model, copied)]
    np.testing.assert_array_equal(weights[0] * 2, weights[1])


def test_a_weight_that_is_read_cannot_be_written_into() -> None:
    weight = value_of(first_weight(network().model()))
    with pytest.raises(ValueError, match="read-only"):
        weight[:] = 0


def test_what_graphsurgeon_reads_is_a_copy_of_its_own() -> None:
    model = network().model()
    first_weight(model).values *= 2
    np.testing.assert_array_equal(value_of(first_weight(model)), 2 * value_of(first_weight(network().model())))


def test_types_below_a_byte_are_unpacked() -> None:
    values = np.arange(4096).reshape(64, 64) % 16
    weight = helper.make_tensor("w", TensorProto.UINT4, values.shape, values.astype(np.uint8).reshape(-1))
    nodes = [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])]
    graph = helper.make_graph(nodes, "g", [], outputs, [TensorProto.FromString(weight.SerializeToString())])
    packed = (values.reshape(-1, 2) @ [1, 16]).astype(np.uint8)
    graph.initializer[0].ClearField("int32_data")
    graph.initializer[0].raw_data = packed.tobytes()
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model = Model.from_proto(proto)
    np.testing.assert_array_equal(np.asarray(value_of(first_weight(model)), np.int64), values)
    assert model.proto() == proto


# -- external data -------------------------------------------------------------------------------------------


def in_two_files(folder: Path, name: str = "net.onnx") -> Path:
    """The network with its weights in ``weights.bin``."""
    path = folder / name
    onnx.save(network().proto(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_weights_stay_external_aligned_and_are_the_same(tmp_path: Path) -> None:
    model = Model.load(in_two_files(tmp_path))
    size = model.save(tmp_path / "out.onnx")
    data = [path for path in tmp_path.iterdir() if re.fullmatch(r"out\.onnx\.[0-9a-f]{16}\.data", path.name)]
    assert len(data) == 1
    assert size == (tmp_path / "out.onnx").stat().st_size + data[0].stat().st_size
    assert Model.load(tmp_path / "out.onnx").serialize() == network().proto().SerializeToString(deterministic=True)
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in reader.external_tensors(stored)]
    assert len(entries) == 3  # a bias is smaller than what is worth a place there
    for entry in entries:
        assert int(entry["offset"]) % (4096 if int(entry["length"]) >= 2**16 else 64) == 0
    assert value_of(first_weight(Model.load(tmp_path / "out.onnx"))).shape == (16, 3, 3, 3)


def test_a_model_over_the_limit_is_written_as_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().model()
    model.save(tmp_path / "one.onnx")
    monkeypatch.setattr(writer, "LIMIT", 1000)
    model.save(tmp_path / "two.onnx")
    assert len(list(tmp_path.glob("two.onnx.*.data"))) == 1
    assert not list(tmp_path.glob("one.onnx.*"))
    assert Model.load(tmp_path / "two.onnx").serialize() == (tmp_path / "one.onnx").read_bytes()


def test_a_model_may_replace_the_one_it_was_read_from(tmp_path: Path) -> None:
    path = in_two_files(tmp_path)
    for factor in (2, 4):
        model = Model.load(path)
        assign(first_weight(model), value_of(first_weight(model)) * 2)
        model.save(path)
        assert len(list(tmp_path.glob("net.onnx.*.data"))) == 1  # the earlier output's is gone
        found = value_of(first_weight(Model.load(path)))
        np.testing.assert_array_equal(found, factor * value_of(first_weight(network().model())))
    assert (tmp_path / "weights.bin").exists()  # it is not ours


def test_a_write_that_fails_leaves_the_earlier_model_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_two_files(tmp_path)
    Model.load(path).save(path)
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    model = Model.load(path)
    assign(first_weight(model), value_of(first_weight(model)) * 2)
    replace = os.replace

    def fails_at_the_model(source: Any, target: Any) -> None:
        if Path(target).suffix == ".onnx":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_at_the_model)
    with pytest.raises(InputError, match="No space left"):
        model.save(path)
    monkeypatch.undo()
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    model.save(path)
    assert len(list(tmp_path.iterdir())) == len(before)


@pytest.mark.parametrize("moved", [True, False])
def test_weights_that_another_model_refers_to_stay(tmp_path: Path, moved: bool) -> None:
    path, other = in_two_files(tmp_path), tmp_path / "other.onnx"
    model = Model.load(path)
    model.save(path)
    (kept,) = tmp_path.glob("net.onnx.*.data")
    path.rename(other) if moved else shutil.copy(path, other)
    for _ in range(2):
        assign(first_weight(model), value_of(first_weight(model)) * 2)
        model.save(path)
        assert len(list(tmp_path.glob("net.onnx.*.data"))) == 2
    assert kept.exists()
    assert Model.load(other).serialize() == network().proto().SerializeToString(deterministic=True)
    other.unlink()
    model.save(path)
    assert not kept.exists()


def test_weights_of_a_run_that_was_killed_go_and_what_is_no_such_file_stays(tmp_path: Path) -> None:
    path = in_two_files(tmp_path)
    stray = tmp_path / f"net.onnx.{'0' * 16}.data"
    stray.write_bytes(b"never referred to")
    others = [tmp_path / f"net.onnx.{digit * 16}.data" for digit in "12"]
    others[0].mkdir()
    others[1].symlink_to("weights.bin")
    Model.load(path).save(path)
    assert not stray.exists()
    assert all(other.exists() for other in others)
    assert len(list(tmp_path.glob("net.onnx.*.data"))) == 3


def test_a_model_without_larger_weights_is_written_as_one_file(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    path = tmp_path / "net.onnx"
    proto = helper.make_model(graph, ir_version=8)
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    Model.load(path).save(tmp_path / "out.onnx")
    assert not list(tmp_path.glob("out.onnx.*"))
    np.testing.assert_array_equal(value_of(Model.load(tmp_path / "out.onnx").graph.nodes[0].inputs[1]), np.ones(4))


def test_two_runs_that_write_one_output_at_once_leave_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = in_two_files(tmp_path)
    first, second = Model.load(path), Model.load(path)
    assign(first_weight(second), value_of(first_weight(second)) * 2)
    write, done = writer._write, []

    def interrupted(place: Path, chunks: Any) -> int:
        size = write(place, chunks)
        if place.suffix == ".data" and not done:  # the first run's weights are there, its model is not yet
            done.append(True)
            second.save(path)
        return size

    monkeypatch.setattr(writer, "_write", interrupted)
    first.save(path)
    assert done
    assert Model.load(path).serialize() == network().proto().SerializeToString(deterministic=True)
    assert len(list(tmp_path.glob("net.onnx.*.data"))) == 1


def test_a_report_describes_all_files_of_a_model(tmp_path: Path) -> None:
    path = in_two_files(tmp_path)
    model = Model.load(path)
    assert model.files == [path, tmp_path / "weights.bin"]
    found = describe_input(model, 0, 0)
    content = path.read_bytes() + (tmp_path / "weights.bin").read_bytes()
    assert (found.bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    (tmp_path / "weights.bin").unlink()
    assert describe_input(model, 0, 0).bytes == len(network().proto().SerializeToString())
    assert model.copy().files == []


def test_a_file_that_is_cut_short_while_it_is_used_is_reported(tmp_path: Path) -> None:
    model = Model.load(in_two_files(tmp_path))
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(InputError, match="was cut short while it was in use"):
        model.save(tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


# -- large models --------------------------------------------------------------------------------------------


@pytest.fixture(params=["one file", "two files"])
def large(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is treated as one of many gigabytes."""
    if request.param == "two files":
        path = in_two_files(tmp_path)
    else:
        path = tmp_path / "net.onnx"
        onnx.save(network().proto(), path)
    monkeypatch.setattr(skeleton, "LARGE", 0)
    monkeypatch.setattr(reader, "_SMALL", 0)
    return path


def test_a_large_model_runs_from_its_files(large: Path) -> None:
    feeds = network().feeds()
    expected = session.run(session.create(network().proto().SerializeToString()), feeds)
    found = session.run(session.create(Model.load(large)), feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("pipeline", ["quant", "quant(mode='dynamic')", "prune(flops=0.3,align=1)", "reorder"])
def test_a_large_model_is_compressed_like_a_small_one(
    large: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    data = large.with_name("data.npz")
    np.savez(data, **network().feeds(16))
    found = compress(large, pipeline, data=str(data), timings="off")
    monkeypatch.undo()
    expected = compress(network().model(), pipeline, data=str(data), timings="off")
    assert all(record.status != "rolled back" for record in found.report.passes)
    assert found.model.serialize() == expected.model.serialize()
    assert found.report.result.latency_ratio is not None


def test_new_weights_of_a_large_model_leave_memory(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.model._WORTH_A_FILE", LEAST)
    model = Model.load(large)
    weight = first_weight(model)
    doubled = value_of(weight) * 2
    assign(weight, doubled)
    state = model.checkpoint()
    assert isinstance(weight._values, np.ndarray)
    model.put_weights_aside()
    assert not isinstance(weight._values, np.ndarray)
    np.testing.assert_array_equal(value_of(weight), doubled)
    feeds = network().feeds()
    found = session.run(session.create(model), feeds)
    state.restore()
    for name, value in session.run(session.create(model), feeds).items():
        np.testing.assert_array_equal(found[name], value)


# -- payloads ------------------------------------------------------------------------------------------------


def temporary_weights() -> list[Path]:
    return sorted(Path(payload._scratch(os.getpid())).iterdir())


def test_a_weight_that_was_replaced_takes_no_memory() -> None:
    model = network().model()
    weight = first_weight(model)
    replaced = np.ones(weight.shape, np.float32)
    weight.values = replaced
    model.skeleton()
    gone = weakref.ref(replaced)
    del replaced
    assign(weight, np.zeros(weight.shape, np.float32))
    gc.collect()
    assert gone() is None


def test_a_weight_that_was_put_aside_and_replaced_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "LARGE", 0)
    monkeypatch.setattr("onnxcomp.model._WORTH_A_FILE", LEAST)
    before = temporary_weights()
    model = network().model()
    weight = first_weight(model)
    for factor in range(3):
        assign(weight, np.full(weight.shape, factor, np.float32))
        model.put_weights_aside()
        gc.collect()
        assert len(temporary_weights()) == len(before) + 1
        assert value_of(first_weight(model.copy())).max() == factor
    del model, weight
    gc.collect()
    assert temporary_weights() == before


def test_a_full_disk_leaves_nothing_behind() -> None:
    before = temporary_weights()

    def chunks() -> Any:
        yield bytes(100)
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"put aside there \(No space left on device\); set TMPDIR"):
        payload._write_aside(chunks())
    assert temporary_weights() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_leaves_the_weights_of_its_parent_alone() -> None:
    ours = payload.InMemory(bytes([1]) * LEAST).in_file()
    child = os.fork()
    if not child:
        theirs = payload.InMemory(bytes([2]) * LEAST).in_file()
        right = bytes(ours.read()) == bytes([1]) * LEAST and theirs.source.path.parent != ours.source.path.parent
        del ours, theirs
        gc.collect()
        atexit._run_exitfuncs()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.source.path.parent.exists()
    assert bytes(ours.read()) == bytes([1]) * LEAST


@pytest.mark.parametrize("shared", [True, False])
def test_a_file_for_each_weight_needs_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(payload, "_CAN_SHARE", shared)
    paths = [tmp_path / f"{index}.bin" for index in range(300)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index % 256]) * LEAST)
    before = len(payload._KEPT)
    sources = [payload.SourceFile(path) for path in paths]
    assert len(payload._KEPT) == (128 if shared else before)
    for index, source in enumerate(sources):
        assert bytes(payload.InFile(source, 10, 20).read()) == bytes([index % 256]) * 20


@pytest.mark.parametrize("shared", [True, False])
def test_a_file_that_is_changed_while_it_is_used_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(payload, "_CAN_SHARE", shared)
    model = Model.load(in_two_files(tmp_path))
    path = tmp_path / "weights.bin"
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="was changed while it was in use; load the model again"):
        value_of(first_weight(model))


def test_a_large_model_runs_on_when_its_file_is_replaced(large: Path) -> None:
    feeds = network().feeds()
    model = Model.load(large)
    expected = session.run(session.create(model), feeds)
    changed = model.copy()
    assign(first_weight(changed), value_of(first_weight(changed)) * 2)
    changed.save(large)
    for path in large.parent.glob("*.bin"):
        path.unlink()
    for name, value in session.run(session.create(model), feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_full_disk_is_said_to_be_one_when_kernels_are_counted(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    model = Model.load(large)
    assign(first_weight(model), value_of(first_weight(model)) * 2)
    monkeypatch.setattr(payload, "_scratch", full)
    for use in (optimized_kernels, session.create):
        with pytest.raises(InputError, match=r"^\S+: weights cannot be put aside there \(No space left on device\)"):
            use(model)
