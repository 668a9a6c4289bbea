"""Model files, read without their weights."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxcomp.errors import InputError
from onnxcomp.storage.payload import InFile, InMemory, Payload, SourceFile
from onnxcomp.storage.skeleton import LEAST, Skeleton, byte_size, is_reference, refer, reference_fields, tensors_of
from onnxcomp.storage.wire import WireError, strip

__all__ = ["external_tensors", "read", "split"]

# A file up to this size is read at once: what is in memory need not be read again.
_SMALL = 64 * 2**20


def read(path: Path) -> tuple[Skeleton, bool]:
    """A model and whether it has weights in other files; the weights are looked for, and not read.

    Raises:
        InputError: the file is missing, is not an ONNX model, or its external data cannot be used.
    """
    skeleton = _read(path)
    for tensor in tensors_of(skeleton.proto):
        if is_reference(tensor):
            _check_size(tensor, skeleton.payload(tensor).nbytes, f"{path}: tensor {tensor.name!r} cannot be used:")
    external = False
    files: dict[Path, SourceFile] = {}
    for tensor in external_tensors(skeleton.proto):
        external = True
        payload = _find(tensor, path, files)
        if payload.nbytes < LEAST:
            tensor.raw_data = bytes(payload.read())
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        else:
            refer(tensor, len(skeleton.payloads))
            skeleton.payloads.append(payload)
    return skeleton, external


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
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not is_reference(tensor):
            yield tensor


def _read(path: Path) -> Skeleton:
    try:
        size = path.stat().st_size
        source = None if size <= _SMALL else SourceFile(path)
        data = path.read_bytes() if source is None else mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
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
        stripped = strip(data, LEAST, reference_fields)
        message = b"".join(stripped.pieces)
        for offset, nbytes in stripped.ranges:
            inside = InMemory(memoryview(data)[offset : offset + nbytes])
            payloads.append(inside if source is None else InFile(source, offset, nbytes))
    except WireError:
        message = bytes(data)  # protobuf is to say what is wrong, if anything is
    try:
        proto = onnx.load_model_from_string(message)
    except (DecodeError, ValueError):
        raise InputError(f"{path}: is not an ONNX model, or is truncated; export or copy it again") from None
    return Skeleton(proto, payloads)


def _check_size(tensor: onnx.TensorProto, nbytes: int, problem: str) -> None:
    wanted = byte_size(tensor)
    if wanted is None:
        raise InputError(f"{problem} its type {tensor.data_type} has no size in bytes; export the model again")
    if nbytes != wanted:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        shape = tuple(tensor.dims)
        raise InputError(
            f"{problem} it has {nbytes} bytes where {kind} of shape {shape} takes {wanted}; export the model again"
        )


def _find(tensor: onnx.TensorProto, path: Path, files: dict[Path, SourceFile]) -> InFile:
    """The bytes of a tensor in another file; places outside the model's folder are refused.

    Raises:
        InputError: there are none, or too few or too many.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    problem = f"{path}: external data of {tensor.name!r} cannot be used:"
    place = path.parent / entries.get("location", "")
    folder = os.path.realpath(path.parent)
    target = Path(os.path.realpath(place))
    if not entries.get("location") or os.path.commonpath([folder, target]) != folder or target == Path(folder):
        raise InputError(f"{problem} {entries.get('location')!r} is outside the model's folder")
    try:
        if target not in files:
            files[target] = SourceFile(target)
        source = files[target]
    except OSError as error:
        raise InputError(f"{problem} {place}: {error.strerror}; copy it beside the model") from None
    try:
        offset = int(entries.get("offset") or 0)
        nbytes = int(entries.get("length") or source.size - offset)
    except ValueError:
        raise InputError(f"{problem} its offset or length is no number; export the model again") from None
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        raise InputError(f"{problem} {place} ends before byte {offset + nbytes}; copy it again")
    _check_size(tensor, nbytes, problem)
    return InFile(source, offset, nbytes)
