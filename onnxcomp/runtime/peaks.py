"""How far the channels of an activation reach, on samples seen and on more like them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Peaks"]

Array = np.ndarray[Any, Any]

_EULER = 0.5772156649


class Peaks:
    """Moments of the largest and the least value of every channel in every sample, and mean squares.

    Samples lie along axis 0 (all are one where that is the axis of the channels).

    Attributes:
        axis: of the channels.
        samples: seen.
        square: mean square of each channel, (channels,).
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.samples = 0
        self._values = 0
        self._square: Array = np.zeros(0)
        self._sums: Array = np.zeros(0)  # (low and high, sum and sum of squares, channels)

    @property
    def square(self) -> Array:
        """Mean square of each channel."""
        return self._square / max(1, self._values)

    @property
    def positions(self) -> float:
        """Values of a channel in a sample, on average."""
        return self._values / max(1, self.samples)

    def expect(self, updates: int) -> None:
        """Of no use here."""

    def update(self, array: Array) -> None:
        """Take in one batch."""
        if not array.size:
            return
        axis = self.axis % array.ndim
        values = np.nan_to_num(array, posinf=0, neginf=0) if not np.isfinite(array.sum()) else array
        within = tuple(position for position in range(1, array.ndim) if position != axis)
        high, low = values.max(axis=within), -values.min(axis=within)
        if axis == 0:
            high, low = high[None], low[None]
        flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        square = np.einsum("cp,cp->c", flat, flat).astype(np.float64)
        sides = np.maximum(np.stack([low, high]).astype(np.float64), 0)  # (2, samples, channels)
        sums = np.stack([sides.sum(1), np.square(sides).sum(1)], axis=1)
        first = self.samples == 0
        self._square = square if first else self._square + square
        self._sums = sums if first else self._sums + sums
        self.samples += len(high)
        self._values += flat.shape[1]

    def reach(self, samples: int) -> tuple[Array, Array]:
        """How far each channel is expected to reach below and above zero in that many samples, both >= 0.

        The largest of many values of the same kind follows Gumbel's law: with mean m and deviation d of the peaks
        of single samples, that of n samples lies at about m + b·(ln n - 0.577), b = d·√6 / π. Few samples know
        little of d, so one more is assumed, that is as the average channel.
        """
        low, high = (self._extrapolated(total, squares, samples) for total, squares in self._sums)
        return low, high

    def _extrapolated(self, total: Array, squares: Array, samples: int) -> Array:
        if not total.any():
            return np.zeros(len(total))
        mean, count = total / self.samples, self.samples
        variance = np.maximum(squares / count - np.square(mean), 0)
        typical, spread = mean.mean(), variance.mean()
        between = np.square(mean - typical) * count / (count + 1)
        mean, variance = (count * mean + typical) / (count + 1), (count * variance + spread + between) / (count + 1)
        scale = np.sqrt(6 * variance) / np.pi
        reached: Array = mean + scale * (np.log(samples) - _EULER)
        return reached
