"""Numbers and bytes of the container, written and read with every length checked."""

from __future__ import annotations

import lzma
from collections.abc import Sequence

from onnxcomp.container.rans import CodeError
from onnxcomp.storage.wire import varint

__all__ = ["Reader", "Writer", "deflated", "inflated"]

_MOST_DICTIONARY = 2**24


class Writer:
    """Collects numbers and bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """A number from 0 on, seven bits a byte."""
        self._parts.append(varint(value))

    def numbers(self, values: Sequence[int]) -> None:
        """Their count, then each of them."""
        self.number(len(values))
        for value in values:
            self.number(value)

    def plain(self, data: bytes) -> None:
        """Bytes whose count the reader knows."""
        self._parts.append(data)

    def data(self, data: bytes) -> None:
        """Bytes behind their count."""
        self.number(len(data))
        self._parts.append(data)

    def done(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class Reader:
    """Reads what a ``Writer`` wrote. Every method raises ``CodeError`` where the bytes end too early."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at

    def number(self, most: int = 2**62) -> int:
        """A number of at most ``most``."""
        value = shift = 0
        while True:
            byte = self.plain(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise CodeError("a number does not end")
        if value > most:
            raise CodeError(f"a number is {value} where {most} is the most there can be")
        return value

    def numbers(self, most: int = 2**62) -> list[int]:
        """Numbers of at most ``most``; their count is bounded by the bytes there are."""
        return [self.number(most) for _ in range(self.number(self.left))]

    def plain(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.left:
            raise CodeError("the bytes end too early")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def data(self) -> bytes:
        """Bytes behind their count."""
        return self.plain(self.number())

    def end(self) -> None:
        """That nothing is left."""
        if self.left:
            raise CodeError(f"{self.left} bytes are left over")


def deflated(data: bytes) -> bytes:
    """Bytes of any kind, smaller (LZMA2 without a container)."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[_filter(len(data))]) if data else b""


def inflated(data: bytes, size: int) -> bytes:
    """The ``size`` bytes that ``deflated`` was given; never takes more memory than they and a dictionary do.

    Raises:
        CodeError: they are other bytes, or more or fewer.
    """
    if not size and not data:
        return b""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_filter(size)])
    try:
        result = decompressor.decompress(data, size)
        if len(result) < size:
            raise CodeError("compressed bytes end too early")
        if not decompressor.eof and decompressor.decompress(b"", 1):
            raise CodeError("compressed bytes give more than they should")
    except (lzma.LZMAError, EOFError):
        raise CodeError("compressed bytes are damaged") from None
    if not decompressor.eof or decompressor.unused_data:
        raise CodeError("compressed bytes do not end where they must")
    return result


def _filter(size: int) -> dict[str, int]:
    """A dictionary no larger than the data can use: it is what takes memory."""
    dictionary = 4096
    while dictionary < min(size, _MOST_DICTIONARY):
        dictionary *= 2
    return {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}
