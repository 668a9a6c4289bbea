"""A block of a file, decoded. What is read is believed only as far as it was checked: files come from strangers."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.container import planes, rans, scales, taps
from onnxcomp.container.arrays import Form, flags_of
from onnxcomp.container.encoding import CODED
from onnxcomp.container.heads import DescribedArray, DescribedPlane, Head, read_head
from onnxcomp.container.plans import Mode
from onnxcomp.container.rans import CodeError
from onnxcomp.container.related import multiplied
from onnxcomp.container.wire import Reader, inflated

__all__ = ["decode"]

Array = np.ndarray[Any, Any]


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
    if kind == CODED:
        return _decoded(reader, read_head(reader, size))
    data = reader.plain(size)
    reader.end()
    return data


def _decoded(reader: Reader, head: Head) -> bytes:
    """The block whose head was read."""
    for array in head.arrays:
        if array.mask is not None:
            _fill_stored(array.mask, reader)
    # In the order in which they are described, as plans.stages_of has them.
    described = [plane for array in head.arrays for plane in ([array.mask] if array.mask else []) + array.planes]
    coded = [plane for plane in described if plane.mode >= Mode.ONE]
    lanes = reader.number(rans.MOST_LANES)
    if lanes < rans.least_lanes(sum(plane.size for plane in coded)):
        raise CodeError("there are too few lanes")
    decoder = rans.Decoder(head.frequencies, lanes, reader.data(), reader.data())
    _decode_coded(decoder, coded)
    carried = decoder.carried()
    found = [plane for array in head.arrays for plane in array.planes]
    stored = head.skeleton_stored + sum(plane.stored for plane in found)
    if any(carried[stored:]):
        raise CodeError("a block ends with more than it should")
    rest = Reader(carried[:stored] + reader.plain(reader.left))
    skeleton = inflated(rest.plain(head.skeleton_stored), head.skeleton_size)
    for plane in found:
        _fill_stored(plane, rest)
    rest.end()
    return _assembled(skeleton, head.arrays)


def _fill_stored(plane: DescribedPlane, reader: Reader) -> None:
    """Take the bytes of a plane that is stored outside of the entropy coder."""
    if plane.mode == Mode.RAW:
        plane.symbols = np.frombuffer(reader.plain(plane.stored), np.uint8)
    elif plane.mode == Mode.REPEATS:
        plane.symbols = np.frombuffer(inflated(reader.plain(plane.stored), plane.size), np.uint8)


# -- the entropy coder -------------------------------------------------------------------------------------


def _decode_coded(decoder: rans.Decoder, coded: list[DescribedPlane]) -> None:
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


def _tables_of(plane: DescribedPlane) -> Array:
    """The table of each symbol; of a predicted plane, one row for each tap."""
    if plane.levels is None:
        return np.broadcast_to(plane.tables, plane.size)
    found = plane.tables.take(scales.classes(plane.levels))
    if plane.mode == Mode.PREDICTED:
        return np.ascontiguousarray(found.reshape(-1, plane.shape[2]).T)
    return found.ravel() if plane.mask is None else found.ravel()[_kept(plane.mask, plane)]


def _kept(mask: DescribedPlane, plane: DescribedPlane) -> Array:
    """Which numbers of an array its mask keeps."""
    kept = flags_of(mask.symbols, plane.shape, plane.order)
    if np.count_nonzero(kept) != plane.size:
        raise CodeError("a mask keeps another count of numbers than it says")
    return kept


def _take(plane: DescribedPlane, symbols: Array, stage: int) -> None:
    if plane.mode != Mode.PREDICTED:
        plane.symbols = symbols
        return
    if stage:
        guess = taps.predicted(plane.symbols[:stage].view(np.int8), plane.coefficients[stage - 1])
        symbols = symbols + guess.view(np.uint8)
    plane.symbols[stage] = symbols


# -- the block ---------------------------------------------------------------------------------------------


def _assembled(skeleton: bytes, arrays: list[DescribedArray]) -> bytes:
    parts: list[bytes] = []
    made: list[bytes] = []
    at = end = 0
    for array in arrays:
        gap = array.segment.offset - end
        made.append(_made(array, made))
        parts += [skeleton[at : at + gap], made[-1]]
        at, end = at + gap, array.segment.offset + array.segment.nbytes
    return b"".join([*parts, skeleton[at:]])


def _made(array: DescribedArray, made: list[bytes]) -> bytes:
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
