"""How each plane of bytes is coded, and the choice of it by size."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcomp.container import scales, taps
from onnxcomp.container.magnitudes import has_magnitudes, magnitudes
from onnxcomp.container.tables import entropy, histogram
from onnxcomp.container.wire import deflated

__all__ = ["Mode", "Plan", "plan", "plan_values", "raw", "stages_of"]

Array = np.ndarray[Any, Any]

_WORTH_SCALES = 512  # codes; the levels of fewer cost more than they save
_TABLE = 40.0  # bytes that a table takes, about; what it costs in the end is settled when all are known
_SYMBOL = 0.25  # of these, for each symbol in it; and so much do few symbols seem to save that are noise
_PIECE, _PIECES = 4096, 4  # of a sample


class Mode(IntEnum):
    """How a plane is stored."""

    RAW = 0  # as it is
    REPEATS = 1  # through LZMA, for what repeats
    ONE = 2  # entropy coded with one table
    SCALED = 3  # with a table for each class of scale
    PREDICTED = 4  # the same, for differences from predictions


@dataclass(eq=False)
class Plan:
    """A plane and how it is coded.

    Attributes:
        mode: how.
        symbols: its bytes; with ``PREDICTED`` their differences, one row for each tap.
        classes: of the symbols, where there are several.
        counts: of symbols, one row for each class.
        levels, coefficients: what classes and predictions are computed from.
        packed: the bytes to store, with ``RAW`` and ``REPEATS``.
        stage: when the first symbols are decoded: 1 where a mask has to be known before.
        tables: the table of each class, once they are known.
    """

    mode: Mode
    symbols: Array
    classes: Array | None = None
    counts: Array = field(default_factory=lambda: np.zeros((0, 256), np.int64))
    levels: scales.Levels | None = None
    coefficients: list[Array] = field(default_factory=list)
    packed: bytes = b""
    stage: int = 0
    tables: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    @cached_property
    def used(self) -> Array:
        """The classes that occur."""
        return np.flatnonzero(self.counts.any(axis=1))

    @cached_property
    def size(self) -> float:
        """Bytes, with a guess at what levels and tables take."""
        if self.mode < Mode.ONE:
            return len(self.packed)
        side = sum(entropy(histogram(level)[None]) for level in self.levels or ()) * 1.15
        tables = 10.0 * len(self.used) if self.mode > Mode.ONE else 0.0
        return entropy(self.counts) + side + tables + sum(map(len, self.coefficients))


def plan(symbols: Array, shape: tuple[int, int, int], element: int, is_whole: bool) -> Plan:
    """The smallest way to code a plane.

    Args:
        symbols: its bytes, in the order of the array.
        shape: rows, columns, taps.
        element: type of ONNX.
        is_whole: whether it is the array's only plane.
    """
    scaled = None
    worth = len(symbols) >= _WORTH_SCALES and min(shape[0], shape[1] * shape[2]) > 1
    if is_whole and worth and has_magnitudes(element):
        scaled = _scaled(symbols.reshape(shape), element)
    if scaled is not None and scaled.mode == Mode.SCALED:
        counts = scaled.counts.sum(axis=0, keepdims=True)
    else:
        counts = histogram(symbols)[None]
    found = [Plan(Mode.ONE, symbols, counts=counts)]
    one = found[0].size
    if packed := _repeats(symbols, one):
        found.append(Plan(Mode.REPEATS, symbols, packed=packed))
    if one + _SYMBOL * int((counts > 0).sum()) >= len(symbols):
        found[0] = raw(symbols)
    if scaled is not None:
        found.append(scaled)
    return min(found, key=lambda planned: planned.size)


def plan_values(symbols: Array, kept: Array, shape: tuple[int, int, int], element: int, is_whole: bool) -> Plan:
    """The smallest way to code a plane of the numbers of an array that are not zero.

    Args:
        symbols: the plane of these numbers.
        kept: which numbers of the array they are, in its order.
        shape, element, is_whole: of the array, as for ``plan``.
    """
    planned = plan(symbols, (1, len(symbols), 1), element, is_whole)
    if is_whole and planned.mode == Mode.ONE and len(symbols) >= _WORTH_SCALES and has_magnitudes(element):
        known = magnitudes(symbols, element)
        magnitude = np.full(kept.shape, known.mean(), np.float32)  # what is absent says nothing of its channels
        magnitude[kept] = known
        levels = scales.fit(magnitude.reshape(shape), _steps(len(symbols) / (shape[0] + shape[1])))
        scaled = _counted(Plan(Mode.SCALED, symbols, scales.classes(levels).ravel()[kept], levels=levels))
        if scaled.size < planned.size:
            planned = scaled
    planned.stage = 1
    return planned


def raw(symbols: Array) -> Plan:
    """A plane as it is."""
    return Plan(Mode.RAW, symbols, packed=symbols.tobytes())


def _repeats(symbols: Array, one: float) -> bytes:
    """The plane through LZMA, if that beats entropy coding: on a sample first, as it is slow."""
    if len(symbols) < _TABLE:
        return b""
    step = max(_PIECE, len(symbols) // _PIECES)
    sample = np.concatenate([symbols[at : at + _PIECE] for at in range(0, len(symbols), step)])
    alone = one if len(sample) == len(symbols) else entropy(histogram(sample)[None])
    if len(zlib.compress(sample.tobytes(), 1)) >= 0.9 * alone + min(_TABLE, len(sample) / 8):
        return b""
    packed = deflated(symbols.tobytes())
    return packed if len(packed) < one else b""


def _scaled(codes: Array, element: int) -> Plan:
    rows, columns, count = codes.shape
    steps = _steps(codes.size / (rows + columns))
    levels = scales.fit(magnitudes(codes, element), steps)
    coefficients: list[Array] = []
    if element in (TensorProto.INT8, TensorProto.UINT8) and count > 1 and rows * columns >= taps.LEAST_KERNELS:
        coefficients, bits = taps.fit(codes.view(np.int8), scales.kernel_scales(levels, steps))
        if bits / 8 < sum(map(len, coefficients)) + _TABLE:
            coefficients = []
    if not coefficients:
        return _counted(Plan(Mode.SCALED, codes.ravel(), scales.classes(levels).ravel(), levels=levels))
    ordered = np.ascontiguousarray(codes.reshape(-1, count).T)
    signed = ordered.view(np.int8)
    differences = ordered.copy()
    for tap, weights in enumerate(coefficients, 1):
        differences[tap] -= taps.predicted(signed[:tap], weights).view(np.uint8)
    back = differences.T.reshape(codes.shape)
    levels = scales.fit(magnitudes(back, TensorProto.INT8), steps)
    classes = np.ascontiguousarray(scales.classes(levels).reshape(-1, count).T)
    return _counted(Plan(Mode.PREDICTED, differences, classes, levels=levels, coefficients=coefficients))


def _steps(codes_a_level: float) -> int:
    """Levels for each factor of two: fine ones where many codes share the cost of one."""
    return 1 if codes_a_level < 24 else 2 if codes_a_level < 96 else 3


def _counted(planned: Plan) -> Plan:
    assert planned.classes is not None
    assert planned.levels is not None
    keys = (planned.classes.astype(np.uint16) << np.uint16(8)) | planned.symbols
    count = sum(int(level.max()) for level in planned.levels) + 1
    planned.counts = np.bincount(keys.ravel(), minlength=256 * count).reshape(count, 256)
    return planned


def stages_of(plans: list[Plan]) -> list[tuple[Array, Array]]:
    """What is decoded one after the other, symbols and their tables: the taps of kernels wait for those before."""
    parts: dict[int, list[tuple[Array, Array]]] = {}
    for planned in plans:
        if planned.mode < Mode.ONE:
            continue
        tables = planned.tables.astype(np.uint8)
        if planned.mode == Mode.PREDICTED:
            assert planned.classes is not None
            for tap, (symbols, found) in enumerate(zip(planned.symbols, planned.classes, strict=True)):
                parts.setdefault(tap, []).append((symbols, tables.take(found)))
        else:
            found = np.zeros(1, np.uint8) if planned.classes is None else planned.classes
            chosen = np.broadcast_to(tables.take(found), planned.symbols.shape)
            parts.setdefault(planned.stage, []).append((planned.symbols, chosen))
    joined = ((np.concatenate([part[side] for part in parts[stage]]) for side in (0, 1)) for stage in sorted(parts))
    return [(symbols, tables) for symbols, tables in joined]
