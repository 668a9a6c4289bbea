"""Model files, read without their weights."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxcomp.errors import InputError
from onnxcomp.storage.payload import InFile, InMemory, Payload, SourceFile
from onnxcomp.storage.skeleton import LEAST, Skeleton, is_reference, refer, reference_fields, tensors_of
from onnxcomp.storage.validation import byte_size, external_file, external_range, quoted
from onnxcomp.storage.wire import LIMIT, Buffer, WireError, strip

__all__ = ["external_tensors", "locations", "read", "split"]

# A file up to this size is read at once: what is in memory need not be read again.
_SMALL = 64 * 2**20


def read(path: Path) -> tuple[Skeleton, list[Path]]:
    """A model and the other files that its weights are in, by name; the weights are looked for, and not read.

    Raises:
        InputError: the file is missing, is not an ONNX model, or its external data cannot be used.
    """
    skeleton = _read(path)
    for tensor in tensors_of(skeleton.proto):
        if is_reference(tensor):
            _check_size(tensor, skeleton.payload(tensor).nbytes, path)
    files: dict[Path, SourceFile] = {}
    for tensor in external_tensors(skeleton.proto):
        payload = _find(tensor, path, files)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        if payload.nbytes < LEAST:
            tensor.raw_data = bytes(payload.read())
        else:
            refer(tensor, len(skeleton.payloads))
            skeleton.payloads.append(payload)
    return skeleton, sorted(files)


def locations(path: Path) -> set[str]:
    """The other files that a model's weights are in, as it names them.

    Raises:
        InputError: the file is missing or is not an ONNX model.
    """
    tensors = external_tensors(_read(path).proto)
    return {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}


def split(proto: onnx.ModelProto) -> Skeleton:
    """A copy of a message, with its larger weights beside it."""
    skeleton = Skeleton(onnx.ModelProto())
    skeleton.proto.CopyFrom(proto)
    for tensor in tensors_of(skeleton.proto):
        if len(data := tensor.raw_data) >= LEAST and tensor.data_location != onnx.TensorProto.EXTERNAL:
            refer(tensor, len(skeleton.payloads))
            skeleton.payloads.append(InMemory(data))
    return skeleton


def external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Tensors whose bytes are in other files."""
    for tensor in tensors_of(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor


def _read(path: Path) -> Skeleton:
    try:
        size = path.stat().st_size
        source = None if size <= _SMALL else SourceFile(path)
        data = path.read_bytes() if source is None else source.mapped()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of an .onnx model") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the path of an .onnx model") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; check its permissions") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    payloads: list[Payload] = []
    try:
        message, ranges = _without_weights(data)
        for offset, nbytes in ranges:
            inside = InMemory(memoryview(data)[offset : offset + nbytes])
            payloads.append(inside if source is None else InFile(source, offset, nbytes))
        proto = onnx.load_model_from_string(message)
    except (DecodeError, ValueError):
        raise InputError(f"{path}: is not an ONNX model, or is truncated; export or copy it again") from None
    return Skeleton(proto, payloads)


def _without_weights(data: Buffer | mmap.mmap) -> tuple[bytes, list[tuple[int, int]]]:
    """What is to be parsed, and where the weights are that are not in it.

    Raises:
        WireError: it is too long to be parsed with its weights, and cannot be read without them.
    """
    try:
        stripped = strip(data, LEAST, reference_fields)
    except WireError:
        if len(data) > LIMIT:
            raise
        return bytes(data), []  # protobuf is to say what is wrong, if anything is
    return b"".join(stripped.pieces), stripped.ranges


def _check_size(tensor: onnx.TensorProto, nbytes: int, path: Path) -> None:
    where = f"{path}: tensor {quoted(tensor.name)}"
    if nbytes != (wanted := byte_size(tensor, where) or 0):
        shape = tuple(tensor.dims)
        raise InputError(
            f"{where} holds {nbytes} bytes where its dimensions {shape} take {wanted}; export the model again"
        )


def _find(tensor: onnx.TensorProto, path: Path, files: dict[Path, SourceFile]) -> InFile:
    """The bytes of a tensor in another file.

    Raises:
        InputError: there are none, or too few or too many, or the place is none for them.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = external_file(path, entries.get("location", ""), tensor.name)
    expected = byte_size(tensor, f"{path}: tensor {quoted(tensor.name)}")
    try:
        if place not in files:
            files[place] = SourceFile(place)
    except OSError as error:
        raise InputError(
            f"{path}: external data of {quoted(tensor.name)} cannot be read: {error.strerror}; check its permissions"
        ) from None
    source = files[place]
    span = external_range(path, tensor.name, source.size, entries.get("offset"), entries.get("length"), expected)
    return InFile(source, *span)
