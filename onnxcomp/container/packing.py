"""Models packed: every weight entropy coded, all of it to be restored to the bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from onnxcomp.container import encoding
from onnxcomp.container.aside import aside
from onnxcomp.container.format import GROWTH, Header, StoredFile, block, is_packed, read_header
from onnxcomp.container.rans import CodeError
from onnxcomp.container.segments import blocks_of
from onnxcomp.container.spans import PlainFile, plain_files
from onnxcomp.errors import InputError
from onnxcomp.files import open_atomic, same_file

__all__ = ["pack", "pack_model"]

_PIECE = 2**22
_LONGEST_STEM = 200  # bytes


def pack(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Pack a model: its file, and its external data, in one file from which ``restore`` makes the same bytes again.

    Weights are entropy coded, each by the way that makes it smallest. One block of 16 MB is in memory at a time.

    Example::

        onnxcomp.pack("net.onnx", "net.onnxz")
        onnxcomp.restore("net.onnxz", "again.onnx")

    Args:
        source: the plain model.
        destination: the container to write, whole or not at all; by custom its name ends in ``.onnxz``.
        recipe: how the model was made, to be kept in the header; it must be JSON.

    Returns:
        bytes of the container.

    Raises:
        InputError: the model cannot be read, is packed already, or changes meanwhile; or the container cannot
            be written.
    """
    source, destination = Path(source), Path(destination)
    if is_packed(source):
        raise InputError(f"{source}: is packed already; name a plain .onnx model, or restore it first")
    files = plain_files(source)
    if any(same_file(file.source.path, destination) for file in files):
        raise InputError(f"{destination}: is the model that is to be packed, or its weights; name another file")
    stored = [StoredFile(file.name, file.source.size, _digest(file)) for file in files]
    header = Header(tuple(stored), dict(recipe or {}))
    encoded = _encoded(header, source)
    with open_atomic(destination) as stream, threadpool_limits(1, "blas"):  # sums of any number of threads differ
        size = stream.write(encoded)
        for file in files:
            for body in _coded(file):
                size += stream.write(block(body))
        size += stream.write(bytes(max(0, -(-header.size // GROWTH) - size)))
    return size


class Saveable(Protocol):
    """What can be written as a plain model: ``Model``."""

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write it."""


def pack_model(model: Saveable, destination: Path, recipe: Mapping[str, Any] | None = None) -> int:
    """Pack what a model in memory would be saved as; returns the bytes of the container.

    Raises:
        InputError: there is no room for the plain file among the temporary ones, or the container cannot be written.
    """
    with aside(destination) as folder:
        stem = destination.stem  # the file of the weights is named after it
        plain = folder / f"{stem if 0 < len(os.fsencode(stem)) <= _LONGEST_STEM else 'model'}.onnx"
        model.save(plain)
        return pack(plain, destination, recipe)


def _encoded(header: Header, source: Path) -> bytes:
    """The header, found to be one that can be read: no model is packed that cannot be restored."""
    encoded = header.encoded()
    try:
        if read_header(BytesIO(encoded), header.size + len(encoded)).files != header.files:
            raise CodeError("the names of its files come back as others")
    except CodeError as error:
        raise InputError(f"{source}: cannot be packed, {error}; save it with its weights in one file") from None
    return encoded


def _digest(file: PlainFile) -> bytes:
    digest = hashlib.sha256()
    for offset in range(0, file.source.size, _PIECE):
        digest.update(_read(file, offset, min(_PIECE, file.source.size - offset)))
    return digest.digest()


def _coded(file: PlainFile) -> Iterator[bytes]:
    """The bodies of a file's blocks."""
    for offset, nbytes, segments in blocks_of(file.source.size, file.spans):
        yield encoding.encode(_read(file, offset, nbytes), segments)


def _read(file: PlainFile, offset: int, nbytes: int) -> bytes:
    data = np.empty(nbytes, np.uint8)
    file.source.read_into(data.data, offset)
    return data.tobytes()
