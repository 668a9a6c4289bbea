"""Channels of an activation treated so that less error is left when it and the weights behind it are rounded.

A layer y = W x equals (W diag(s)) (x / s) for any s > 0. Activations have one scale for all channels and weights one
for each output, so s moves the difficulty of rounding from a channel of x that is much wider than the others into a
column of W, where it may do less harm (Xiao et al. 2022, "SmoothQuant", arXiv:2211.10438). A few channels that are
too wide for that are better kept apart, and their part of y computed in float (Dettmers et al. 2022, "LLM.int8()",
arXiv:2208.07339).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Treatment", "rounding_error", "treatments"]

Array = np.ndarray[Any, Any]

_EXPONENTS = np.linspace(0.0, 1.0, 21)
_QUANTILES = np.concatenate([np.linspace(0.5, 0.95, 10), [0.97, 0.98, 0.99, 0.995]])
_APART = (1, 2, 4)
_ACTIVATION_LEVELS = 255
_WEIGHT_LEVELS = 127


@dataclass(frozen=True)
class Treatment:
    """What is done to the channels of an activation.

    Attributes:
        divisors: (channels,); that of a channel kept apart is of no use.
        apart: channels to compute in float, ascending.
        error: the expected squared error of all outputs.
    """

    divisors: Array
    apart: Array
    error: float

    @property
    def is_none(self) -> bool:
        """Whether everything stays as it is."""
        return not len(self.apart) and bool(np.all(self.divisors == 1))


def rounding_error(W: Array, low: Array, high: Array, square: Array, s: Array) -> float:
    """Expected squared error of all outputs, y = W x, with x / s in 8 bits and W diag(s) in 8 bits for each output.

    Rounding errors are taken for independent and evenly spread over their step.

    Args:
        W: (outputs, channels).
        low, high: the least and largest value of each channel of x, (channels,).
        square: mean square of each channel, (channels,).
        s: (channels,).
    """
    return _Problem(np.abs(W), np.square(W).sum(axis=0), low, high, square).error(s)


@dataclass(frozen=True)
class _Problem:
    """What ``rounding_error`` needs to know; ``W`` in magnitudes, ``columns`` its sums of squares by channel."""

    W: Array
    columns: Array
    low: Array
    high: Array
    square: Array

    def without(self, apart: Array) -> _Problem:
        """The channels that are not kept apart."""
        arrays = (self.W, self.columns, self.low, self.high, self.square)
        return _Problem(*(np.delete(array, apart, axis=-1) for array in arrays))

    def error(self, s: Array) -> float:
        step = (max(0.0, float((self.high / s).max())) - min(0.0, float((self.low / s).min()))) / _ACTIVATION_LEVELS
        steps = (self.W * s.astype(self.W.dtype)).max(axis=1).astype(np.float64) / _WEIGHT_LEVELS
        activations = step**2 / 12 * float((self.columns * np.square(s)).sum())
        return activations + float(np.square(steps).sum()) / 12 * float((self.square / np.square(s)).sum())

    def smoothed(self) -> tuple[Array, float]:
        """The best divisors of both families, and the error that they leave."""
        best = np.ones(len(self.low))
        least = self.error(best)
        if not least > 0 or not np.isfinite(least):
            return best, least
        for s in _families(np.maximum(self.high, -self.low), self.W.max(axis=0).astype(np.float64)):
            error = self.error(s)
            if error < least:
                best, least = s, error
        return best, least


def treatments(W: Array, low: Array, high: Array, square: Array) -> list[Treatment]:
    """What could be done, from the cheapest on: nothing, divisors, and divisors with 1, 2 or 4 channels apart.

    Divisors have the least ``rounding_error`` among two families. One is SmoothQuant's, s = a^alpha / w^(1-alpha) with
    the largest magnitudes a of the channels and w of their columns; the other divides only channels wider than a
    threshold, down to it. The widest channels are kept apart.

    Args:
        W, low, high, square: as for ``rounding_error``; W is of all layers that read x.
    """
    channels, ones = len(low), np.ones(len(low))
    whole = _Problem(np.abs(W).astype(np.float32), np.square(W).sum(axis=0), low, high, square)
    found = [Treatment(ones, np.zeros(0, np.int64), whole.error(ones))]
    by_width = np.argsort(-np.maximum(high, -low), kind="stable")
    for count in (0, *_APART):
        if count < channels:
            apart = np.sort(by_width[:count])
            divisors = ones.copy()
            divisors[np.sort(by_width[count:])], error = whole.without(apart).smoothed()
            found.append(Treatment(divisors, apart, error))
    return found


def _families(a: Array, w: Array) -> Iterator[Array]:
    a = np.maximum(a, 1e-5 * a.max() or 1.0)
    w = np.maximum(w, 1e-5 * w.max() or 1.0)
    for exponent in _EXPONENTS:
        s = a**exponent / w ** (1 - exponent)
        yield s / np.exp(np.log(s).mean())
    for quantile in _QUANTILES:
        yield np.maximum(1.0, a / np.quantile(a, quantile))
