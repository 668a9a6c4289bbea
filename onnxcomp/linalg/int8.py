"""Weights as signed 8-bit integers with one scale for each output channel, and what integer kernels do to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Int8Weights", "can_saturate", "least_scales", "quantize_bias", "quantize_weights", "with_least_scales"]

Array = np.ndarray[Any, Any]

LEVELS = 127
# u8 · s8 + u8 · s8 must fit 16 bits: 255 · (|a| + |b|) ≤ 32767 for two weights of one sign.
PAIR_LIMIT = 32767 // 255
# Room that a 32-bit accumulator keeps for the products beside the bias.
_BIAS_LIMIT = 2**30
_LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class Int8Weights:
    """A quantized weight matrix.

    Attributes:
        codes: int8, shape (channels, inputs), the value is ``codes * scales[:, None]``.
        scales: float32, shape (channels,).
        limited: channels that use fewer levels than 127 because they could saturate.
    """

    codes: Array
    scales: Array
    limited: int = 0


def quantize_weights(matrix: Array, avoid_saturation: bool = False) -> Int8Weights:
    """Round every row to 127 levels on each side of zero; its scale comes from its largest magnitude.

    Args:
        matrix: shape (channels, inputs).
        avoid_saturation: give a row as many levels as the 16-bit sum of any two of its products allows, which
            is 64 to 127. (Usual practice is 64 for all, "reduce_range".) Which inputs a kernel pairs depends
            on how it packs them, so the two largest weights of one sign are taken to meet.
    """
    rows = np.asarray(matrix, np.float64)
    scales = np.abs(rows).max(axis=1, initial=0.0) / LEVELS
    limited = 0
    if avoid_saturation:
        # One less, so that rounding both weights up stays within the limit.
        needed = np.maximum(_top_two(rows), _top_two(-rows)) / (PAIR_LIMIT - 1)
        limited = int(np.count_nonzero(needed > scales * (1 + 1e-9)))
        scales = np.maximum(scales, needed)
    stored = np.maximum(scales, _LEAST_SCALE).astype(np.float32)
    return Int8Weights(_nearest(rows, stored), stored, limited)


def with_least_scales(weights: Int8Weights, least: Array) -> Int8Weights:
    """The same weights, but rounded again where their scales are less than ``least``, shape (channels,)."""
    if np.all(weights.scales >= least):
        return weights
    scales = np.maximum(weights.scales, least).astype(np.float32)
    rows = weights.codes * weights.scales.astype(np.float64)[:, None]
    changed = (scales > weights.scales)[:, None]
    return Int8Weights(np.where(changed, _nearest(rows, scales), weights.codes), scales, weights.limited)


def can_saturate(codes: Array, highest_activation: int = 255) -> Array:
    """For each row of int8 codes, whether two u8 · s8 products can exceed 16 bits, shape (channels,)."""
    rows = codes.astype(np.int64)
    sums = np.maximum(_top_two(rows), _top_two(-rows)) * highest_activation
    result: Array = sums > np.iinfo(np.int16).max
    return result


def least_scales(bias: Array, input_scale: float) -> Array:
    """Weight scales below which the bias would not fit 32 bits, shape (channels,)."""
    return np.abs(np.asarray(bias, np.float64)) / (input_scale * _BIAS_LIMIT)


def quantize_bias(bias: Array, input_scale: float, weight_scales: Array) -> tuple[Array, Array]:
    """The bias in 32-bit integers on the grid of the accumulator, and the scales of that grid (float32).

    Raises:
        OverflowError: a channel does not fit; its weight scale is below ``least_scales``.
    """
    scales = (np.float32(input_scale) * weight_scales.astype(np.float32)).astype(np.float32)
    codes = np.rint(np.asarray(bias, np.float64) / scales.astype(np.float64))
    if np.abs(codes).max(initial=0.0) > np.iinfo(np.int32).max:
        raise OverflowError("a bias does not fit 32 bits on the grid of its layer")
    return codes.astype(np.int32), scales


def _nearest(rows: Array, scales: Array) -> Array:
    codes = np.clip(np.rint(rows / scales.astype(np.float64)[:, None]), -LEVELS, LEVELS)
    return codes.astype(np.int8)


def _top_two(rows: Array) -> Array:
    """Sum of the two largest positive entries of each row."""
    if rows.shape[1] < 2:
        alone: Array = rows.max(axis=1, initial=0)
        return alone
    largest = np.partition(rows, -2, axis=1)[:, -2:]
    result: Array = np.maximum(largest, 0).sum(axis=1)
    return result
