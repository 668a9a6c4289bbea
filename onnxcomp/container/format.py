"""The container's frame: a header that says what was packed, then blocks, each with its checksum.

docs/container.md describes it byte by byte.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from onnxcomp.container.rans import CodeError
from onnxcomp.container.segments import BLOCK
from onnxcomp.container.wire import Reader, Writer
from onnxcomp.errors import InputError

__all__ = [
    "GROWTH",
    "SUFFIX",
    "Header",
    "StoredFile",
    "block",
    "has_suffix",
    "is_packed",
    "read_block",
    "read_header",
    "read_number",
]

MAGIC = b"\x89ONXZ\r\n\x1a"  # as PNG's: no text, and damaged by whatever changes the ends of lines
VERSION = 1
SUFFIX = ".onnxz"
"""Of packed models' files."""

GROWTH = 2**12
"""How many times larger than its container a model may be; one that would be more gets zeros appended."""

_MOST_HEADER = 2**24
_MOST_FILES = 2**16
_LONGEST_NAME = 255  # bytes between slashes, as file systems have it
_CHECKSUM = 4


@dataclass(frozen=True)
class StoredFile:
    """A file in the container.

    Attributes:
        name: relative to the model's folder; empty for the model's own file.
        size: bytes.
        digest: SHA-256.
    """

    name: str
    size: int
    digest: bytes


@dataclass(frozen=True)
class Header:
    """What a container says about itself.

    Attributes:
        files: the model's own, then those of its external data.
        recipe: how onnxcomp made the model: ``onnxcomp`` (version), ``pipeline`` (text), ``seed``; or nothing.
    """

    files: tuple[StoredFile, ...]
    recipe: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def encoded(self) -> bytes:
        """The bytes that the container begins with."""
        body = Writer()
        body.data(json.dumps(self.recipe, sort_keys=True, separators=(",", ":")).encode() if self.recipe else b"")
        body.number(len(self.files))
        for file in self.files:
            body.data(file.name.encode())
            body.number(file.size)
            body.plain(file.digest)
        frame = Writer()
        frame.plain(MAGIC)
        frame.number(VERSION)
        frame.plain(_framed(body.done()))
        return frame.done()


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a container, by its first bytes; false where there is none that can be read."""
    try:
        if not os.path.isfile(path):  # a pipe would keep us waiting, and lose what is read
            return False
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def has_suffix(path: Path) -> bool:
    """Whether a file of this name is to be a packed model."""
    return path.suffix.lower() == SUFFIX


def block(body: bytes) -> bytes:
    """A block as it stands in the container."""
    return _framed(body)


def _framed(body: bytes) -> bytes:
    frame = Writer()
    frame.data(body)
    frame.plain(zlib.crc32(body).to_bytes(_CHECKSUM, "little"))
    return frame.done()


# -- reading -----------------------------------------------------------------------------------------------


def read_header(stream: IO[bytes], size: int) -> Header:
    """The header of a container of ``size`` bytes.

    Raises:
        InputError: it was made by a newer onnxcomp.
        CodeError: it is no header, or one of more than the container can hold.
    """
    if stream.read(len(MAGIC)) != MAGIC:
        raise CodeError("it does not begin as a packed model does")
    if (version := read_number(stream, 2**32)) != VERSION:
        if not version:
            raise CodeError("it is of no version of the format")
        raise InputError(f"was packed in version {version} of the format, and {VERSION} is known; update onnxcomp")
    reader = Reader(_read_framed(stream, min(_MOST_HEADER, size)))
    recipe = _recipe(reader.data())
    files = tuple(
        StoredFile(_name(reader.data(), index), reader.number(), reader.plain(32))
        for index in range(reader.number(_MOST_FILES))
    )
    reader.end()
    header = Header(files, recipe)
    if not files:
        raise CodeError("it holds no file")
    _check_apart([PurePosixPath(file.name) for file in files[1:]])
    if header.size > GROWTH * size:
        raise CodeError(f"it cannot hold the {header.size} bytes that it says")
    return header


def _recipe(data: bytes) -> dict[str, Any]:
    try:
        recipe = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise CodeError("its recipe is no JSON") from None
    if not isinstance(recipe, dict):
        raise CodeError("its recipe is no JSON object")
    return recipe


def _name(data: bytes, index: int) -> str:
    """A relative path that stays below the folder; only the model's own file has none."""
    try:
        name = data.decode()
    except UnicodeDecodeError:
        raise CodeError("a file's name is no text") from None
    parts = PurePosixPath(name).parts
    if bool(name) != bool(index) or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CodeError("a file's name is none in the model's folder")
    if name and (os.path.isabs(name) or Path(name).drive or name == "." or name != PurePosixPath(name).as_posix()):
        raise CodeError("a file's name is none in the model's folder")
    if any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise CodeError(f"a file's name has more than {_LONGEST_NAME} bytes")
    return name


def _check_apart(names: list[PurePosixPath]) -> None:
    """That all can be there at once: each is named once, and none is the folder of another."""
    known = set(names)
    if len(known) < len(names) or any(parent in known for name in names for parent in name.parents):
        raise CodeError("two of its files have the same name, or one that the other has as a folder's")


def read_block(stream: IO[bytes]) -> bytes:
    """The body of the next block.

    Raises:
        CodeError: it is truncated or damaged.
    """
    return _read_framed(stream, BLOCK + 16)


def _read_framed(stream: IO[bytes], most: int) -> bytes:
    size = read_number(stream, most)
    body = stream.read(size)
    checksum = stream.read(_CHECKSUM)
    if len(body) < size or len(checksum) < _CHECKSUM:
        raise CodeError("it is truncated")
    if zlib.crc32(body) != int.from_bytes(checksum, "little"):
        raise CodeError("a checksum differs")
    return body


def read_number(stream: IO[bytes], most: int) -> int:
    """A number of at most ``most``.

    Raises:
        CodeError: it is larger, or the stream ends.
    """
    digits = bytearray()
    while True:
        byte = stream.read(1)
        digits += byte
        if not byte:
            raise CodeError("it is truncated")
        if byte[0] < 0x80 or len(digits) > 9:
            return Reader(bytes(digits)).number(most)
