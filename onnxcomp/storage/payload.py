"""The bytes of one weight, wherever they are: in memory or in a file."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcomp.errors import InputError
from onnxcomp.files import scratch_folder

__all__ = ["InFile", "InMemory", "Payload", "SourceFile"]

Array = np.ndarray[Any, Any]
Buffer = bytes | memoryview

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
    """A buffer that is held anyway: an array, or part of a small file."""

    def __init__(self, data: Buffer | Array) -> None:
        self._data = data if isinstance(data, bytes | memoryview) else _bytes_of(data)
        self._file: InFile | None = None

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
        if self._file is None:
            self._file = _write_aside(self._data)
        return self._file


class SourceFile:
    """A file that stays open, so that its bytes remain even when another takes its name.

    Attributes:
        path: absolute; links are resolved.
        size: bytes when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._stream = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed with the last payload in it
        self.size = os.fstat(self._stream.fileno()).st_size

    def fileno(self) -> int:
        """For memory maps."""
        return self._stream.fileno()

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill ``target`` with the bytes from ``offset`` on.

        Raises:
            InputError: the file is shorter now, or cannot be read.
        """
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._stream.fileno(), [target[done:]], offset + done)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
            if not count:
                raise InputError(f"{self.path}: was cut short while it was in use; restore it and run again")
            done += count


class InFile:
    """Part of a file. It is read each time it is asked for, so it takes no memory in between."""

    def __init__(self, source: SourceFile, offset: int, nbytes: int) -> None:
        self.source = source
        self.offset = offset
        self._nbytes = nbytes

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
        """Itself."""
        return self

    def chunks(self) -> Iterator[Buffer]:
        """Copies of 8 MB at most; each is overwritten by the next."""
        buffer = np.empty(min(_CHUNK, self._nbytes), np.uint8).data
        for start in range(0, self._nbytes, _CHUNK):
            part = buffer[: min(_CHUNK, self._nbytes - start)]
            self.source.read_into(part, self.offset + start)
            yield part


def _write_aside(data: Buffer) -> InFile:
    try:
        path = _scratch() / f"{next(_COUNT)}.weights"
        path.write_bytes(data)
        source = SourceFile(path)
    except OSError as error:
        where = tempfile.gettempdir()
        raise InputError(f"{where}: weights cannot be put aside there ({error.strerror}); set TMPDIR") from None
    weakref.finalize(source, path.unlink, missing_ok=True)
    return InFile(source, 0, len(data))


_COUNT = itertools.count()


@functools.cache
def _scratch() -> Path:
    """A folder for this process; removed with it, or by another when it is killed."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder())


def _bytes_of(array: Array) -> memoryview:
    """An array's memory, in the order of C."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
