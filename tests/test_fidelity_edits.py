"""Edits of what is hard to keep, and the models that are refused because they could not be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from onnxcomp.codec.origins import drop_unused
from onnxcomp.errors import InputError
from onnxcomp.graph.constants import assign
from onnxcomp.graph.edit import detach
from onnxcomp.graph.folding import evaluate_constants
from onnxcomp.model import Model
from onnxcomp.runtime import session
from tests.compare import differences
from tests.constructs import CONSTRUCTS, surround
from tests.models import tensor, value
from tests.tensors import gs_tensors, messages_of

# -- edits that touch a construct ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a_list", "an_int"])
def test_a_constant_node_of_numbers_holds_a_tensor_once_it_is_replaced(kind: str) -> None:
    model = Model.from_proto(CONSTRUCTS[f"constant_node_of_{kind}"]())
    assign(next(item for item in gs_tensors(model) if item.name == "w"), np.ones((2, 2), np.float32))
    proto = model.proto()
    (attribute,) = proto.graph.node[0].attribute
    assert (attribute.name, attribute.type) == ("value", onnx.AttributeProto.TENSOR)
    np.testing.assert_array_equal(numpy_helper.to_array(attribute.t), np.ones((2, 2)))
    assert proto.graph.node[0].doc_string == "the weight"


@pytest.mark.parametrize("name", ["constant_node_that_is_sparse", "constant_node_of_strings"])
def test_a_constant_node_has_one_value(name: str) -> None:
    """Also where graphsurgeon does not show the value that is replaced."""
    model = Model.from_proto(CONSTRUCTS[name]())
    assign(next(item for item in gs_tensors(model) if item.name == "w"), np.ones((4, 3), np.float32))
    (attribute,) = model.proto().graph.node[0].attribute
    assert attribute.name == "value"


def test_a_sparse_initializer_becomes_dense_once_it_is_replaced() -> None:
    model = Model.from_proto(CONSTRUCTS["sparse_initializers"]())
    array = np.ones((4, 3), np.float32)
    assign(next(item for item in gs_tensors(model) if item.name == "s"), array)
    expected = CONSTRUCTS["sparse_initializers"]()
    del expected.graph.sparse_initializer[1]
    dense = numpy_helper.from_array(array, "s")
    dense.doc_string = "mostly zeros"
    expected.graph.initializer.append(dense)
    found = model.proto()
    found.graph.initializer.sort(key=lambda item: item.name == "s")
    assert differences(found, expected) == []


def test_a_sparse_initializer_can_be_renamed() -> None:
    model = Model.from_proto(CONSTRUCTS["sparse_initializers"]())
    next(item for item in gs_tensors(model) if item.name == "s").name = "renamed"
    proto = model.proto()
    assert sorted(item.values.name for item in proto.graph.sparse_initializer) == ["h", "renamed"]
    assert proto.graph.node[1].input[1] == "renamed"


def hiding() -> onnx.ModelProto:
    """Both branches have a weight ``w`` of their own, unlike that of the graph around them."""
    bodies = []
    for name, seed in (("then", 1), ("else", 2)):
        product = helper.make_node("MatMul", ["x", "w"], [f"{name}.y"])
        bodies.append(
            helper.make_graph([product], name, [], [value(f"{name}.y", "N", 3)], [tensor("w", 4, 3, seed=seed)])
        )
    node = helper.make_node("If", ["c"], ["h"], then_branch=bodies[0], else_branch=bodies[1])
    nodes = [node, helper.make_node("MatMul", ["x", "w"], ["o"]), helper.make_node("Add", ["h", "o"], ["y"])]
    proto = surround(nodes, inputs=[value("c", kind=TensorProto.BOOL)])
    del proto.opset_import[1]
    return proto


@pytest.mark.parametrize("branch", [True, False])
def test_a_weight_that_hides_an_outer_one_is_the_one_that_counts(branch: bool) -> None:
    feeds = {"x": np.ones((2, 4), np.float32), "c": np.array(branch)}
    model = Model.from_proto(hiding())
    expected = session.run(session.create(hiding()), feeds)["y"]
    np.testing.assert_array_equal(session.run(session.create(model), feeds)["y"], expected)
    body = model.graph.nodes[0].attrs["then_branch"]
    assign(body.nodes[0].inputs[1], np.zeros((4, 3), np.float32))
    outer = feeds["x"] @ numpy_helper.to_array(tensor("w", 4, 3))
    found = session.run(session.create(model), feeds)["y"]
    np.testing.assert_allclose(found, outer if branch else expected, rtol=1e-6)
    assert len(body.nodes[0].inputs[1].outputs) == 1


def test_a_weight_of_branches_stays_outside_them_when_unused_ones_are_dropped() -> None:
    proto = CONSTRUCTS["branches_that_read_outer_weights"]()
    proto.graph.initializer.append(tensor("idle", 3))
    model = Model.from_proto(proto)
    assert drop_unused(model.graph)
    assert differences(model.proto(), CONSTRUCTS["branches_that_read_outer_weights"]()) == []


@pytest.mark.parametrize("name", ["training_info", "quantization_annotations"])
def test_what_the_file_refers_to_is_not_unused(name: str) -> None:
    model = Model.from_proto(CONSTRUCTS[name]())
    assert not drop_unused(model.graph)
    assert differences(model.proto(), CONSTRUCTS[name]()) == []


def test_an_array_in_another_order_of_bytes_has_the_same_values() -> None:
    model = Model.from_proto(CONSTRUCTS["model_header"]())
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    assign(next(item for item in gs_tensors(model) if item.name == "w"), array.astype(">f4"))
    (stored,) = messages_of(model.proto(), "w")
    np.testing.assert_array_equal(numpy_helper.to_array(stored), array)


def test_an_input_of_ir_3_has_the_shape_of_its_weight() -> None:
    model = Model.from_proto(CONSTRUCTS["ir_version_3"]())
    weight = next(item for item in gs_tensors(model) if item.name == "w")
    assign(weight, np.ones((4, 2), np.float32))
    proto = model.proto()
    declared = next(item for item in proto.graph.input if item.name == "w").type.tensor_type
    assert [dim.dim_value for dim in declared.shape.dim] == [4, 2]
    assert proto.ir_version == 3


def test_a_new_weight_needs_a_newer_ir_than_3() -> None:
    model = Model.from_proto(CONSTRUCTS["ir_version_3"]())
    model.graph.nodes[0].inputs[1] = gs.Constant("fresh", np.ones((4, 3), np.float32))
    proto = model.proto()
    assert proto.ir_version == 4
    assert "fresh" in {item.name for item in proto.graph.initializer}


def test_a_declaration_goes_with_the_value_that_a_pass_removed() -> None:
    model = Model.from_proto(CONSTRUCTS["values_declared_twice"]())
    first, second = model.graph.nodes[:2]
    assert second.name == "odd"
    detach(first)
    model.graph.cleanup()
    assert "h" not in {item.name for item in model.proto().graph.value_info}


def test_a_node_whose_attributes_graphsurgeon_does_not_show_is_not_folded() -> None:
    """Computed without them it might give another result."""
    double = helper.make_node("Cast", ["w"], ["h"], to=TensorProto.DOUBLE)
    nodes = [double, helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
    model = Model.from_proto(surround(nodes))
    assert [item.name for item in evaluate_constants(model.graph, 21)] == ["h"]
    double.attribute.append(onnx.AttributeProto(name="odd", type=onnx.AttributeProto.INTS))
    assert evaluate_constants(Model.from_proto(surround(nodes)).graph, 21) == []


# -- what cannot be carried ----------------------------------------------------------------------------------


def _two_attributes(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.extend([helper.make_attribute("a", 1), helper.make_attribute("a", 2)])


def _captured(proto: onnx.ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "inner", [], [value("b", 2)])
    attribute = proto.graph.node[0].attribute.add(name="bodies", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(inner)


def _external(message: TensorProto) -> None:
    external_data_helper.set_external_data(message, "w.bin")
    message.ClearField("raw_data")


def _external_sparse(proto: onnx.ModelProto) -> None:
    sparse = proto.graph.sparse_initializer.add(dims=[4, 3])
    sparse.values.CopyFrom(tensor("s", 3))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 1, 2])))
    _external(sparse.values)


def _external_attribute(proto: onnx.ModelProto) -> None:
    attribute = proto.graph.node[0].attribute.add(name="table", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(tensor("t", 3))
    _external(attribute.sparse_tensor.values)


def _external_default(proto: onnx.ModelProto) -> None:
    function = proto.functions.add(name="act", domain="org.example")
    function.attribute_proto.append(helper.make_attribute("table", tensor("t", 3)))
    _external(function.attribute_proto[0].t)


def _external_training(proto: onnx.ModelProto) -> None:
    proto.training_info.add().algorithm.initializer.append(tensor("t", 3))
    _external(proto.training_info[0].algorithm.initializer[0])


def _segments(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].segment.end = 3


def _undecodable(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].name = "n@me"
    proto.ParseFromString(proto.SerializeToString().replace(b"n@me", b"n\xffme"))


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "two initializers": (
        lambda proto: proto.graph.initializer.append(tensor("w", 4, 3)),
        "has the initializer 'w' twice",
    ),
    "two inputs": (lambda proto: proto.graph.input.append(value("x", 4)), "has the input 'x' twice"),
    "an initializer without a name": (
        lambda proto: proto.graph.initializer.append(tensor("", 3)),
        "the graph 'main' has an initializer without a name",
    ),
    "an input without a name": (lambda proto: proto.graph.input.add(), "has an input without a name"),
    "two attributes": (_two_attributes, r"node 'odd' \(Odd\) has the attribute 'a' twice"),
    "an unknown type": (
        lambda proto: setattr(proto.graph.initializer[0], "data_type", 99),
        "initializer 'w' has the type 99, which onnx .* does not know; install a newer onnx",
    ),
    "a name that is not UTF-8": (_undecodable, r"has the name 'n\\\\xffme', which is not UTF-8 text"),
    "segments": (_segments, "initializer 'w' is stored in segments"),
    "a list of graphs that reads outer values": (
        _captured,
        "the attribute 'bodies' of the node 'odd' is a list of graphs, one of which reads 'x' of the graph around it",
    ),
    "external sparse data": (_external_sparse, "the sparse initializer 's' has its data in another file"),
    "external data of a sparse attribute": (
        _external_attribute,
        "the attribute 'table' of the node 'odd' has its data in another file",
    ),
    "external data of a default value": (
        _external_default,
        "the attribute 'table' of the function 'act' has its data in another file",
    ),
    "external training data": (_external_training, "the training information has its data in another file"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_carried_is_refused_in_one_sentence(what: str, tmp_path: Path) -> None:
    spoil, message = REFUSED[what]
    proto = CONSTRUCTS["model_header"]()
    spoil(proto)
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=message) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
