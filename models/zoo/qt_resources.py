"""Read the files that are packed in a compiled Qt resource (``.rcc``, format versions 1 to 3)."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_COMPRESSED, _FOLDER = 1, 2  # zlib, behind four bytes that state the size
_TIMES_SINCE = 2  # the version from which nodes end with a time of change


class _Offsets(NamedTuple):
    tree: int
    data: int
    names: int


def qt_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path inside the resource and the content of each file, in the order of its tree.

    Raises:
        ValueError: the file is no resource, or holds a file compressed otherwise than by zlib.
    """
    packed = path.read_bytes()
    if packed[:4] != b"qres":
        raise ValueError(f"{path} is no compiled Qt resource")
    version, *offsets = struct.unpack_from(">4I", packed, 4)
    yield from _below(packed, _Offsets(*offsets), 22 if version >= _TIMES_SINCE else 14, 0, "")


def _below(packed: bytes, at: _Offsets, node_size: int, index: int, parent: str) -> Iterator[tuple[str, bytes]]:
    """Of one node of the tree: name, flags, then number and position of children, or language and place of the data."""
    node = at.tree + node_size * index
    name_at, flags = struct.unpack_from(">IH", packed, node)
    name = f"{parent}/{_name(packed, at.names + name_at)}" if index else ""  # the root has none
    if flags & _FOLDER:
        count, first = struct.unpack_from(">II", packed, node + 6)
        for child in range(first, first + count):
            yield from _below(packed, at, node_size, child, name)
        return
    start = at.data + struct.unpack_from(">I", packed, node + 10)[0]
    content = packed[start + 4 : start + 4 + struct.unpack_from(">I", packed, start)[0]]
    if flags & ~(_COMPRESSED | _FOLDER):
        raise ValueError(f"{name} is compressed in a way that this reader does not know")
    yield name, zlib.decompress(content[4:]) if flags & _COMPRESSED else content


def _name(packed: bytes, start: int) -> str:
    (length,) = struct.unpack_from(">H", packed, start)
    return packed[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # behind a hash of four bytes
