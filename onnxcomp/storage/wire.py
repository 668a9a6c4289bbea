"""The bytes of an ONNX file, without the weights in them.

A message of the protocol-buffers wire format is a sequence of fields: a tag (field number and kind), then a number, or
a length and so many bytes. So a scan that skips what it has no use for takes microseconds for a node or a weight,
whatever they weigh, and finds where in the file each weight's bytes are. What it makes is again an ONNX model, small
and with a reference in the place of each larger weight. Unlike a protobuf parser, it does not stop at 2 GB.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import Message

__all__ = ["LIMIT", "Buffer", "Stripped", "WireError", "field_of", "strip", "varint"]

Buffer = bytes | memoryview

LIMIT = 2**31 - 1
"""Bytes that one protobuf message can have."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100  # as in protobuf's own parsers


class WireError(ValueError):
    """The bytes are no message."""


@dataclass
class Stripped:
    """A file without its larger weights.

    Attributes:
        pieces: what is left of the file, in order.
        ranges: offset and length in the file of each weight that was left out.
    """

    pieces: list[Buffer] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)


def strip(data: Buffer | mmap.mmap, least: int, reference: Callable[[int], bytes]) -> Stripped:
    """Leave out every ``raw_data`` of ``least`` bytes or more.

    Args:
        data: a serialized ModelProto.
        least: bytes.
        reference: fields to add to the TensorProto in its place, by the index of the weight.

    Raises:
        WireError: it is no ModelProto, or one that gives a value twice.
    """
    scan = _Scan(memoryview(data), least, reference)
    pieces, _ = scan.message(0, len(data), _MODEL, 0)
    return Stripped(pieces, scan.ranges)


def field_of(number: int, length: int) -> bytes:
    """The head of a field that holds so many bytes."""
    return varint(number << 3 | _BYTES) + varint(length)


def varint(value: int) -> bytes:
    """A number, seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


# -- where weights can be ----------------------------------------------------------------------------------


def _number(message: type[Message], name: str) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return number


@dataclass
class _Kind:
    """A kind of message, and the fields in which weights can be, by number.

    Of a field that holds one value, ``once``, protobuf takes the last one, or merges them; here they are refused.
    """

    inner: dict[int, _Kind] = field(default_factory=dict)
    raw_data: int | None = None
    once: int | None = None


_RAW_DATA = _number(onnx.TensorProto, "raw_data")
_TENSOR = _Kind(raw_data=_RAW_DATA, once=_RAW_DATA)
_GRAPH = _Kind()
_ATTRIBUTE = _Kind(
    {
        _number(onnx.AttributeProto, "t"): _TENSOR,
        _number(onnx.AttributeProto, "tensors"): _TENSOR,
        _number(onnx.AttributeProto, "g"): _GRAPH,
        _number(onnx.AttributeProto, "graphs"): _GRAPH,
    },
    once=_number(onnx.AttributeProto, "t"),
)
_NODE = _Kind({_number(onnx.NodeProto, "attribute"): _ATTRIBUTE})
_GRAPH.inner = {_number(onnx.GraphProto, "node"): _NODE, _number(onnx.GraphProto, "initializer"): _TENSOR}
_FUNCTION = _Kind({_number(onnx.FunctionProto, "node"): _NODE})
_MODEL = _Kind({_number(onnx.ModelProto, "graph"): _GRAPH, _number(onnx.ModelProto, "functions"): _FUNCTION})


class _Scan:
    def __init__(self, data: memoryview, least: int, reference: Callable[[int], bytes]) -> None:
        self._data = data
        self._least = least
        self._reference = reference
        self.ranges: list[tuple[int, int]] = []

    def message(self, start: int, end: int, kind: _Kind, depth: int) -> tuple[list[Buffer], int]:
        """What is left of the message in these bytes, and how long that is."""
        if depth > _DEEPEST:
            raise WireError("too deep")
        pieces: list[Buffer] = []
        length = 0
        copied = position = start
        seen = False
        while position < end:
            at = position
            tag, position = self._varint(position, end)
            if tag < 8:  # else a large file of zeros would be scanned to its end
                raise WireError("a field without a number")
            if tag & 7 != _BYTES:
                position = self._skip(tag & 7, position, end)
                continue
            size, position = self._varint(position, end)
            body, position = position, position + size
            if position > end:
                raise WireError("a field ends behind its message")
            number = tag >> 3
            if number == kind.once:
                if seen:
                    raise WireError("a value that is given twice")
                seen = True
            if size < self._least:
                continue
            if number == kind.raw_data:
                replaced: list[Buffer] = [self._reference(len(self.ranges))]
                self.ranges.append((body, size))
            elif number in kind.inner:
                before = len(self.ranges)
                inner, inner_size = self.message(body, position, kind.inner[number], depth + 1)
                if len(self.ranges) == before:
                    continue
                replaced = [field_of(number, inner_size), *inner]
            else:
                continue
            pieces += [self._data[copied:at], *replaced]
            length += at - copied + sum(map(len, replaced))
            copied = position
        pieces.append(self._data[copied:end])
        return pieces, length + end - copied

    def _skip(self, kind: int, position: int, end: int) -> int:
        if kind == _VARINT:
            return self._varint(position, end)[1]
        if kind not in (_FIXED32, _FIXED64):
            raise WireError("an unknown kind of field")
        position += 4 if kind == _FIXED32 else 8
        if position > end:
            raise WireError("a number ends behind its message")
        return position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 64:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise WireError("a number that does not end")
