"""A decoder of packed models, written from docs/container.md alone. It is slow, and imports no onnxcomp."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import zlib
from typing import Any

import numpy as np

WIDTHS = {**dict.fromkeys((7, 11, 13, 15), 8), **dict.fromkeys((1, 6, 12, 14), 4), **dict.fromkeys((4, 5, 10, 16), 2)}
FLOATS, SIGNED = (1, 10, 11, 14, 15, 16), (5, 6, 7)
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
ROOTS = (65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194)


class Bytes:
    """Reads one part after the other."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        assert count <= len(self.rest)
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def number(self) -> int:
        byte = self.take(1)[0]
        return byte if byte < 128 else byte - 128 + 128 * self.number()

    def data(self) -> bytes:
        return self.take(self.number())

    def framed(self) -> Bytes:
        body = self.data()
        assert zlib.crc32(body) == int.from_bytes(self.take(4), "little")
        return Bytes(body)


def read(container: bytes) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files in a container by name, and its recipe."""
    stream = Bytes(container)
    assert stream.take(8) == bytes.fromhex("894F4E585A0D0A1A")
    assert stream.number() == 1
    header = stream.framed()
    recipe = json.loads(header.data() or b"{}")
    listed = [(header.data().decode(), header.number(), header.take(32)) for _ in range(header.number())]
    files = {}
    for name, size, digest in listed:
        data = b""
        while len(data) < size:
            data += block(stream.framed())
        assert hashlib.sha256(data).digest() == digest
        files[name] = data
    least = -(-sum(map(len, files.values())) // 4096)
    assert stream.rest == bytes(max(0, least - (len(container) - len(stream.rest))))
    return files, recipe


def unpacked(data: bytes, size: int) -> bytes:
    """Out of LZMA."""
    dictionary = max(2**12, min(2**24, 1 << (size - 1).bit_length())) if size else 0
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}]
    result = lzma.decompress(data, lzma.FORMAT_RAW, filters=filters) if size else b""
    assert len(result) == size
    return result


class Plan:
    """A plane: its mode and what belongs to it, and its symbols once they are known."""

    def __init__(self, head: Bytes, shape: tuple[int, int, int], size: int) -> None:
        self.mode, self.shape, self.size, self.stage = head.number(), shape, size, 0
        self.mask: np.ndarray[Any, Any] | None = None
        self.stored = size if self.mode == 0 else head.number() if self.mode == 1 else 0
        self.symbols = np.zeros(size, np.uint8)
        if self.mode == 2:
            self.table = head.number()
        elif self.mode > 2:
            row, column, tap = (np.frombuffer(head.take(count), np.uint8).astype(int) for count in shape)
            tables = np.array([head.number() for _ in range(head.number())])
            self.tables = tables[row[:, None, None] + column[:, None] + tap]
        if self.mode == 4:
            self.symbols = self.symbols.reshape(shape)
            before = (min(tap, 8) for tap in range(1, shape[2]))
            self.coefficients = [np.frombuffer(head.take(count), np.int8) for count in before]

    def fill(self, stream: Bytes) -> None:
        data = stream.take(self.stored)
        if self.mode < 2:
            self.symbols = np.frombuffer(data if self.mode == 0 else unpacked(data, self.size), np.uint8)

    def decode(self, stage: int, coder: Coder, array: Array | None) -> None:
        """The symbols of a stage, if the plane has any."""
        if self.mode == 4 and stage < self.shape[2]:
            found = np.array([coder.symbol(table) for table in self.tables[:, :, stage].ravel()])
            if stage:
                weights = self.coefficients[stage - 1].astype(int)
                before = self.symbols[:, :, stage - len(weights) : stage].view(np.int8).astype(int)
                found = found + ((32 + (before * weights).sum(axis=2)) // 64).ravel()
            self.symbols[:, :, stage] = (found % 256).reshape(self.shape[:2])
        elif self.mode in (2, 3) and stage == self.stage:
            tables = np.full(self.size, self.table) if self.mode == 2 else self.tables.ravel()
            if self.mode == 3 and array is not None:
                tables = tables[array.flags()]
            self.symbols = np.array([coder.symbol(table) for table in tables], np.uint8)


class Array:
    """An array as the head describes it."""

    def __init__(self, head: Bytes) -> None:
        self.gap, self.element = head.number(), head.number()
        self.shape = head.number(), head.number(), head.number()
        self.width = WIDTHS.get(self.element, 1)
        self.planes: list[Plan] = []
        self.mask: Plan | None = None

    def describe(self, head: Bytes) -> None:
        self.form, count = head.number(), math.prod(self.shape)
        if self.form == 1:
            self.order, kept = head.number(), head.number()
            first, *others = (self.shape[axis] for axis in ORDERS[self.order])
            inner, size = math.prod(others), -(-count // 8)
            self.mask = Plan(head, (first, inner // 8, 1) if inner % 8 == 0 else (1, size, 1), size)
            count = kept
        if self.form in (2, 3):
            self.source, self.factor = head.number(), head.take(4 * (self.form == 3))
        elif self.form == 4:
            self.planes = [Plan(head, self.shape, count * self.width)]
        elif count:
            self.planes = [Plan(head, self.shape, count) for _ in range(self.width)]
        for plane in self.planes:
            plane.stage = int(self.form == 1)

    def flags(self) -> np.ndarray[Any, Any]:
        assert self.mask is not None
        axes = ORDERS[self.order]
        bits = np.unpackbits(self.mask.symbols, count=math.prod(self.shape))
        return bits.reshape([self.shape[axis] for axis in axes]).transpose(np.argsort(axes)).ravel().astype(bool)

    def made(self, earlier: list[bytes]) -> bytes:
        if self.form == 2:
            return earlier[self.source]
        if self.form == 3:
            return (np.frombuffer(earlier[self.source], "<f4") * np.frombuffer(self.factor, "<f4")).tobytes()
        if self.form == 4:
            return self.planes[0].symbols.tobytes()
        numbers = [0] * math.prod(self.shape)
        places = np.flatnonzero(self.flags()) if self.mask else range(len(numbers))
        bits = 8 * self.width
        for place, digits in zip(
            places, zip(*(plane.symbols.ravel() for plane in self.planes), strict=True), strict=False
        ):
            value = int.from_bytes(bytes(digits), "big")
            if self.width > 1 and self.element in FLOATS:
                value = value >> 1 | (value & 1) << (bits - 1)
            elif self.element in SIGNED:
                value = (value >> 1 ^ -(value & 1)) % 2**bits
            numbers[place] = value
        return b"".join(number.to_bytes(self.width, "little") for number in numbers)


class Coder:
    """The lanes."""

    def __init__(self, tables: list[list[int]], lanes: int, states: bytes, words: bytes) -> None:
        bits = np.unpackbits(np.frombuffer(states, np.uint8)).tolist()
        counts = [
            16 + sum(bit << place for place, bit in enumerate(bits[4 * lane : 4 * lane + 4])) for lane in range(lanes)
        ]
        at, self.states = 8 * -(-lanes // 2), []
        for count in counts:
            self.states.append(sum(bit << place for place, bit in enumerate([*bits[at : at + count], 1])))
            at += count
        assert len(bits) == 8 * -(-at // 8)
        self.words = np.frombuffer(words, "<u2").tolist()[::-1]
        self.ends = [np.cumsum(table) for table in tables]
        self.tables, self.next = tables, 0

    def symbol(self, table: int) -> int:
        state = self.states[self.next]
        low = state % 2**14
        symbol = int(np.searchsorted(self.ends[table], low, side="right"))
        frequency = self.tables[table][symbol]
        state = frequency * (state >> 14) + low - int(self.ends[table][symbol]) + frequency
        if state < 2**16:
            state = state << 16 | self.words.pop()
        self.states[self.next] = state
        self.next = (self.next + 1) % len(self.states)
        return symbol


def frequencies(levels: list[int]) -> list[int]:
    weights = [min(2**48, ROOTS[(n - 1) % 8] << ((n - 1) // 8)) if n else 0 for n in levels]
    shift = max(0, sum(weights).bit_length() - 48)
    result = [max(1, (weight >> shift) * 2**14 // (sum(weights) >> shift)) if weight else 0 for weight in weights]
    largest = result.index(max(result))
    result[largest] += 2**14 - sum(result)
    if result[largest] == 2**14:
        result[largest] -= 1
        result[largest ^ 1] += 1
    return result


def block(body: Bytes) -> bytes:
    """The bytes that a block stands for."""
    kind, size = body.number(), body.number()
    if not kind:
        return body.take(size)
    head_size = body.number()
    head = Bytes(unpacked(body.data(), head_size))
    skeleton_size, skeleton_packed = head.number(), head.number()
    arrays = [Array(head) for _ in range(head.number())]
    differences = [np.frombuffer(head.take(256), np.uint8) for _ in range(head.number())]
    tables = [frequencies(np.cumsum(levels, dtype=np.uint8).tolist()) for levels in differences]
    for array in arrays:
        array.describe(head)
    for array in arrays:
        if array.mask:
            array.mask.fill(body)
    coder = Coder(tables, body.number(), body.data(), body.data())
    for stage in range(64):
        coder.next = 0
        for array in arrays:
            if array.mask:
                array.mask.decode(stage, coder, None)
            for plane in array.planes:
                plane.decode(stage, coder, array if array.mask else None)
    assert not coder.words
    rest = Bytes(b"".join((state - 2**16).to_bytes(2, "little") for state in coder.states) + body.rest)
    skeleton = Bytes(unpacked(rest.take(skeleton_packed), skeleton_size))
    made: list[bytes] = []
    result = b""
    for array in arrays:
        for plane in array.planes:
            plane.fill(rest)
        made.append(array.made(made))
        result += skeleton.take(array.gap) + made[-1]
    assert not any(rest.rest)
    return result + skeleton.rest
