"""A block of a file, decoded. What is read is believed only as far as it was checked: files come from strangers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.container import planes, rans, scales, taps
from onnxcomp.container.encoding import CODED, MOST_HEAD, STORED
from onnxcomp.container.plans import Mode
from onnxcomp.container.rans import CodeError
from onnxcomp.container.segments import MOST_TAPS, Segment
from onnxcomp.container.tables import from_levels
from onnxcomp.container.wire import Reader, inflated

__all__ = ["decode"]

Array = np.ndarray[Any, Any]

_MOST_TABLES = 256
_HEAD_GROWTH = 2**12  # how far LZMA can shrink a head that says something


@dataclass
class _Plane:
    """A plane as its head describes it."""

    mode: Mode
    shape: tuple[int, int, int]
    stored: int = 0  # bytes among those stored as they are
    levels: scales.Levels | None = None
    coefficients: list[Array] = field(default_factory=list)
    tables: Array = field(default_factory=lambda: np.zeros(1, np.uint8))
    symbols: Array = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def decode(body: bytes, most: int) -> bytes:
    """The block that was coded.

    Args:
        body: its code.
        most: bytes that it may have.

    Raises:
        CodeError: it is no code, or one of a larger block or an empty one.
    """
    reader = Reader(body)
    kind, size = reader.number(CODED), reader.number(most)
    if not size:
        raise CodeError("a block is empty")
    if kind == STORED:
        data = reader.plain(size)
        reader.end()
        return data
    head_size = reader.number(MOST_HEAD)
    packed_head = reader.data()
    if head_size > _HEAD_GROWTH * (len(packed_head) + 1):
        raise CodeError("a head is too large")
    head = Reader(inflated(packed_head, head_size))
    skeleton_size, skeleton_stored = head.number(size), head.number(len(body))
    segments = _segments(head, size, skeleton_size)
    frequencies, found = _tables_and_planes(head, segments)
    coded = [plane for plane in found if plane.mode >= Mode.ONE]
    lanes = rans.lanes_for(sum(plane.size for plane in coded))
    states, words = reader.plain(4 * lanes), reader.data()
    decoder = rans.Decoder(frequencies, lanes, states, words)
    _decode_coded(decoder, coded)
    carried = decoder.carried()
    stored = skeleton_stored + sum(plane.stored for plane in found)
    if any(carried[stored:]):
        raise CodeError("a block ends with more than it should")
    rest = Reader(carried[:stored] + reader.plain(reader.left))
    skeleton = inflated(rest.plain(skeleton_stored), skeleton_size)
    for plane in found:
        if plane.mode == Mode.RAW:
            plane.symbols = np.frombuffer(rest.plain(plane.stored), np.uint8)
        elif plane.mode == Mode.REPEATS:
            plane.symbols = np.frombuffer(inflated(rest.plain(plane.stored), plane.size), np.uint8)
    rest.end()
    return _assembled(skeleton, segments, found)


# -- the head ----------------------------------------------------------------------------------------------


def _segments(head: Reader, size: int, skeleton: int) -> list[Segment]:
    """The arrays; with the skeleton they fill the block."""
    segments = []
    end = arrays = 0
    for _ in range(head.number(head.left)):
        offset = end + head.number(size)
        element = head.number(255)
        rows, columns, count = (head.number(size) for _ in range(3))
        nbytes = rows * columns * count * planes.WIDTHS.get(element, 1)
        end, arrays = offset + nbytes, arrays + nbytes
        if not nbytes or end > size or count > MOST_TAPS:
            raise CodeError("an array does not fit into its block")
        segments.append(Segment(offset, nbytes, element, (rows, columns, count)))
    if arrays + skeleton != size:
        raise CodeError("the parts of a block do not fill it")
    return segments


def _tables_and_planes(head: Reader, segments: list[Segment]) -> tuple[Array, list[_Plane]]:
    count = head.number(_MOST_TABLES)
    steps = np.frombuffer(head.plain(256 * count), np.uint8).reshape(count, 256)
    frequencies = from_levels(np.cumsum(steps, axis=1, dtype=np.uint8))
    found = [_plane(head, segment, count) for segment in segments for _ in range(planes.WIDTHS.get(segment.element, 1))]
    head.end()
    return frequencies, found


def _plane(head: Reader, segment: Segment, tables: int) -> _Plane:
    plane = _Plane(Mode(head.number(max(Mode))), segment.shape)
    if plane.mode == Mode.RAW:
        plane.stored = plane.size
    elif plane.mode == Mode.REPEATS:
        plane.stored = head.number(plane.size)
    elif plane.mode == Mode.ONE:
        plane.tables = np.array([_table(head, tables)], np.uint8)
    else:
        row, column, tap = (np.frombuffer(head.plain(count), np.uint8) for count in segment.shape)
        plane.levels = row, column, tap
        plane.tables = np.array([_table(head, tables) for _ in range(head.number(_MOST_TABLES))], np.uint8)
        if sum(int(level.max()) for level in plane.levels) >= len(plane.tables):
            raise CodeError("a class has no table")
    if plane.mode == Mode.PREDICTED:
        counts = (min(tap, taps.MOST_BEFORE) for tap in range(1, segment.shape[2]))
        plane.coefficients = [np.frombuffer(head.plain(count), np.int8) for count in counts]
    return plane


def _table(head: Reader, tables: int) -> int:
    if not tables:
        raise CodeError("there is no table")
    return head.number(tables - 1)


# -- the entropy coder -------------------------------------------------------------------------------------


def _decode_coded(decoder: rans.Decoder, coded: list[_Plane]) -> None:
    """Fill the symbols of these planes; each stage is one call, as ``plans.stages_of`` lays them out."""
    tables = [_tables_of(plane) for plane in coded]
    predicted = [plane for plane in coded if plane.mode == Mode.PREDICTED]
    for plane in predicted:
        plane.symbols = np.empty((plane.shape[2], plane.shape[0] * plane.shape[1]), np.uint8)
    for stage in range(max((plane.shape[2] for plane in predicted), default=1)):
        wanted = []
        for plane, found in zip(coded, tables, strict=True):
            if plane.mode == Mode.PREDICTED:
                if stage < plane.shape[2]:
                    wanted.append((plane, found[stage]))
            elif stage == 0:
                wanted.append((plane, found))
        symbols = decoder.decode(np.concatenate([found for _, found in wanted])) if wanted else np.zeros(0, np.uint8)
        at = 0
        for plane, found in wanted:
            _take(plane, symbols[at : at + len(found)], stage)
            at += len(found)
    for plane in predicted:
        plane.symbols = np.ascontiguousarray(plane.symbols.T).ravel()


def _tables_of(plane: _Plane) -> Array:
    """The table of each symbol; of a predicted plane, one row for each tap."""
    if plane.levels is None:
        return np.broadcast_to(plane.tables, plane.size)
    found = plane.tables.take(scales.classes(plane.levels))
    if plane.mode == Mode.PREDICTED:
        return np.ascontiguousarray(found.reshape(-1, plane.shape[2]).T)
    return found.ravel()


def _take(plane: _Plane, symbols: Array, stage: int) -> None:
    if plane.mode != Mode.PREDICTED:
        plane.symbols = symbols
        return
    if stage:
        guess = taps.predicted(plane.symbols[:stage].view(np.int8), plane.coefficients[stage - 1])
        symbols = symbols + guess.view(np.uint8)
    plane.symbols[stage] = symbols


# -- the block ---------------------------------------------------------------------------------------------


def _assembled(skeleton: bytes, segments: list[Segment], found: list[_Plane]) -> bytes:
    parts: list[bytes] = []
    at = end = first = 0
    for segment in segments:
        gap = segment.offset - end
        parts.append(skeleton[at : at + gap])
        count = planes.WIDTHS.get(segment.element, 1)
        parts.append(planes.join([plane.symbols for plane in found[first : first + count]], segment.element))
        at, end, first = at + gap, segment.offset + segment.nbytes, first + count
    return b"".join([*parts, skeleton[at:]])
