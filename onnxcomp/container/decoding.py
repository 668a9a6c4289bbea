"""A block of a file, decoded. What is read is believed only as far as it was checked: files come from strangers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.container import planes, rans, scales, taps
from onnxcomp.container.arrays import ORDERS, Form, flags_of, mask_shape
from onnxcomp.container.encoding import CODED, HEAD_GROWTH, MOST_HEAD, STORED
from onnxcomp.container.plans import Mode
from onnxcomp.container.rans import CodeError
from onnxcomp.container.related import multiplied
from onnxcomp.container.segments import MOST_ARRAYS, MOST_TAPS, Segment
from onnxcomp.container.spans import LEAST, MOST_ELEMENT
from onnxcomp.container.tables import from_levels, most_tables
from onnxcomp.container.wire import Reader, inflated

__all__ = ["decode"]

Array = np.ndarray[Any, Any]

_MOST_CLASSES = 256


@dataclass(eq=False)
class _Plane:
    """A plane as its head describes it."""

    mode: Mode
    shape: tuple[int, int, int]
    size: int
    stage: int = 0
    stored: int = 0  # bytes among those stored as they are
    levels: scales.Levels | None = None
    coefficients: list[Array] = field(default_factory=list)
    tables: Array = field(default_factory=lambda: np.zeros(1, np.uint8))
    symbols: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    mask: _Plane | None = None
    order: int = 0  # of the mask

    @property
    def last_stage(self) -> int:
        return self.shape[2] - 1 if self.mode == Mode.PREDICTED else self.stage


@dataclass(eq=False)
class _Array:
    """An array as its head describes it."""

    segment: Segment
    form: Form
    planes: list[_Plane] = field(default_factory=list)
    mask: _Plane | None = None
    order: int = 0
    source: int = 0
    factor: bytes = b""


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
    if head_size > HEAD_GROWTH * (len(packed_head) + 1):
        raise CodeError("a head is too large")
    head = Reader(inflated(packed_head, head_size))
    skeleton_size, skeleton_stored = head.number(size), head.number(len(body))
    segments = _segments(head, size, skeleton_size)
    frequencies, arrays = _described(head, segments, size)
    masks = [array.mask for array in arrays if array.mask is not None]
    found = [plane for array in arrays for plane in array.planes]
    for mask in masks:
        _fill_stored(mask, reader)
    # In the order in which they are described, as plans.stages_of has them.
    described = [plane for array in arrays for plane in ([array.mask] if array.mask else []) + array.planes]
    coded = [plane for plane in described if plane.mode >= Mode.ONE]
    lanes = reader.number(rans.MOST_LANES)
    if lanes < rans.least_lanes(sum(plane.size for plane in coded)):
        raise CodeError("there are too few lanes")
    decoder = rans.Decoder(frequencies, lanes, reader.data(), reader.data())
    _decode_coded(decoder, coded)
    carried = decoder.carried()
    stored = skeleton_stored + sum(plane.stored for plane in found)
    if any(carried[stored:]):
        raise CodeError("a block ends with more than it should")
    rest = Reader(carried[:stored] + reader.plain(reader.left))
    skeleton = inflated(rest.plain(skeleton_stored), skeleton_size)
    for plane in found:
        _fill_stored(plane, rest)
    rest.end()
    return _assembled(skeleton, arrays)


def _fill_stored(plane: _Plane, reader: Reader) -> None:
    """Take the bytes of a plane that is stored outside of the entropy coder."""
    if plane.mode == Mode.RAW:
        plane.symbols = np.frombuffer(reader.plain(plane.stored), np.uint8)
    elif plane.mode == Mode.REPEATS:
        plane.symbols = np.frombuffer(inflated(reader.plain(plane.stored), plane.size), np.uint8)


# -- the head ----------------------------------------------------------------------------------------------


def _segments(head: Reader, size: int, skeleton: int) -> list[Segment]:
    """The arrays; with the skeleton they fill the block."""
    segments = []
    end = arrays = 0
    for _ in range(head.number(min(MOST_ARRAYS, 2 + size // LEAST))):
        offset = end + head.number(size)
        element = head.number(MOST_ELEMENT)
        rows, columns, count = (head.number(size) for _ in range(3))
        nbytes = rows * columns * count * planes.WIDTHS.get(element, 1)
        end, arrays = offset + nbytes, arrays + nbytes
        if not nbytes or end > size or count > MOST_TAPS:
            raise CodeError("an array does not fit into its block")
        segments.append(Segment(offset, nbytes, element, (rows, columns, count)))
    if arrays + skeleton != size:
        raise CodeError("the parts of a block do not fill it")
    return segments


def _described(head: Reader, segments: list[Segment], size: int) -> tuple[Array, list[_Array]]:
    count = head.number(most_tables(size))
    steps = np.frombuffer(head.plain(256 * count), np.uint8).reshape(count, 256)
    frequencies = from_levels(np.cumsum(steps, axis=1, dtype=np.uint8))
    arrays = [_array(head, segment, index, segments, count) for index, segment in enumerate(segments)]
    head.end()
    return frequencies, arrays


def _array(head: Reader, segment: Segment, index: int, segments: list[Segment], tables: int) -> _Array:
    array = _Array(segment, Form(head.number(max(Form))))
    width = planes.WIDTHS.get(segment.element, 1)
    count = math.prod(segment.shape)
    if array.form in (Form.SAME, Form.MULTIPLE):
        array.source = head.number(index)
        if array.source == index or segments[array.source].nbytes != segment.nbytes:
            raise CodeError("an array is made of none")
        if array.form == Form.MULTIPLE:
            array.factor = head.plain(4)
            if segment.nbytes % 4:
                raise CodeError("a multiple is of no float32")
        return array
    if array.form == Form.MASKED:
        array.order, kept = head.number(len(ORDERS) - 1), head.number(count)
        shape = mask_shape(segment.shape, array.order)
        array.mask = _plane(head, shape, math.prod(shape), tables)
        if array.mask.mode == Mode.PREDICTED:
            raise CodeError("a mask is predicted")
        if not kept:
            return array
        count = kept
    if array.form == Form.WHOLE:
        array.planes = [_plane(head, segment.shape, segment.nbytes, 0)]
        if array.planes[0].mode != Mode.REPEATS:
            raise CodeError("an array as a whole is stored in an unknown way")
        return array
    array.planes = [_plane(head, segment.shape, count, tables) for _ in range(width)]
    for plane in array.planes:
        plane.mask, plane.order = array.mask, array.order
        plane.stage = int(array.mask is not None)
        if plane.mask and plane.mode == Mode.PREDICTED:
            raise CodeError("masked numbers are predicted")
    return array


def _plane(head: Reader, shape: tuple[int, int, int], size: int, tables: int) -> _Plane:
    plane = _Plane(Mode(head.number(max(Mode))), shape, size)
    if plane.mode == Mode.RAW:
        plane.stored = plane.size
    elif plane.mode == Mode.REPEATS:
        plane.stored = head.number(plane.size)
    elif plane.mode == Mode.ONE:
        plane.tables = np.array([_table(head, tables)], np.uint8)
    else:
        row, column, tap = (np.frombuffer(head.plain(count), np.uint8) for count in shape)
        plane.levels = row, column, tap
        plane.tables = np.array([_table(head, tables) for _ in range(head.number(_MOST_CLASSES))], np.uint8)
        if sum(int(level.max()) for level in plane.levels) >= len(plane.tables):
            raise CodeError("a class has no table")
    if plane.mode == Mode.PREDICTED:
        if shape[0] * shape[1] < taps.LEAST_KERNELS:
            raise CodeError("there are too few kernels to predict")
        counts = (min(tap, taps.MOST_BEFORE) for tap in range(1, shape[2]))
        plane.coefficients = [np.frombuffer(head.plain(count), np.int8) for count in counts]
    return plane


def _table(head: Reader, tables: int) -> int:
    if not tables:
        raise CodeError("there is no table")
    return head.number(tables - 1)


# -- the entropy coder -------------------------------------------------------------------------------------


def _decode_coded(decoder: rans.Decoder, coded: list[_Plane]) -> None:
    """Fill the symbols of these planes; each stage is one call, as ``plans.stages_of`` lays them out."""
    predicted = [plane for plane in coded if plane.mode == Mode.PREDICTED]
    rows = {id(plane): _tables_of(plane) for plane in predicted}
    for plane in predicted:
        plane.symbols = np.empty((plane.shape[2], plane.shape[0] * plane.shape[1]), np.uint8)
    for stage in range(max((plane.last_stage for plane in coded), default=-1) + 1):
        wanted = [plane for plane in coded if plane.stage <= stage <= plane.last_stage]
        if not wanted:
            continue
        tables = [rows[id(plane)][stage] if id(plane) in rows else _tables_of(plane) for plane in wanted]
        symbols = decoder.decode(np.concatenate(tables))
        at = 0
        for plane, found in zip(wanted, tables, strict=True):
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
    return found.ravel() if plane.mask is None else found.ravel()[_kept(plane.mask, plane)]


def _kept(mask: _Plane, plane: _Plane) -> Array:
    """Which numbers of an array its mask keeps."""
    kept = flags_of(mask.symbols, plane.shape, plane.order)
    if np.count_nonzero(kept) != plane.size:
        raise CodeError("a mask keeps another count of numbers than it says")
    return kept


def _take(plane: _Plane, symbols: Array, stage: int) -> None:
    if plane.mode != Mode.PREDICTED:
        plane.symbols = symbols
        return
    if stage:
        guess = taps.predicted(plane.symbols[:stage].view(np.int8), plane.coefficients[stage - 1])
        symbols = symbols + guess.view(np.uint8)
    plane.symbols[stage] = symbols


# -- the block ---------------------------------------------------------------------------------------------


def _assembled(skeleton: bytes, arrays: list[_Array]) -> bytes:
    parts: list[bytes] = []
    made: list[bytes] = []
    at = end = 0
    for array in arrays:
        gap = array.segment.offset - end
        made.append(_made(array, made))
        parts += [skeleton[at : at + gap], made[-1]]
        at, end = at + gap, array.segment.offset + array.segment.nbytes
    return b"".join([*parts, skeleton[at:]])


def _made(array: _Array, made: list[bytes]) -> bytes:
    """The bytes of an array, from its planes or from arrays before it."""
    if array.form == Form.SAME:
        return made[array.source]
    if array.form == Form.MULTIPLE:
        return multiplied(made[array.source], array.factor)
    if array.form == Form.WHOLE:
        return array.planes[0].symbols.tobytes()
    element = array.segment.element
    if array.mask is None:
        return planes.join([plane.symbols for plane in array.planes], element)
    if not array.planes:
        return bytes(array.segment.nbytes)
    kept = _kept(array.mask, array.planes[0])
    spread = [np.zeros(len(kept), np.uint8) for _ in array.planes]
    for target, plane in zip(spread, array.planes, strict=True):
        target[kept] = plane.symbols
    return planes.join(spread, element)
