"""Weights on a grid as functions of real numbers that training can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["CodeGrid", "deliberate_zeros"]

Array = np.ndarray[Any, Any]

_LEAST_STRETCH = np.float32(1e-3)  # a step stays above zero
_ZEROS = 1 / 8  # of the codes, that must be zero for the zeros to count as meant
_OVER_ONES = 2.0  # and so many for each code next to zero: rounding makes fewer


@dataclass(frozen=True, eq=False)
class CodeGrid:
    """Weights that are whole numbers times steps: weight = code · factor · scale, low <= code <= high.

    Training keeps a real number for each weight, w, and a stretch for each scale, r, which is 1 at first; the code is
    w / (factor · scale · r), rounded and held in its bounds. Its derivatives go straight through the rounding: by w it
    is 1 within the bounds and else 0 (Bengio et al. 2013, arXiv:1308.3432), by the step it is the code, less
    w / step within the bounds (learned step sizes, Esser et al. 2020, arXiv:1902.08153).

    Attributes:
        scales: float32, broadcasts over the weight.
        factors: of neighbouring weights, broadcasts over it.
        low, high: bounds of the codes, broadcast over it.
    """

    scales: Array
    factors: Array
    low: Array
    high: Array

    def codes(self, weight: Array, stretch: Array) -> Array:
        """The codes of real numbers, as float32."""
        return self._held(weight / self._steps(stretch))

    def stretched(self, stretch: Array) -> Array:
        """The scales, float32."""
        scales: Array = (self.scales * np.maximum(stretch, _LEAST_STRETCH)).astype(np.float32)
        return scales

    def value(self, weight: Array, stretch: Array) -> Array:
        """The weights on the grid, float32."""
        value: Array = self.codes(weight, stretch) * self._steps(stretch)
        return value

    def pull(self, weight: Array, stretch: Array, gradient: Array) -> tuple[Array, Array]:
        """Gradients by the real numbers and by the stretches, of that by the weights on the grid."""
        steps = self._steps(stretch)
        real = weight / steps
        codes = self._held(real)
        inside = (real >= self.low) & (real <= self.high)
        by_weight: Array = gradient * inside
        by_step = gradient * (codes - real * inside) * (self.factors * self.scales)
        return by_weight, _sum_to(by_step, stretch.shape)

    def _held(self, real: Array) -> Array:
        held: Array = np.clip(np.rint(real), self.low, self.high, dtype=np.float32)
        return held

    def _steps(self, stretch: Array) -> Array:
        steps: Array = np.maximum(self.factors * self.stretched(stretch), np.finfo(np.float32).tiny)
        return steps


def deliberate_zeros(codes: Array) -> Array | None:
    """Which codes are not zero, where those that are were put there on purpose; else None.

    Rounding makes zeros too, but of weights that lie smoothly around zero, with scales that suit them, no more than
    twice as many as codes next to zero. Codes far from filling their range look like sparse ones, and count as such.
    """
    kept: Array = codes != 0
    zeros = kept.size - int(np.count_nonzero(kept))
    ones = int(np.count_nonzero(np.abs(codes) == 1))
    return kept if zeros > max(_ZEROS * kept.size, _OVER_ONES * ones) else None


def _sum_to(array: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the axes along which an array of this shape was broadcast."""
    lead = array.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(
        lead + axis for axis, size in enumerate(shape) if size == 1 and array.shape[lead + axis] != 1
    )
    summed: Array = array.sum(axis=axes, dtype=np.float32).reshape(shape)
    return summed
