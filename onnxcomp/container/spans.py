"""Where in a model's files the weights are."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import onnx

from onnxcomp.errors import InputError
from onnxcomp.storage.payload import SourceFile
from onnxcomp.storage.reader import external_tensors, read
from onnxcomp.storage.skeleton import is_reference, reference_fields, referred, tensors_of
from onnxcomp.storage.validation import external_file, external_range, quoted
from onnxcomp.storage.wire import Buffer, WireError, strip

__all__ = ["LEAST", "MOST_ELEMENT", "PlainFile", "Span", "plain_files"]

MOST_ELEMENT = 255
"""Of the types of ONNX that a container can name; what has any other is bytes."""

LEAST = 256
"""Bytes from which a weight is worth an entry of its own; smaller ones are coded with what is between weights."""


@dataclass(frozen=True)
class Span:
    """The bytes of a weight.

    Attributes:
        offset, nbytes: in its file.
        element: type of ONNX.
        dims: dimensions; their product may be larger than the bytes where several numbers share a byte.
    """

    offset: int
    nbytes: int
    element: int
    dims: tuple[int, ...]


@dataclass
class PlainFile:
    """One of the files that a model consists of.

    Attributes:
        name: relative to the folder of the model; empty for the model's own file.
        source: the open file.
        spans: its weights, in order and without overlap.
    """

    name: str
    source: SourceFile
    spans: list[Span] = field(default_factory=list)


def plain_files(path: Path) -> list[PlainFile]:
    """The files of a model: its own, then those of its external data by name.

    Raises:
        InputError: the file is missing, is not an ONNX model, or its external data cannot be used.
    """
    skeleton, _ = read(path)  # says what is wrong with it
    if not skeleton.proto.graph.node and not skeleton.proto.graph.output:
        raise InputError(f"{path}: is not an ONNX model (it holds no graph); export or copy it again")
    try:
        model = PlainFile("", SourceFile(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    proto = _without_weights(model)
    others: dict[str, PlainFile] = {}
    for tensor in external_tensors(proto):
        _add_external(tensor, path, others)
    files = [model, *(others[name] for name in sorted(others))]
    for file in files:
        file.spans = list(_apart(file.spans))
    return files


def _without_weights(model: PlainFile) -> onnx.ModelProto:
    """The message without its weights, whose spans are added to the file."""
    data: Buffer | mmap.mmap = model.source.mapped()
    try:
        stripped = strip(data, LEAST, reference_fields)
    except WireError:
        return onnx.load_model_from_string(bytes(data))  # unusual, but a model: the generic coder takes all of it
    proto = onnx.load_model_from_string(b"".join(stripped.pieces))
    for tensor in tensors_of(proto):
        if is_reference(tensor):
            offset, nbytes = stripped.ranges[referred(tensor)]
            model.spans.append(_span(offset, nbytes, tensor))
    return proto


def _span(offset: int, nbytes: int, tensor: onnx.TensorProto) -> Span:
    """What a tensor says of its bytes, so far as it makes sense: nothing else may depend on it."""
    element = tensor.data_type if 0 < tensor.data_type <= MOST_ELEMENT else onnx.TensorProto.UINT8
    dims = tuple(tensor.dims) if all(size >= 0 for size in tensor.dims) else (nbytes,)
    return Span(offset, nbytes, element, dims)


def _add_external(tensor: onnx.TensorProto, path: Path, files: dict[str, PlainFile]) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = external_file(path, location := entries.get("location", ""), tensor.name)
    if ".." in PurePath(location).parts:  # behind a link it leads elsewhere than the name says
        raise InputError(
            f"{path}: external data of {quoted(tensor.name)} is in {quoted(location)}, and a packed model has no '..' "
            "in its names; save the model again"
        )
    name = Path(os.path.normpath(location)).as_posix()
    if name not in files:
        files[name] = PlainFile(name, SourceFile(place))
    file = files[name]
    offset, nbytes = external_range(
        path, tensor.name, file.source.size, entries.get("offset"), entries.get("length"), None
    )
    file.spans.append(_span(offset, nbytes, tensor))


def _apart(spans: list[Span]) -> Iterator[Span]:
    """Those that can be cut out one after the other: tensors may share bytes, and hold none."""
    end = 0
    for span in sorted(spans, key=lambda span: (span.offset, -span.nbytes)):
        if span.nbytes >= LEAST and span.offset >= end and 0 not in span.dims:
            yield span
            end = span.offset + span.nbytes
