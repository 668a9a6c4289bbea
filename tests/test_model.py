"""Model: whatever a file holds is there again after loading, editing, undoing and saving."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir
import pytest
from onnx import TensorProto, external_data_helper, numpy_helper

from onnxcomp import model as model_module
from onnxcomp.codec.origins import drop_unused, nested_graphs
from onnxcomp.errors import InputError
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime import session
from tests import models
from tests.models import ARRAYS, FEATURES

Array = np.ndarray[Any, Any]


def initializers(proto: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def external_model(folder: Path) -> Path:
    """A model whose weight stands in the file ``w.bin`` beside it."""
    proto = models.documented()
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    (folder / "w.bin").write_bytes(weight.raw_data)
    external_data_helper.set_external_data(weight, "w.bin")
    weight.ClearField("raw_data")
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def set_location(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    next(entry for entry in weight.external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())


# -- nothing is lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", FEATURES)
def test_an_untouched_model_is_equal_field_for_field(feature: str, tmp_path: Path) -> None:
    proto = FEATURES[feature]()
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    assert model.proto() == proto
    assert model.proto() == proto, "writing a model must not change it"
    model.save(tmp_path / "copy.onnx")
    assert onnx.load(tmp_path / "copy.onnx") == proto


@pytest.mark.parametrize("feature", FEATURES)
def test_a_model_whose_weights_were_rewritten_holds_the_same(feature: str) -> None:
    """Every constant re-encoded: equal but for the fields that the data of a tensor may stand in."""
    proto = FEATURES[feature]()
    model = Model.from_proto(proto)
    for graph in nested_graphs(model.graph):
        for node in graph.nodes:
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and (old := value_of(tensor)) is not None:
                    assign(tensor, old.copy())
    found = model.proto()
    if feature == "sparse_initializer":  # becomes a dense one
        assert initializers(found)["w"].dtype == np.float32
        np.testing.assert_array_equal(initializers(found)["w"].reshape(-1)[[0, 5, 23, 1]], [1, 2, 3, 0])
        return
    for ours, theirs in zip(found.graph.initializer, proto.graph.initializer, strict=True):
        assert (ours.name, ours.data_type, ours.dims) == (theirs.name, theirs.data_type, theirs.dims)
        assert ours.doc_string == theirs.doc_string
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
        ours.CopyFrom(theirs)
    for message in (found, proto):
        for node in message.graph.node:
            for attribute in node.attribute:
                for body_tensor in attribute.g.initializer:
                    body_tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(body_tensor), body_tensor.name))
    assert found == proto


@pytest.mark.parametrize("feature", ["documented", "several_opsets", "overloaded_functions", "branches"])
def test_an_independent_reader_sees_the_same_model(feature: str) -> None:
    proto = FEATURES[feature]()
    model = Model.from_proto(proto)
    next(iter(model.graph.nodes)).name = "renamed"
    ours, theirs = onnx_ir.serde.deserialize_model(model.proto()), onnx_ir.serde.deserialize_model(proto)
    assert ours.metadata_props == theirs.metadata_props
    assert ours.graph.metadata_props == theirs.graph.metadata_props
    assert ours.opset_imports == theirs.opset_imports
    assert set(ours.functions) == set(theirs.functions)
    assert [v.shape for v in ours.graph.inputs] == [v.shape for v in theirs.graph.inputs]
    for mine, other in zip(ours.graph.all_nodes(), theirs.graph.all_nodes(), strict=True):
        assert mine.metadata_props == other.metadata_props
        assert mine.doc_string == other.doc_string
        assert mine.op_identifier() == other.op_identifier()
    assert ours.graph[0].name == "renamed"


def test_dynamic_dimensions_keep_their_names() -> None:
    model = Model.from_proto(models.documented())
    assert model.graph.inputs[0].shape == ["batch", 4]
    assert model.metadata == {"author": "somebody", "licence": "none"}
    assert model.opset == 18
    assert model.proto().graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_what_a_pass_adds_stands_behind_what_was_there() -> None:
    model = Model.from_proto(models.documented())
    last = model.graph.nodes[-1]
    extra = gs.Constant("extra", np.ones(3, np.float32))
    result = gs.Variable("scaled", np.float32, ["batch", 3])
    model.graph.nodes.append(gs.Node("Mul", "third", inputs=[last.outputs[0], extra], outputs=[result]))
    model.graph.outputs = [result]
    proto = model.proto()
    onnx.checker.check_model(proto, full_check=True)
    assert [tensor.name for tensor in proto.graph.initializer] == ["b", "w", "extra"]
    assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_an_annotation_goes_with_its_tensor() -> None:
    model = Model.from_proto(models.documented())
    model.graph.nodes[0].outputs[0].name = "other"
    assert not model.proto().graph.quantization_annotation


# -- where weights stand -------------------------------------------------------------------------------------


def test_an_outer_weight_is_not_copied_into_bodies() -> None:
    model = Model.from_proto(models.branches())
    layer = next(layer for layer in weighted_layers(model) if layer.nested)
    layer.set_array(layer.array() * 2)
    proto = model.proto()
    onnx.checker.check_model(proto, full_check=True)
    assert [tensor.name for tensor in proto.graph.initializer] == ["b", "w", "zero"]
    for attribute in proto.graph.node[-1].attribute:
        assert [tensor.name for tensor in attribute.g.initializer] == [f"{attribute.g.name}.own"]
        assert not attribute.g.value_info
    np.testing.assert_array_equal(initializers(proto)["w"], 2 * initializers(models.branches())["w"])


@pytest.mark.parametrize("sign", [1, -1])
def test_branches_compute_the_same_after_a_round_trip(sign: int) -> None:
    proto = models.branches()
    feeds = {"x": sign * np.ones((2, 4), np.float32) * 5}
    expected = session.run(session.create(proto), feeds)["y"]
    np.testing.assert_array_equal(session.run(session.create(Model.from_proto(proto)), feeds)["y"], expected)


def test_a_new_constant_of_both_bodies_is_in_each() -> None:
    """It has no home outside, and the bodies may have given one name to two values."""
    model = Model.from_proto(models.branches())
    for factor, body in enumerate(model.graph.nodes[-1].attrs.values(), 1):
        body.nodes[0].inputs[1] = gs.Constant("new", np.full((4, 4), factor, np.float32))
    attributes = model.proto().graph.node[-1].attribute
    values = [{t.name: numpy_helper.to_array(t) for t in a.g.initializer}["new"][0, 0] for a in attributes]
    assert values == [1, 2]


def test_weights_in_constant_nodes_are_weights() -> None:
    model = Model.from_proto(models.constant_nodes())
    (layer,) = weighted_layers(model)
    assert (layer.name, layer.kind, layer.shape) == ("product", "MatMul", (6, 4))
    layer.set_array(layer.array() + 1)
    (again,) = weighted_layers(Model.from_proto(model.proto()))
    np.testing.assert_array_equal(again.array(), layer.array())
    assert model.proto().graph.node[0].op_type == "Constant"


def test_initializers_that_nothing_reads_stay_until_they_are_dropped() -> None:
    model = Model.from_proto(models.initializers_without_a_node())
    state = model.checkpoint()
    assert drop_unused(model.graph)
    assert state.changed()
    assert sorted(initializers(model.proto())) == ["given", "w"]
    assert not drop_unused(model.graph)
    state.restore()
    assert model.proto() == models.initializers_without_a_node()


@pytest.mark.parametrize("name", ARRAYS)
def test_every_type_can_be_replaced(name: str) -> None:
    array = ARRAYS[name]
    model = Model.from_proto(models.initializers_of({"t": array}))
    tensor = model.graph.nodes[0].inputs[0]
    assign(tensor, array[::-1] if array.ndim else array * 2)
    proto = model.proto()
    onnx.checker.check_model(proto, full_check=True)
    stored = initializers(proto)["t"]
    assert stored.dtype == array.dtype
    assert stored.shape == array.shape
    assert proto.graph.initializer[0].data_type == models.initializers_of({"t": array}).graph.initializer[0].data_type
    np.testing.assert_array_equal(stored, array[::-1] if array.ndim else array * 2)


def test_two_constants_may_share_a_value() -> None:
    model = Model.from_proto(models.documented())
    weight = model.graph.nodes[0].inputs[1]
    twin = gs.Constant("twin", weight._values)
    model.graph.nodes.append(gs.Node("Identity", inputs=[twin], outputs=[gs.Variable("out")]))
    found = initializers(model.proto())
    np.testing.assert_array_equal(found["twin"], found["w"])


def test_one_overload_of_a_function_can_be_edited() -> None:
    model = Model.from_proto(models.overloaded_functions())
    model.graph.functions[0].nodes[0].op = "Sqrt"
    first, second = model.proto().functions
    original = models.overloaded_functions().functions
    assert second == original[1]
    assert (first.overload, first.doc_string, first.node[0].op_type) == ("up", "overload up", "Sqrt")
    assert first.node[0].doc_string == "does Exp"
    assert first.metadata_props == original[0].metadata_props


def test_the_inputs_of_an_older_ir_become_plain_initializers_with_a_newer_one() -> None:
    model = Model.from_proto(models.initializers_that_are_inputs(ir_version=3))
    model.graph.ir_version = 8
    proto = model.proto()
    assert [value.name for value in proto.graph.input] == ["x"]
    assert sorted(initializers(proto)) == ["b", "w"]


# -- external data -------------------------------------------------------------------------------------------


def test_external_data_is_read(tmp_path: Path) -> None:
    model = Model.load(external_model(tmp_path))
    assert model.proto() == models.documented()


def test_a_message_without_its_weights_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(external_model(tmp_path), load_external_data=False)
    with pytest.raises(InputError, match=r"weights are in other files; read it with Model\.load"):
        Model.from_proto(proto)


@pytest.mark.parametrize("length", [0, 12, 47, 52])
def test_external_data_of_the_wrong_size_is_refused(tmp_path: Path, length: int) -> None:
    path = external_model(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(length))
    with pytest.raises(InputError, match=r"net\.onnx: external data of 'w' cannot be used"):
        Model.load(path)


@pytest.mark.parametrize("location", ["gone.bin", "../w.bin", "/etc/passwd", "sub/../../w.bin"])
def test_external_data_outside_the_folder_or_missing_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "sub").mkdir()
    path = external_model(tmp_path / "sub")
    (tmp_path / "w.bin").write_bytes(bytes(48))
    set_location(path, location)
    with pytest.raises(InputError, match=r"net\.onnx: external data of 'w' cannot be used"):
        Model.load(path)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = external_model(tmp_path / "sub")
    (tmp_path / "sub" / "w.bin").rename(tmp_path / "w.bin")
    (tmp_path / "sub" / "w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InputError, match="cannot be used"):
        Model.load(path)


# -- bad files -----------------------------------------------------------------------------------------------


def _folder(path: Path) -> None:
    path.mkdir()


def _truncated(path: Path) -> None:
    path.write_bytes(models.documented().SerializeToString()[:-20])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such file"),
        (_folder, "is a folder"),
        (lambda path: path.write_bytes(b""), "holds no graph"),
        (lambda path: path.write_text("import torch\n" * 40), "is not an ONNX model"),
        (_truncated, "is not an ONNX model, or is truncated"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "net.onnx"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_path_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        Model.load(tmp_path / "file" / "net.onnx")


def test_a_model_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "LIMIT", 100)
    with pytest.raises(InputError, match="over the 2 GB"):
        Model.from_proto(models.documented()).serialize()


# -- saving --------------------------------------------------------------------------------------------------


def test_save_returns_the_size_and_is_deterministic(tmp_path: Path) -> None:
    model = Model.from_proto(models.documented())
    path = tmp_path / "net.onnx"
    assert model.save(path) == path.stat().st_size
    first = path.read_bytes()
    model.save(path)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(InputError, match=r"net\.onnx: cannot be written: No space left on device"):
        Model.from_proto(models.documented()).save(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_unknown_element_types_survive() -> None:
    proto = models.documented()
    proto.graph.value_info[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert Model.from_proto(proto).proto() == proto
