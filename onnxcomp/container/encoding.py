"""A block of a file, coded: arrays as planes of bytes with tables of frequencies, all else through LZMA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcomp.container import rans
from onnxcomp.container.arrays import Described, describe
from onnxcomp.container.clusters import cluster
from onnxcomp.container.plans import Mode, Plan, stages_of
from onnxcomp.container.segments import Segment
from onnxcomp.container.tables import entropies, from_levels, most_tables
from onnxcomp.container.wire import Writer, deflated

__all__ = ["CODED", "HEAD_GROWTH", "MOST_HEAD", "STORED", "encode"]

STORED, CODED = 0, 1
"""Kinds of blocks."""

MOST_HEAD = 2**23
"""Bytes of a block's head: what describes its arrays must not take more time than they do."""

HEAD_GROWTH = 2**12
"""How many times larger a head may be than it is through LZMA."""

_SMALL = 2**16  # bytes of a block of which LZMA of the whole is tried, too: a table may cost more than it saves
_SEEDS = 6  # for each bit of entropy

Array = np.ndarray[Any, Any]


def encode(data: bytes, segments: list[Segment]) -> bytes:
    """The code of a block; never more than a few bytes larger than it.

    Args:
        data: from 1 byte to ``BLOCK``.
        segments: the arrays in them, in order.
    """
    coded = _coded(data, segments)
    if coded is None or (segments and len(data) <= _SMALL):
        coded = min(filter(None, (coded, _coded(data, []))), key=len)
    body = Writer()
    if len(coded) >= len(data):
        body.number(STORED)
        body.number(len(data))
        body.plain(data)
    else:
        body.number(CODED)
        body.number(len(data))
        body.plain(coded)
    return body.done()


def _coded(data: bytes, segments: list[Segment]) -> bytes | None:
    """Head, masks, the entropy coder's states and words, and what is stored as it is; None if the head is too large."""
    arrays = describe(data, segments)
    plans = [planned for array in arrays for planned in array.plans]
    levels = _choose_tables(arrays, most_tables(len(data)))
    skeleton = b"".join(_between(data, segments))
    packed = deflated(skeleton)
    head = _head(segments, arrays, levels, len(skeleton), len(packed))
    packed_head = deflated(head)
    if len(head) > min(MOST_HEAD, HEAD_GROWTH * (len(packed_head) + 1)):
        return None
    stages = stages_of(plans)
    nbytes = sum(planned.size for planned in plans if planned.mode >= Mode.ONE)
    lanes = rans.lanes_for(sum(len(symbols) for symbols, _ in stages), nbytes)
    rest = packed + b"".join(planned.packed for array in arrays for planned in array.planes)
    carried = rest[: 2 * lanes]
    states, words = rans.encode(stages, from_levels(levels), lanes, carried.ljust(2 * lanes, b"\0"))
    body = Writer()
    body.number(len(head))
    body.data(packed_head)
    body.plain(b"".join(array.mask.packed for array in arrays if array.mask))
    body.number(lanes)
    body.data(states)
    body.data(words)
    body.plain(rest[len(carried) :])
    return body.done()


def _choose_tables(arrays: list[Described], most: int) -> Array:
    """Tables of the whole block; each plan is told its own."""
    coded = [(planned, seed) for array in arrays for planned, seed in array.seeded() if planned.mode >= Mode.ONE]
    if not coded:
        return np.zeros((0, 256), np.uint8)
    counts = np.concatenate([planned.counts[planned.used] for planned, _ in coded])
    kinds = np.concatenate([np.full(len(planned.used), kind) for planned, kind in coded])
    levels, assigned = cluster(counts, _seeds(counts, kinds), most)
    at = 0
    for planned, _ in coded:
        used = planned.used
        planned.tables = np.zeros(len(planned.counts), np.int64)
        planned.tables[used] = assigned[at : at + len(used)]
        at += len(used)
    return levels


def _seeds(counts: Array, kinds: Array) -> Array:
    """A number for each class, the same where distributions of several arrays are probably alike."""
    spread = 8 * entropies(counts) / counts.sum(axis=1)
    return np.asarray(kinds << 8 | np.rint(_SEEDS * spread).astype(np.int64))


def _between(data: bytes, segments: list[Segment]) -> Iterator[bytes]:
    """What is in no array."""
    end = 0
    for segment in segments:
        yield data[end : segment.offset]
        end = segment.offset + segment.nbytes
    yield data[end:]


def _head(segments: list[Segment], arrays: list[Described], levels: Array, skeleton: int, packed: int) -> bytes:
    head = Writer()
    head.number(skeleton)
    head.number(packed)
    head.number(len(segments))
    end = 0
    for segment in segments:
        head.number(segment.offset - end)
        head.number(segment.element)
        for size in segment.shape:
            head.number(size)
        end = segment.offset + segment.nbytes
    head.number(len(levels))
    head.plain(np.diff(levels, axis=1, prepend=np.uint8(0)).tobytes())
    for array in arrays:
        _write_array(head, array)
    return head.done()


def _write_array(head: Writer, array: Described) -> None:
    head.number(array.form)
    if array.relation is not None:
        index, factor = array.relation
        head.number(index)
        head.plain(factor)
    if array.mask is not None:
        head.number(array.order)
        head.number(array.count)
    for planned in array.plans:
        _write_plan(head, planned)


def _write_plan(head: Writer, planned: Plan) -> None:
    head.number(planned.mode)
    if planned.mode == Mode.REPEATS:
        head.number(len(planned.packed))
    if planned.mode == Mode.ONE:
        head.number(int(planned.tables[0]))
    if planned.mode >= Mode.SCALED:
        assert planned.levels is not None
        for level in planned.levels:
            head.plain(level.tobytes())
        head.numbers(planned.tables.tolist())
    for coefficients in planned.coefficients:
        head.plain(coefficients.tobytes())
