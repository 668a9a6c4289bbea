"""The head of a block, read: what its arrays are, and how each plane of them is coded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.container import planes, scales, taps
from onnxcomp.container.arrays import ORDERS, Form, mask_shape
from onnxcomp.container.encoding import HEAD_GROWTH, MOST_HEAD
from onnxcomp.container.plans import Mode
from onnxcomp.container.rans import CodeError
from onnxcomp.container.segments import MOST_ARRAYS, MOST_TAPS, Segment
from onnxcomp.container.spans import LEAST, MOST_ELEMENT
from onnxcomp.container.tables import from_levels, most_tables
from onnxcomp.container.wire import Reader, inflated

__all__ = ["DescribedArray", "DescribedPlane", "Head", "read_head"]

Array = np.ndarray[Any, Any]

_MOST_CLASSES = 256


@dataclass(eq=False)
class DescribedPlane:
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
    mask: DescribedPlane | None = None
    order: int = 0  # of the mask

    @property
    def last_stage(self) -> int:
        return self.shape[2] - 1 if self.mode == Mode.PREDICTED else self.stage


@dataclass(eq=False)
class DescribedArray:
    """An array as its head describes it."""

    segment: Segment
    form: Form
    planes: list[DescribedPlane] = field(default_factory=list)
    mask: DescribedPlane | None = None
    order: int = 0
    source: int = 0
    factor: bytes = b""


@dataclass(frozen=True)
class Head:
    """What the head of a block says.

    Attributes:
        skeleton_size, skeleton_stored: bytes of what is between the arrays, and of these through LZMA.
        frequencies: a row for each table.
        arrays: in order; with the skeleton they fill the block.
    """

    skeleton_size: int
    skeleton_stored: int
    frequencies: Array
    arrays: list[DescribedArray]


def read_head(reader: Reader, size: int) -> Head:
    """The head of a block of ``size`` bytes.

    Raises:
        CodeError: it says what cannot be.
    """
    head_size = reader.number(MOST_HEAD)
    packed = reader.data()
    if head_size > HEAD_GROWTH * (len(packed) + 1):
        raise CodeError("a head is too large")
    head = Reader(inflated(packed, head_size))
    skeleton_size, skeleton_stored = head.number(size), head.number()
    segments = _segments(head, size, skeleton_size)
    count = head.number(most_tables(size))
    steps = np.frombuffer(head.plain(256 * count), np.uint8).reshape(count, 256)
    frequencies = from_levels(np.cumsum(steps, axis=1, dtype=np.uint8))
    arrays = [_array(head, segment, index, segments, count) for index, segment in enumerate(segments)]
    head.end()
    return Head(skeleton_size, skeleton_stored, frequencies, arrays)


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


def _array(head: Reader, segment: Segment, index: int, segments: list[Segment], tables: int) -> DescribedArray:
    array = DescribedArray(segment, Form(head.number(max(Form))))
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


def _plane(head: Reader, shape: tuple[int, int, int], size: int, tables: int) -> DescribedPlane:
    plane = DescribedPlane(Mode(head.number(max(Mode))), shape, size)
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
