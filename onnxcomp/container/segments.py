"""A file cut into blocks that fit into memory, and a block into arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnxcomp.container.planes import WIDTHS
from onnxcomp.container.spans import Span

__all__ = ["BLOCK", "MOST_ARRAYS", "MOST_TAPS", "Segment", "blocks_of", "shape_of"]

BLOCK = 2**24
"""Most bytes of a file that are coded together: both sides hold a block in memory, and no more."""

MOST_ARRAYS = 2**12
"""In a block: describing them must not take more time than decoding them."""

MOST_TAPS = 64
"""Positions in a kernel, above which they count as channels."""


@dataclass(frozen=True)
class Segment:
    """An array in a block.

    Attributes:
        offset, nbytes: in the block.
        element: type of ONNX.
        shape: of its numbers, or of its bytes where several numbers share one: rows, columns, taps.
    """

    offset: int
    nbytes: int
    element: int
    shape: tuple[int, int, int]


def shape_of(span: Span) -> tuple[int, int, int]:
    """Output channels, input channels, and positions in a kernel (or 1) of a weight as it lies in the file."""
    units = span.nbytes // WIDTHS.get(span.element, 1)
    rows, columns = (*span.dims, 1, 1)[:2] if len(span.dims) > 1 else (1, units)
    taps = math.prod(span.dims[2:])
    if rows * columns * taps == units and taps <= MOST_TAPS:
        return rows, columns, taps
    return (rows, units // rows, 1) if units % rows == 0 else (1, units, 1)


def blocks_of(size: int, spans: list[Span]) -> Iterator[tuple[int, int, list[Segment]]]:
    """Offset, bytes and arrays of each block; a large weight is cut between rows where that is possible."""
    start = 0
    segments: list[Segment] = []
    for span in spans:
        for part in _parts(span):
            while part.offset + part.nbytes - start > BLOCK or len(segments) >= MOST_ARRAYS:
                end = min(part.offset, start + BLOCK)
                yield start, end - start, segments
                start, segments = end, []
            segments.append(Segment(part.offset - start, part.nbytes, part.element, shape_of(part)))
    while start < size:
        end = min(size, start + BLOCK)
        yield start, end - start, segments
        start, segments = end, []


def _parts(span: Span) -> Iterator[Span]:
    """A weight in pieces of at most a block."""
    width = WIDTHS.get(span.element, 1)
    if span.nbytes % width:
        return
    rows, columns, taps = shape_of(span)
    row = columns * taps * width
    if row > BLOCK:
        rows, row = span.nbytes // width, width
    step = max(1, BLOCK // row) * row
    for offset in range(0, span.nbytes, step):
        nbytes = min(step, span.nbytes - offset)
        whole = rows > 1 and row > width
        dims = (nbytes // row, columns, taps) if whole else (nbytes // width,)
        yield Span(span.offset + offset, nbytes, span.element, dims)
