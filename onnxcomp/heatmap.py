"""Weights as pictures: matrices before and after, side by side, with the borders of their tiles."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

__all__ = ["HeatMap", "drawn"]

Array = np.ndarray[Any, Any]

_SIDE = 360  # of a picture's longer side, in pixels of the screen
_GAP = 24
_TITLE = 40
_LARGEST = 512  # values along a side that are drawn; more are averaged
_BRIGHT = 0.99  # quantile of the values that is drawn as dark as the largest
_LEAST_TILE = 3.0  # pixels between lines
_PAPER = np.array([255.0, 255.0, 255.0])
_INK = np.array([20.0, 40.0, 120.0])


@dataclass(frozen=True, eq=False)
class HeatMap:
    """One matrix.

    Attributes:
        title: above the picture.
        before, after: (rows, columns), not negative; zeros are white.
        tile: rows and columns of a tile.
    """

    title: str
    before: Array
    after: Array
    tile: tuple[int, int]


def drawn(maps: Sequence[HeatMap]) -> str:
    """All of them, one below the other, as an SVG document."""
    width, top = 2 * _SIDE + 3 * _GAP, _GAP
    parts = []
    for each in maps:
        largest = float(np.quantile(each.before, _BRIGHT)) or float(each.before.max()) or 1.0
        parts.append(f'<text x="{_GAP}" y="{top + 14}" class="title">{escape(each.title)}</text>')
        height = 0.0
        for place, (name, matrix) in enumerate((("before", each.before), ("after", each.after))):
            left = _GAP + place * (_SIDE + _GAP)
            told = f"{name}: {np.count_nonzero(matrix) / max(1, matrix.size):.0%} of the entries are not zero"
            parts.append(f'<text x="{left}" y="{top + 32}">{told}</text>')
            picture, high = _picture(matrix / largest, each.tile, left, top + _TITLE)
            parts.append(picture)
            height = max(height, high)
        top += _TITLE + round(height) + 2 * _GAP
    style = "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}image{image-rendering:pixelated}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" height="{top}">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])


def _picture(matrix: Array, tile: tuple[int, int], left: float, top: float) -> tuple[str, float]:
    """The matrix, its largest value 1 or more, in a frame with lines between tiles; and how high it is."""
    rows, columns = matrix.shape
    scale = _SIDE / max(rows, columns)
    width, height = columns * scale, rows * scale
    encoded = base64.b64encode(_png(_averaged(matrix))).decode()
    place = f'x="{left:g}" y="{top:g}" width="{width:.2f}" height="{height:.2f}"'
    parts = [f'<image {place} preserveAspectRatio="none" href="data:image/png;base64,{encoded}"/>']
    lines = []
    if min(tile) * scale >= _LEAST_TILE:
        across = np.arange(tile[0], rows, tile[0]) * scale + top
        along = np.arange(tile[1], columns, tile[1]) * scale + left
        lines += [f"M{left:g} {y:.2f}h{width:.2f}" for y in across]
        lines += [f"M{x:.2f} {top:g}v{height:.2f}" for x in along]
    parts.append(f'<path d="{"".join(lines)}" stroke="#c33" stroke-width=".3" fill="none"/>' if lines else "")
    parts.append(f'<rect {place} fill="none" stroke="#222"/>')
    return "".join(parts), height


def _averaged(matrix: Array) -> Array:
    """Means of equal parts where there are too many rows or columns."""
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // _LARGEST)
        starts = np.arange(0, matrix.shape[axis], step)
        counts = np.diff(np.append(starts, matrix.shape[axis]))
        matrix = np.add.reduceat(matrix, starts, axis=axis) / (counts[:, None] if axis == 0 else counts)
    return matrix


def _png(matrix: Array) -> bytes:
    """From white at 0 to dark blue at 1; square roots, so that small values show."""
    shade = np.sqrt(np.clip(matrix, 0.0, 1.0))[:, :, None]
    pixels = np.rint(_PAPER + shade * (_INK - _PAPER)).astype(np.uint8)
    rows, columns, _ = pixels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)  # 0: no filter
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
