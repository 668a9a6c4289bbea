"""The bytes of model files without their weights, and with them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import Model
from onnxcomp.errors import InputError
from onnxcomp.storage.payload import InMemory
from onnxcomp.storage.reader import split
from onnxcomp.storage.skeleton import LEAST, Skeleton, reference_fields, tensors_of
from onnxcomp.storage.wire import WireError, field_of, strip, varint


@st.composite
def messages(draw: st.DrawFn) -> onnx.ModelProto:
    """Models with weights of all sizes wherever a weight can be: they need not make sense."""
    sizes = st.sampled_from([0, 1, LEAST - 1, LEAST, LEAST + 1, 3 * LEAST])

    def tensor(name: str) -> TensorProto:
        data = bytes(draw(sizes))
        made = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[len(data)], raw_data=data)
        made.doc_string = draw(st.sampled_from(["", "words"]))
        return made

    def graph(depth: int) -> onnx.GraphProto:
        made = onnx.GraphProto(name="g", doc_string="of a graph")
        made.initializer.extend(tensor(f"w{index}") for index in range(draw(st.integers(0, 2))))
        for _ in range(draw(st.integers(0, 2))):
            node = made.node.add(op_type="Op", input=["a"], output=["b"], doc_string="x" * draw(sizes))
            node.attribute.append(helper.make_attribute("number", 3))
            kind = draw(st.sampled_from(["none", "t", "tensors", "g", "graphs"]))
            if kind in ("t", "tensors"):
                value: Any = tensor("t") if kind == "t" else [tensor("t"), tensor("u")]
                node.attribute.append(helper.make_attribute(kind, value))
            elif kind != "none" and depth:
                node.attribute.append(
                    helper.make_attribute(kind, graph(depth - 1) if kind == "g" else [graph(depth - 1)])
                )
        return made

    proto = onnx.ModelProto(ir_version=10, producer_name="maker", graph=graph(2))
    function = proto.functions.add(name="F", doc_string="of a function")
    function.node.extend(graph(1).node)
    return proto


def read_back(data: bytes) -> Skeleton:
    stripped = strip(data, LEAST, reference_fields)
    message = onnx.ModelProto.FromString(b"".join(stripped.pieces))
    return Skeleton(message, [InMemory(data[offset : offset + size]) for offset, size in stripped.ranges])


@given(messages())
def test_a_file_without_its_weights_and_with_them_again_is_the_same(proto: onnx.ModelProto) -> None:
    data = proto.SerializeToString(deterministic=True)
    model = read_back(data)
    assert not [tensor for tensor in tensors_of(model.proto) if len(tensor.raw_data) >= LEAST]
    assert model.serialize() == data
    assert model.size == len(data)
    assert model.whole() == proto
    assert split(proto).serialize() == data


@given(messages(), st.data())
def test_broken_bytes_are_no_model_or_one_that_protobuf_reads_alike(proto: onnx.ModelProto, data: Any) -> None:
    whole = bytearray(proto.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if whole:
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    try:
        model = read_back(bytes(whole))
    except (WireError, DecodeError):
        return
    assert model.whole() == onnx.ModelProto.FromString(bytes(whole))


def test_a_value_that_is_given_twice_is_left_to_protobuf(tmp_path: Path) -> None:
    def entry(number: int, data: bytes) -> bytes:
        return field_of(number, len(data)) + data

    first = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[LEAST], raw_data=bytes([1]) * LEAST)
    second = TensorProto(raw_data=bytes([2]) * LEAST)
    attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR).SerializeToString()
    attribute += entry(5, first.SerializeToString()) + entry(5, second.SerializeToString())
    node = onnx.NodeProto(op_type="Constant", output=["y"]).SerializeToString() + entry(5, attribute)
    initializer = first.SerializeToString() + TensorProto(raw_data=b"small").SerializeToString()
    for graph in (entry(1, node), entry(5, initializer)):
        data = onnx.ModelProto(ir_version=8).SerializeToString() + entry(7, graph)
        with pytest.raises(WireError, match="given twice"):
            read_back(data)
    (tmp_path / "net.onnx").write_bytes(onnx.ModelProto(ir_version=8).SerializeToString() + entry(7, entry(1, node)))
    (found,) = Model.load(tmp_path / "net.onnx").proto().graph.node[0].attribute
    assert found.t.raw_data == second.raw_data  # protobuf takes the last


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (bytes(10), "a field without a number"),
        (b"\x0b\x0c", "an unknown kind of field"),  # a group
        (b"\x3a\x05abc", "ends behind its message"),
        (b"\x0d\x00", "ends behind its message"),
        (b"\x08" + b"\xff" * 11, "does not end"),
    ],
)
def test_what_is_no_model_is_not_scanned_on(data: bytes, problem: str) -> None:
    with pytest.raises(WireError, match=problem):
        read_back(data)


def test_numbers_in_more_bytes_than_they_need_are_read() -> None:
    weight = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[LEAST])
    weight_data = weight.SerializeToString() + b"\xca\x80\x00" + b"\x80\x88\x80\x00" + b"\1" * LEAST
    graph = b"\x2a" + varint(len(weight_data)) + weight_data
    data = b"\xba\x00" + varint(len(graph)) + graph
    weight.raw_data = b"\1" * LEAST
    assert (
        read_back(data).serialize() == onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight])).SerializeToString()
    )


def test_what_a_newer_version_has_added_is_kept() -> None:
    weight = numpy_helper.from_array(np.zeros(LEAST, np.uint8), "w")
    proto = onnx.ModelProto(graph=onnx.GraphProto(name="g", initializer=[weight]))
    added = b"\xfa\x3f\x03new"  # a field that no version knows
    for message in (proto.graph.initializer[0], proto.graph, proto):
        message.MergeFromString(added)
    data = proto.SerializeToString()
    assert data.count(b"new") == 3
    assert read_back(data).serialize() == data


def test_a_reference_in_a_file_is_none_of_ours(tmp_path: Path) -> None:
    graph = onnx.GraphProto(name="g", node=[helper.make_node("Identity", ["w"], ["y"])])
    graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    graph.initializer[0].external_data.add(key="onnxcomp:00112233445566778899aabbccddeeff", value="0")
    onnx.save(onnx.ModelProto(graph=graph), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="external data of 'w' cannot be used"):
        Model.load(tmp_path / "net.onnx")
