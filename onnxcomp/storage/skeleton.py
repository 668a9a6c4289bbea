"""A model message whose larger weights stand beside it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import Message

from onnxcomp.storage.messages import copied, copy_fields, shell
from onnxcomp.storage.payload import Payload
from onnxcomp.storage.wire import Buffer, field_of

__all__ = ["LEAST", "Skeleton", "is_reference", "refer", "reference_fields", "referred", "tensors_of"]

LARGE = 512 * 2**20
"""Bytes of a model from which its weights are kept out of memory wherever that is possible."""

LEAST = 1024
"""Bytes from which a weight stands beside the message; what shapes are computed from is smaller."""

# No file can contain this, so no file can pass its own tensors off as references.
_HERE = f"onnxcomp:{secrets.token_hex(16)}"


@dataclass
class Skeleton:
    """A model in which each larger weight is a reference: external data that only this class can follow.

    Attributes:
        proto: the message. To be changed only in copies that have the same payloads.
        payloads: what the references refer to, by index. It only grows.
    """

    proto: onnx.ModelProto
    payloads: list[Payload] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of the whole model in one file."""
        return _length(self.pieces())

    @property
    def is_large(self) -> bool:
        """Whether the weights are worth keeping out of memory."""
        return self.size > LARGE

    def pieces(self) -> Iterator[Buffer | Payload]:
        """What the model's file consists of, in order: the bytes that protobuf would write."""
        yield from _pieces(self.proto, self.payloads)

    def chunks(self) -> Iterator[Buffer]:
        """The file's bytes, part by part."""
        for piece in self.pieces():
            if isinstance(piece, bytes | memoryview):
                yield piece
            else:
                yield from piece.chunks()

    def serialize(self) -> bytes:
        """The bytes of the model's file."""
        return b"".join(piece if isinstance(piece, bytes | memoryview) else piece.read() for piece in self.pieces())

    def digest(self) -> str:
        """SHA-256 of the model's file, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def whole(self) -> onnx.ModelProto:
        """A copy of the message with all weights in it."""
        proto = self.copied()
        for tensor in tensors_of(proto):
            self.fill(tensor)
        return proto

    def copied(self) -> onnx.ModelProto:
        """A copy of the message; its references are of this skeleton's payloads."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto

    def placed(self, place: Callable[[Payload], tuple[str, int]]) -> onnx.ModelProto:
        """A copy of the message in which references are external data in the place of each payload.

        Args:
            place: location and offset of a payload.
        """
        proto = self.copied()
        for tensor in tensors_of(proto):
            if is_reference(tensor):
                payload = self.payload(tensor)
                location, offset = place(payload)
                tensor.ClearField("external_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in ("location", location), ("offset", offset), ("length", payload.nbytes):
                    tensor.external_data.add(key=key, value=str(value))
        return proto

    def fill(self, tensor: onnx.TensorProto) -> None:
        """Put a tensor's bytes in the place of a reference."""
        if is_reference(tensor):
            data = bytes(self.payload(tensor).read())
            tensor.CopyFrom(_dereferred(tensor))
            tensor.raw_data = data

    def payload(self, reference: onnx.TensorProto) -> Payload:
        """What a reference refers to."""
        return self.payloads[referred(reference)]

    def weights_as_inputs(self) -> onnx.ModelProto:
        """A copy in which references are inputs of the same type instead: enough to reason about types.

        Those of functions, whose inputs have no types, are filled.
        """
        proto = self.copied()
        taken = {value.name for value in proto.graph.input}
        for graph in _graphs(proto.graph):
            for name, tensor in _take_references(graph):
                if name not in taken:
                    taken.add(name)
                    kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))
                    proto.graph.input.append(onnx.helper.make_value_info(name, kind))
        for tensor in tensors_of(proto):
            self.fill(tensor)
        return proto


# -- references --------------------------------------------------------------------------------------------


def is_reference(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor stands for a payload."""
    return any(entry.key == _HERE for entry in tensor.external_data)


def referred(reference: onnx.TensorProto) -> int:
    """The index of the payload that a reference stands for."""
    return next(int(entry.value) for entry in reference.external_data if entry.key == _HERE)


def refer(tensor: onnx.TensorProto, index: int) -> None:
    """Make the tensor stand for a payload."""
    tensor.ClearField("raw_data")
    tensor.MergeFromString(reference_fields(index))


def reference_fields(index: int) -> bytes:
    """The field that makes a TensorProto without data a reference."""
    tensor = onnx.TensorProto()
    tensor.external_data.add(key=_HERE, value=str(index))
    data: bytes = tensor.SerializeToString()
    return data


def _dereferred(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A copy that is no reference, and has no data."""
    plain = copied(tensor)
    del plain.external_data[:]
    plain.external_data.extend(entry for entry in tensor.external_data if entry.key != _HERE)
    return plain


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that may be a reference: initializers, and attributes of nodes, in bodies and functions too."""
    for root in (proto.graph, *proto.functions):
        for graph in _graphs(root):
            if isinstance(graph, onnx.GraphProto):
                yield from graph.initializer
            for node in graph.node:
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        yield attribute.t
                    yield from attribute.tensors


def _graphs(root: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    yield root
    for node in root.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for graph in attribute.graphs:
                yield from _graphs(graph)


def _take_references(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initializers and Constant nodes that are references leave the graph; with the names of their values."""
    if not isinstance(graph, onnx.GraphProto):
        return
    for index in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[index]
        if is_reference(tensor):
            yield tensor.name, tensor
            del graph.initializer[index]
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type == "Constant" and len(node.output) == 1 and len(node.attribute) == 1:
            tensor = node.attribute[0].t
            if is_reference(tensor):
                yield node.output[0], tensor
                del graph.node[index]


# -- writing -----------------------------------------------------------------------------------------------

Pieces = list[Buffer | Payload]

# The fields that lead to references, by message.
_LEADING: dict[type[Message], tuple[str, ...]] = {
    onnx.ModelProto: ("graph", "functions"),
    onnx.GraphProto: ("node", "initializer"),
    onnx.FunctionProto: ("node",),
    onnx.NodeProto: ("attribute",),
    onnx.AttributeProto: ("t", "tensors", "g", "graphs"),
}


def _pieces(message: Message, payloads: list[Payload]) -> Pieces:
    """The serialized message; its payloads are not read."""
    if not _refers(message):
        return [message.SerializeToString()]
    if isinstance(message, onnx.TensorProto):
        return _tensor_pieces(message, payloads)
    pieces: Pieces = []
    for descriptor, value in message.ListFields():  # in the order of their numbers, which is protobuf's
        if descriptor.name not in _LEADING[type(message)]:
            pieces.append(_only(message, {descriptor.name}))
            continue
        for child in (value,) if isinstance(value, Message) else value:
            inner = _pieces(child, payloads)
            pieces += [field_of(descriptor.number, _length(inner)), *inner]
    return [*pieces, _unknown(message)]


def _tensor_pieces(tensor: onnx.TensorProto, payloads: list[Payload]) -> Pieces:
    payload = payloads[referred(tensor)]
    plain = _dereferred(tensor)
    number = plain.DESCRIPTOR.fields_by_name["raw_data"].number
    fields = [field for field, _ in plain.ListFields()]
    before = _only(plain, {field.name for field in fields if field.number < number})
    behind = _only(plain, {field.name for field in fields if field.number > number})
    return [before, field_of(number, payload.nbytes), payload, behind, _unknown(plain)]


def _refers(message: Message) -> bool:
    """Whether there is a reference in the message."""
    if isinstance(message, onnx.TensorProto):
        return is_reference(message)
    if isinstance(message, onnx.NodeProto):
        return any(_refers(attribute) for attribute in message.attribute)
    if isinstance(message, onnx.AttributeProto):
        if message.HasField("t") and is_reference(message.t):
            return True
        tensors = any(map(is_reference, message.tensors))
        return tensors or any(_refers(graph) for graph in (*_present(message), *message.graphs))
    if isinstance(message, onnx.GraphProto) and any(map(is_reference, message.initializer)):
        return True
    if isinstance(message, onnx.GraphProto | onnx.FunctionProto):
        return any(map(_refers, message.node))
    return True  # a model


def _present(attribute: onnx.AttributeProto) -> tuple[onnx.GraphProto, ...]:
    return (attribute.g,) if attribute.HasField("g") else ()


def _only(message: Message, names: set[str]) -> bytes:
    """The serialized message with these of its known fields alone."""
    part = type(message)()
    copy_fields(message, part, skip={field.name for field, _ in message.ListFields()} - names)
    data: bytes = part.SerializeToString()
    return data


def _unknown(message: Message) -> bytes:
    """What a newer version of ONNX has added; protobuf keeps it, and writes it last."""
    data: bytes = shell(message, without={field.name for field, _ in message.ListFields()}).SerializeToString()
    return data


def _length(pieces: Iterable[Buffer | Payload]) -> int:
    return sum(len(piece) if isinstance(piece, bytes | memoryview) else piece.nbytes for piece in pieces)
