"""Interleaved range asymmetric numeral systems (rANS) on arrays: an entropy coder without a loop over symbols.

Each of many lanes is an rANS coder of its own (Duda, "Asymmetric numeral systems", 2013), and all of them share one
stream of 16-bit words (Giesen, "Interleaved entropy coders", 2014). A step codes one symbol in each lane, with a
few operations on arrays. Each symbol has a table of its own choice, so contexts cost nothing.

A coder starts each lane in a state of 16 bits of our choice: they carry bytes that were to be stored anyway, and
so the many lanes cost no bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["MOST_LANES", "PRECISION", "TOTAL", "CodeError", "Decoder", "encode", "lanes_for", "least_lanes"]

Array = np.ndarray[Any, Any]

PRECISION = 14
TOTAL = 1 << PRECISION
"""What the frequencies of a table sum up to."""

_LOWEST = 1 << 16  # states lie in [2^16, 2^32)
MOST_LANES = 8192
_BYTES_A_LANE = 512
_SYMBOLS_A_LANE = 4096


class CodeError(ValueError):
    """The bytes are no code of the symbols that are asked for."""


def lanes_for(count: int, nbytes: float) -> int:
    """How many lanes code so many symbols in so many bytes: each costs half a byte, and makes all faster."""
    return max(least_lanes(count), min(MOST_LANES, int(nbytes) // _BYTES_A_LANE))


def least_lanes(count: int) -> int:
    """How many lanes so many symbols must have: fewer would take long, even where they code next to nothing."""
    return max(1, min(MOST_LANES, count // _SYMBOLS_A_LANE))


def encode(
    stages: Sequence[tuple[Array, Array]], frequencies: Array, lanes: int, carried: bytes
) -> tuple[bytes, bytes]:
    """Code symbols with a table each.

    Args:
        stages: symbols (uint8) and the tables they are coded with (uint8 or uint16, same shape), in the order in
            which they will be decoded. What the tables of a stage are may depend on symbols of earlier ones.
        frequencies: one row a table, 256 columns, of sum ``TOTAL``; below ``TOTAL`` each, and not 0 for a symbol
            that occurs.
        lanes: from ``lanes_for``.
        carried: 2 · lanes bytes to store in the initial states.

    Returns:
        the final states, packed, and the words.
    """
    ends = np.cumsum(frequencies, axis=1, dtype=np.uint32)
    starts = (ends - frequencies).ravel().astype(np.uint32)
    flat = frequencies.ravel().astype(np.uint32)
    states = np.frombuffer(carried, "<u2").astype(np.uint32) + np.uint32(_LOWEST)
    words: list[Array] = []
    for symbols, tables in reversed(stages):
        for start in reversed(range(0, len(symbols), _PART * lanes)):
            part = slice(start, start + _PART * lanes)
            index = (tables[part].astype(np.intp) << 8) | symbols[part]
            _encode_part(states, flat[index], starts[index], lanes, words)
    return _packed(states), b"".join(part.tobytes() for part in reversed(words))


def _packed(states: Array) -> bytes:
    """For each state four bits that say how long it is, and its bits below the first: most are far from 2^32."""
    lengths = np.frexp(states.astype(np.float64))[1] - 1  # of the bits below the first: from 16 to 31
    heads = (lengths[:, None] >> np.arange(4)) & 1
    tails = (states[:, None] >> _PLACES) & np.uint32(1)
    return np.packbits(heads).tobytes() + np.packbits(tails[lengths[:, None] > _PLACES]).tobytes()


def _unpacked(data: bytes, lanes: int) -> Array:
    """The states of so many lanes that were packed."""
    head = -(-lanes // 2)
    found = np.frombuffer(data, np.uint8)
    if len(found) < head:
        raise CodeError("the states end too early")
    lengths = 16 + np.unpackbits(found[:head], count=4 * lanes).reshape(lanes, 4) @ np.array([1, 2, 4, 8])
    if len(found) != head + -(-int(lengths.sum()) // 8):
        raise CodeError("the states are not as long as they say")
    tails = np.zeros((lanes, len(_PLACES)), np.uint32)
    tails[lengths[:, None] > _PLACES] = np.unpackbits(found[head:], count=int(lengths.sum()))
    states = (tails << _PLACES).sum(axis=1, dtype=np.uint32)
    return np.asarray(states + (np.uint32(1) << lengths.astype(np.uint32)))


_PLACES = np.arange(31, dtype=np.uint32)
_PART = 64  # steps whose frequencies are looked up at once


def _encode_part(states: Array, frequency: Array, start: Array, lanes: int, words: list[Array]) -> None:
    limit = frequency << np.uint32(32 - PRECISION)  # a state from here on would leave its range
    gap = np.uint32(TOTAL) - frequency
    divisor = frequency.astype(np.float64)
    for at in reversed(range(0, len(frequency), lanes)):
        step = slice(at, min(at + lanes, len(frequency)))
        state = states[: step.stop - at]
        full = np.flatnonzero(state >= limit[step])
        leaving = state[full]
        words.append(leaving.astype("<u2"))
        state[full] = leaving >> np.uint32(16)
        # The quotient of numbers below 2^32 and 2^14 is exact in float64 once it is cut off.
        quotient = (state / divisor[step]).astype(np.uint32)
        quotient *= gap[step]
        quotient += start[step]
        state += quotient


class Decoder:
    """What ``encode`` wrote, stage by stage.

    Args:
        frequencies, lanes: as they were given to ``encode``.
        final: its states.
        words: its words.

    Raises:
        CodeError: the states or words cannot be from ``encode``.
    """

    def __init__(self, frequencies: Array, lanes: int, final: bytes, words: bytes) -> None:
        self._lanes = lanes
        self._states = _unpacked(final, lanes)
        if len(words) % 2:
            raise CodeError("there is half a word")
        self._words = np.frombuffer(words, "<u2").astype(np.uint32)
        self._next = 0
        counts = frequencies.ravel()
        self._symbols = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(frequencies)), counts)
        ends = np.cumsum(frequencies, axis=1, dtype=np.uint32).ravel()
        self._packed = (counts.astype(np.uint32) << np.uint32(16)) | (ends - counts.astype(np.uint32))

    def decode(self, tables: Array) -> Array:
        """The symbols of the next stage (uint8), of which these are the tables.

        Raises:
            CodeError: there are too few words.
        """
        symbols = np.empty(len(tables), np.uint8)
        for start in range(0, len(tables), _PART * self._lanes):
            part = slice(start, start + _PART * self._lanes)
            self._decode_part(tables[part].astype(np.intp), symbols[part])
        return symbols

    def _decode_part(self, tables: Array, symbols: Array) -> None:
        places = tables << PRECISION
        rows = tables << 8
        for at in range(0, len(tables), self._lanes):
            step = slice(at, min(at + self._lanes, len(tables)))
            state = self._states[: step.stop - at]
            slot = state & np.uint32(TOTAL - 1)
            place = places[step]
            place += slot
            symbol = self._symbols[place]
            symbols[step] = symbol
            row = rows[step]
            row += symbol
            packed = self._packed[row]
            state >>= np.uint32(PRECISION)
            state *= packed >> np.uint32(16)
            state += slot
            state -= packed & np.uint32(0xFFFF)
            low = np.flatnonzero(state < _LOWEST)
            end = self._next + len(low)
            if end > len(self._words):
                raise CodeError("there are too few words")
            state[low] = (state[low] << np.uint32(16)) | self._words[self._next : end]
            self._next = end

    def carried(self) -> bytes:
        """The bytes that the initial states carried, after the last stage.

        Raises:
            CodeError: words are left over, or the states are not where the code began.
        """
        if self._next != len(self._words) or (self._states >= 2 * _LOWEST).any():
            raise CodeError("the code does not end where it must")
        return (self._states & np.uint32(0xFFFF)).astype("<u2").tobytes()
