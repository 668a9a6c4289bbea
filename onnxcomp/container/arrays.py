"""What an array of a block is stored as: planes of bytes, the numbers that are not zero, or a word on another array."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from onnxcomp.container import planes
from onnxcomp.container.magnitudes import MASK
from onnxcomp.container.plans import Mode, Plan, plan, plan_values
from onnxcomp.container.related import Earlier, Relation
from onnxcomp.container.segments import Segment
from onnxcomp.container.wire import deflated

__all__ = ["ORDERS", "Described", "Form", "describe", "flags_of", "mask_shape"]

Array = np.ndarray[Any, Any]

_WORTH_MASK = 256  # numbers
_ZEROS = 0.1  # of all numbers, from which a mask is tried
_DISTINCT = 0.75  # of all numbers but zero, up to which LZMA is tried
_LOOKED_AT = 2048  # numbers
_SAMPLE = 2**18  # bytes: LZMA is slow


class Form(IntEnum):
    """What an array is stored as."""

    DENSE = 0  # planes of its bytes
    MASKED = 1  # which numbers are not zero, and planes of these
    SAME = 2  # the index of an earlier array
    MULTIPLE = 3  # the same, and a factor
    WHOLE = 4  # its bytes through LZMA, for numbers that occur again and again


@dataclass
class Described:
    """An array and what it is stored as.

    Attributes:
        form: see there.
        element: type of ONNX.
        planes: plans of its bytes, the most significant plane first; with ``WHOLE`` one of all of them.
        mask: plan of the flags, eight in a byte.
        order: of the flags, one of ``ORDERS``.
        count: numbers that are not zero.
        relation: to an earlier array.
    """

    form: Form
    element: int
    planes: list[Plan] = field(default_factory=list)
    mask: Plan | None = None
    order: int = 0
    count: int = 0
    relation: Relation | None = None

    @property
    def plans(self) -> list[Plan]:
        """All of them, in the order in which they are described."""
        return self.planes if self.mask is None else [self.mask, *self.planes]

    @property
    def size(self) -> float:
        """Bytes, about."""
        return sum(planned.size for planned in self.plans)

    def seeded(self) -> Iterator[tuple[Plan, int]]:
        """The plans, each with a number for what its symbols mean."""
        if self.mask is not None:
            yield self.mask, MASK << 4
        for number, planned in enumerate(self.planes):
            yield planned, self.element << 5 | number << 1 | (self.mask is not None)


def describe(data: bytes, segments: list[Segment]) -> list[Described]:
    """The arrays of a block, each as what makes it smallest."""
    found: list[Described] = []
    earlier = Earlier()
    for segment in segments:
        part = data[segment.offset : segment.offset + segment.nbytes]
        related = earlier.relation(part, segment.element)
        if related is not None:
            form = Form.MULTIPLE if related[1] else Form.SAME
            found.append(Described(form, segment.element, relation=related))
        else:
            found.append(_described(part, segment))
    return found


ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0))
"""Orders of the axes (rows, columns, taps) in a mask: zeros in groups of four, or blocks, show along one of them."""


def mask_shape(shape: tuple[int, int, int], order: int) -> tuple[int, int, int]:
    """Of the bytes of a mask: in rows, where each has whole bytes."""
    rows, *others = (shape[axis] for axis in ORDERS[order])
    columns = math.prod(others)
    return (rows, columns // 8, 1) if columns % 8 == 0 else (1, -(-rows * columns // 8), 1)


def flags_of(mask: Array, shape: tuple[int, int, int], order: int) -> Array:
    """The flags (bool) of an array's numbers, in their order, out of the bytes of a mask."""
    axes = ORDERS[order]
    flags = np.unpackbits(mask, count=math.prod(shape)).astype(bool).reshape([shape[axis] for axis in axes])
    return np.ascontiguousarray(flags.transpose(np.argsort(axes))).ravel()


def _described(data: bytes, segment: Segment) -> Described:
    element, shape = segment.element, segment.shape
    parts = planes.split(data, element)
    is_whole = len(parts) == 1
    dense = Described(Form.DENSE, element, [plan(part, shape, element, is_whole) for part in parts])
    numbers = np.frombuffer(data, f"<u{len(parts)}")
    if not is_whole and _has_repetitions(numbers) and len(packed := _whole(data, dense.size)) < dense.size:
        symbols = np.frombuffer(data, np.uint8)
        return Described(Form.WHOLE, element, [Plan(Mode.REPEATS, symbols, packed=packed)])
    if len(numbers) < _WORTH_MASK or (count := np.count_nonzero(numbers)) > (1 - _ZEROS) * len(numbers):
        return dense
    kept = numbers != 0
    mask, order = _mask(kept, shape)
    values = [plan_values(part[kept], kept, shape, element, is_whole) for part in parts] if count else []
    masked = Described(Form.MASKED, element, values, mask, order, int(count))
    return masked if masked.size < dense.size else dense


def _mask(kept: Array, shape: tuple[int, int, int]) -> tuple[Plan, int]:
    """The plan of the flags in the order that makes them smallest, and that order."""
    tried: list[tuple[float, int, Plan]] = []
    for order, axes in enumerate(ORDERS):
        if order != 1 or min(shape[1:]) > 1:  # else it is the same as the first
            packed = np.packbits(kept.reshape(shape).transpose(axes))
            planned = plan(packed, mask_shape(shape, order), MASK, True)
            tried.append((planned.size, order, planned))
    _, order, planned = min(tried, key=lambda entry: entry[:2])
    return planned, order


def _whole(data: bytes, bound: float) -> bytes:
    """The bytes through LZMA, or as they are where a sample of many promises no less than ``bound`` bytes."""
    start = len(data) // 2
    sample = data[start : start + _SAMPLE]
    if len(data) > 4 * _SAMPLE and len(deflated(sample)) >= bound * len(sample) / len(data):
        return data
    return deflated(data)


def _has_repetitions(numbers: Array) -> bool:
    """Whether many numbers occur more than once, by those of some values alone: a sample of places would miss them."""
    share = len(numbers) // _LOOKED_AT
    if share > 1:
        spread = (numbers * numbers.dtype.type(_ODD & np.iinfo(numbers.dtype).max)) >> numbers.dtype.type(4)
        numbers = numbers[spread % numbers.dtype.type(min(share, 256)) == 0]
    numbers = numbers[numbers != 0]
    return len(numbers) > 8 and len(np.unique(numbers)) < _DISTINCT * len(numbers)


_ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: products with it look random (Knuth, section 6.4)
