"""Packed models restored to the bytes that were packed, or refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onnxcomp.container import decoding
from onnxcomp.container.format import GROWTH, Header, StoredFile, read_block, read_header
from onnxcomp.container.placing import Placed
from onnxcomp.container.rans import CodeError
from onnxcomp.container.segments import BLOCK
from onnxcomp.errors import InputError
from onnxcomp.files import open_atomic, same_file

__all__ = ["header_of", "restore"]

_AGAIN = "copy it again, or pack the model again"
_PIECE = 2**20


def restore(source: str | os.PathLike[str], destination: str | os.PathLike[str]) -> int:
    """Restore a packed model: the model's file, and its external data beside it under the names it refers to.

    Every byte is checked against the hash of what was packed before any file appears under its name. One block of
    16 MB is in memory at a time.

    Example::

        onnxcomp.restore("net.onnxz", "net.onnx")

    Args:
        source: the container.
        destination: the model's file to write.

    Returns:
        bytes of all files written.

    Raises:
        InputError: the container is damaged, truncated or none; a file with external data would replace another;
            or a file cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if same_file(source, destination):
        raise InputError(f"{destination}: is the packed model itself; name another file to restore it to")
    # The model's own file gets its name last, when all that it refers to is there.
    with _opened(source) as (stream, header), Placed(source, destination) as placed, open_atomic(destination) as target:
        placed.check(header.files[1:])
        _restore_file(stream, header.files[0], target)
        for file in header.files[1:]:
            with placed.opened(file) as beside:
                _restore_file(stream, file, beside)
        _check_end(stream, header)
    return header.size


def header_of(source: str | os.PathLike[str]) -> Header:
    """What a container says about itself.

    Raises:
        InputError: it is damaged, truncated or none.
    """
    with _opened(Path(source)) as (_, header):
        return header


@contextmanager
def _opened(source: Path) -> Iterator[tuple[IO[bytes], Header]]:
    """A container behind its header; what is found wrong with it in the block is said in one sentence."""
    try:
        if source.exists() and not source.is_file():  # a pipe would keep us waiting
            raise InputError(f"{source}: is no plain file; give the path of a packed model")
        stream = source.open("rb")
    except FileNotFoundError:
        raise InputError(f"{source}: no such file; give the path of a packed model") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from None
    with stream:
        try:
            try:
                header = read_header(stream, os.fstat(stream.fileno()).st_size)
            except InputError as error:
                raise InputError(f"{source}: {error}") from None
            yield stream, header
        except CodeError as error:
            raise InputError(f"{source}: cannot be restored, {error}; {_AGAIN}") from None


def _restore_file(stream: IO[bytes], file: StoredFile, target: IO[bytes]) -> None:
    digest = hashlib.sha256()
    done = 0
    while done < file.size:
        data = _next_block(stream, file.size - done)
        digest.update(data)
        target.write(data)
        done += len(data)
    if digest.digest() != file.digest:
        raise CodeError("its content has another hash than what was packed")


def _next_block(stream: IO[bytes], most: int) -> bytes:
    body = read_block(stream)
    try:
        return decoding.decode(body, min(most, BLOCK))
    except CodeError:
        raise
    except (ValueError, IndexError, OverflowError) as error:
        raise CodeError(f"a block is damaged ({type(error).__name__})") from error


def _check_end(stream: IO[bytes], header: Header) -> None:
    """Nothing follows but the zeros that keep the container from being too small."""
    missing = max(0, -(-header.size // GROWTH) - stream.tell())
    while piece := stream.read(_PIECE):
        missing -= len(piece)
        if missing < 0 or any(piece):
            raise CodeError("it holds more than it should")
    if missing:
        raise CodeError("it is truncated")
