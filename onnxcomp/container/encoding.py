"""A block of a file, coded: arrays as planes of bytes with tables of frequencies, all else through LZMA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcomp.container import planes, rans
from onnxcomp.container.clusters import cluster
from onnxcomp.container.plans import Mode, Plan, plan, stages_of
from onnxcomp.container.segments import Segment
from onnxcomp.container.tables import from_levels
from onnxcomp.container.wire import Writer, deflated

__all__ = ["CODED", "MOST_HEAD", "STORED", "encode"]

STORED, CODED = 0, 1
"""Kinds of blocks."""

MOST_HEAD = 2**23
"""Bytes of a block's head: what describes its arrays must not take more time than they do."""

Array = np.ndarray[Any, Any]


def encode(data: bytes, segments: list[Segment]) -> bytes:
    """The code of a block; never more than a few bytes larger than it.

    Args:
        data: from 1 byte to ``BLOCK``.
        segments: the arrays in them, in order.
    """
    coded = _coded(data, segments)
    if coded is None:
        coded = _coded(data, [])
    body = Writer()
    if coded is None or len(coded) >= len(data):
        body.number(STORED)
        body.number(len(data))
        body.plain(data)
    else:
        body.number(CODED)
        body.number(len(data))
        body.plain(coded)
    return body.done()


def _coded(data: bytes, segments: list[Segment]) -> bytes | None:
    """Head, the entropy coder's states and words, and what is stored as it is; None where the head is too large."""
    plans, seeds = _plans(data, segments)
    levels = _choose_tables(plans, seeds)
    skeleton = b"".join(_between(data, segments))
    packed = deflated(skeleton)
    head = _head(segments, plans, levels, len(skeleton), len(packed))
    if len(head) > MOST_HEAD:
        return None
    stages = stages_of(plans)
    lanes = rans.lanes_for(sum(len(symbols) for symbols, _ in stages))
    rest = packed + b"".join(planned.packed for planned in plans)
    carried = rest[: 2 * lanes]
    states, words = rans.encode(stages, from_levels(levels), lanes, carried.ljust(2 * lanes, b"\0"))
    body = Writer()
    body.number(len(head))
    body.data(deflated(head))
    body.plain(states)
    body.data(words)
    body.plain(rest[len(carried) :])
    return body.done()


def _plans(data: bytes, segments: list[Segment]) -> tuple[list[Plan], list[int]]:
    plans: list[Plan] = []
    seeds: list[int] = []
    for segment in segments:
        parts = planes.split(data[segment.offset : segment.offset + segment.nbytes], segment.element)
        for number, part in enumerate(parts):
            planned = plan(part, segment.shape, segment.element, len(parts) == 1)
            plans.append(planned)
            seeds += _seeds(planned, segment.element, number)
    return plans, seeds


def _seeds(planned: Plan, element: int, number: int) -> list[int]:
    """A number for each class, the same where distributions of several arrays are probably alike."""
    kind = element << 4 | number
    if planned.mode == Mode.ONE:
        return [kind << 8 | 255]
    found = []
    for counts in planned.counts[planned.used]:
        shares = counts / counts.sum()
        spread = -(shares[counts > 0] * np.log2(shares[counts > 0])).sum()
        found.append(kind << 8 | round(3 * spread))
    return found


def _choose_tables(plans: list[Plan], seeds: list[int]) -> Array:
    """Tables of the whole block; each plan is told its own."""
    coded = [planned for planned in plans if planned.mode >= Mode.ONE]
    if not coded:
        return np.zeros((0, 256), np.uint8)
    counts = np.concatenate([planned.counts[planned.used] for planned in coded])
    levels, assigned = cluster(counts, np.array(seeds))
    at = 0
    for planned in coded:
        used = planned.used
        planned.tables = np.zeros(len(planned.counts), np.int64)
        planned.tables[used] = assigned[at : at + len(used)]
        at += len(used)
    return levels


def _between(data: bytes, segments: list[Segment]) -> Iterator[bytes]:
    """What is in no array."""
    end = 0
    for segment in segments:
        yield data[end : segment.offset]
        end = segment.offset + segment.nbytes
    yield data[end:]


def _head(segments: list[Segment], plans: list[Plan], levels: Array, skeleton: int, packed: int) -> bytes:
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
    for planned in plans:
        _write_plan(head, planned)
    return head.done()


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
