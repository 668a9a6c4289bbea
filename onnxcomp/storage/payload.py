"""The bytes of one weight, wherever they are: in memory or in a file."""

from __future__ import annotations

import atexit
import functools
import itertools
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcomp.errors import InputError
from onnxcomp.files import scratch_folder
from onnxcomp.storage.wire import Buffer

__all__ = ["InFile", "InMemory", "Payload", "SourceFile", "process_folder"]

Array = np.ndarray[Any, Any]

_CHUNK = 8 * 2**20


class Payload(Protocol):
    """Bytes that do not change."""

    @property
    def nbytes(self) -> int:
        """How many."""

    def read(self) -> Buffer:
        """All of them. The memory may be shared, and must not be written into."""

    def chunks(self) -> Iterator[Buffer]:
        """All of them, part by part."""

    def in_file(self) -> InFile:
        """The same bytes in a file."""


class InMemory:
    """A buffer that is held anyway: an array, or part of a small file.

    Args:
        data: the buffer.
        files: where ``in_file`` keeps what it writes, for payloads of the same data to share.
    """

    def __init__(self, data: Buffer | Array, files: list[InFile] | None = None) -> None:
        self._data = data if isinstance(data, bytes | memoryview) else _bytes_of(data)
        self._files = [] if files is None else files

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return len(self._data)

    def read(self) -> Buffer:
        """The buffer itself."""
        return self._data

    def chunks(self) -> Iterator[Buffer]:
        """The buffer itself."""
        yield self._data

    def in_file(self) -> InFile:
        """The same bytes in a temporary file, which is deleted when nothing refers to it any more.

        Raises:
            InputError: there is no room for it.
        """
        if not self._files:
            self._files.append(_write_aside([self._data]))
        return self._files[0]


class SourceFile:
    """A file whose bytes are those of the moment when it was opened, or else an error.

    It stays open, so that its bytes remain even when another takes its name. Where too many are open already, or the
    system cannot read without moving a position that others share (Windows), it is opened anew for each read.

    Args:
        path: the file.
        keep: whether it is to stay open.

    Attributes:
        path: absolute; links are resolved.
        size: bytes when it was opened.
        keeps: an object on whose life the file depends.
    """

    def __init__(self, path: Path, keep: bool = True) -> None:
        self.path = Path(os.path.realpath(path))
        stream = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed with the last payload in it
        self._found = os.fstat(stream.fileno())
        self.size = self._found.st_size
        self.keeps: object = None
        self._stream: FileIO | None = None
        if keep and _CAN_SHARE and len(_KEPT) < _MOST_KEPT:
            self._stream = stream
            _KEPT.add(self)
            weakref.finalize(self, stream.close)
        else:
            stream.close()

    @property
    def is_current(self) -> bool:
        """Whether the file of this name is still the one that was opened."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return os.path.samestat(found, self._found) and not self._is_changed(found)

    def mapped(self) -> mmap.mmap:
        """The whole of the file, which must not be empty, as memory that is read where it is touched."""
        with self._opened() as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill ``target`` with the bytes from ``offset`` on.

        Raises:
            InputError: the file is another one now, or cannot be read.
        """
        done = 0
        try:
            with self._opened() as stream:
                while done < len(target):
                    count = _read_at(stream, target[done : done + _MOST_READ], offset + done)
                    if not count:
                        raise InputError(f"{self.path}: was cut short while it was in use; restore it and run again")
                    done += count
                if self._is_changed(os.fstat(stream.fileno())):
                    raise InputError(f"{self.path}: was changed while it was in use; load the model again")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}; restore it and run again") from None

    def _is_changed(self, found: os.stat_result) -> bool:
        """Whether the content is another; the number of a file that is opened anew may change on network drives."""
        return (found.st_size, found.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns)

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        if self._stream is not None:
            yield self._stream
        else:
            with open(self.path, "rb", buffering=0) as stream:
                yield stream


class InFile:
    """Part of a file. It is read each time it is asked for, so it takes no memory in between."""

    def __init__(self, source: SourceFile, offset: int, nbytes: int) -> None:
        self.source = source
        self.offset = offset
        self._nbytes = nbytes
        self._elsewhere: InFile | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        return self._nbytes

    def read(self) -> Buffer:
        """A copy in new memory, aligned for any type."""
        data = np.empty(self._nbytes, np.uint8).data
        self.source.read_into(data, self.offset)
        return data

    def in_file(self) -> InFile:
        """Itself; where another file has taken the name, the same bytes in a temporary file.

        Raises:
            InputError: there is no room for it, or the bytes are lost.
        """
        if self.source.is_current:
            return self
        if self._elsewhere is None:
            self._elsewhere = _write_aside(self.chunks())
        return self._elsewhere

    def chunks(self) -> Iterator[Buffer]:
        """Copies of 8 MB at most; each is overwritten by the next."""
        buffer = np.empty(min(_CHUNK, self._nbytes), np.uint8).data
        for start in range(0, self._nbytes, _CHUNK):
            part = buffer[: min(_CHUNK, self._nbytes - start)]
            self.source.read_into(part, self.offset + start)
            yield part


# -- source files --------------------------------------------------------------------------------------------

_CAN_SHARE = hasattr(os, "preadv")
_KEPT: weakref.WeakSet[SourceFile] = weakref.WeakSet()
_MOST_KEPT = 128  # a model may have a file for each weight; systems allow 256 open files and more
_MOST_READ = 2**30  # some systems refuse to read 2 GB at once


def _read_at(stream: FileIO, target: memoryview, offset: int) -> int:
    if _CAN_SHARE:
        return os.preadv(stream.fileno(), [target], offset)  # moves no position, which threads and forks share
    stream.seek(offset)
    return stream.readinto(target) or 0


# -- temporary files -----------------------------------------------------------------------------------------

_COUNT = itertools.count()


def _write_aside(chunks: Iterable[Buffer]) -> InFile:
    path: Path | None = None
    try:
        path = process_folder() / f"{next(_COUNT)}.weights"
        with path.open("wb") as stream:
            size = sum(map(stream.write, chunks))
        source = SourceFile(path, keep=False)  # nobody else writes there
    except BaseException as error:
        if path is not None:
            path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        where = tempfile.tempdir or "the folder of temporary files"
        raise InputError(f"{where}: weights cannot be put aside there ({error.strerror}); set TMPDIR") from None
    weakref.finalize(source, _remove, path, os.getpid())
    return InFile(source, 0, size)


def process_folder() -> Path:
    """A folder for temporary files that go with this process.

    Raises:
        OSError: it cannot be made.
    """
    return _scratch(os.getpid())


@functools.cache
def _scratch(process: int) -> Path:  # noqa: ARG001 - a fork must not write into its parent's folder
    """Removed with the process, or by another when it is killed."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder())


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # what a fork has no use for, its parent may have
        with suppress(OSError):  # Windows removes no file that a session maps; it goes with its folder
            path.unlink()


def _bytes_of(array: Array) -> memoryview:
    """An array's memory, in the order of C."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
