"""Weight matrices in codes of few bits: how they are laid out, and which scales lose least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.gptq import Levels

__all__ = ["LARGEST_FACTOR", "LEAST_SCALE", "Grid", "QuantizedWeights", "best_steps", "grid_of_few_bits"]

Array = np.ndarray[Any, Any]

LARGEST_FACTOR = 15  # fits 4 bits, and its products with codes of 4 bits or 2 fit 8
LEAST_SCALE = 1e-12
# Of the step that cuts nothing off, these are tried, by bits. Narrower ones cut off more than they refine.
_FRACTIONS = {4: np.linspace(0.4, 1.0, 25), 2: np.linspace(0.1, 1.0, 37)}
_BOUNDS = {2: (-2, 1), 4: (-8, 7), 8: (-127, 127)}
_CHUNK_VALUES = 2**20


@dataclass(frozen=True)
class Grid:
    """The levels of a weight matrix.

    Attributes:
        scales: float32, shape (channels,).
        bits: of a code: 8, from -127 to 127; 4, from -8 to 7; or 2, from -2 to 1.
        factors: of each block of neighbouring inputs, uint8, (channels, blocks); None for one block of factor 1.
    """

    scales: Array
    bits: int = 8
    factors: Array | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest code."""
        return _BOUNDS[self.bits]

    def multiples(self, inputs: int) -> Array:
        """The factor of each weight, uint8, (channels, inputs), or (channels, 1) where all are 1."""
        if self.factors is None:
            return np.ones((len(self.scales), 1), np.uint8)
        repeated: Array = np.repeat(self.factors, inputs // self.factors.shape[1], axis=1)
        return repeated

    def levels(self, shape: tuple[int, ...]) -> Levels:
        """For weights of this shape, (groups, outputs, inputs) or (channels, inputs)."""
        steps = self.scales.astype(np.float64)[:, None] * self.multiples(shape[-1])
        return Levels(steps.reshape(*shape[:-1], -1), *self.bounds)

    def nearest(self, rows: Array) -> QuantizedWeights:
        """The codes nearest to these weights, (channels, inputs)."""
        return QuantizedWeights(self.levels(rows.shape).nearest(rows).astype(np.int8), self)

    def rescaled(self, factors: Array) -> Grid:
        """With each channel's scale times a factor."""
        return replace(self, scales=np.maximum(self.scales * factors, LEAST_SCALE).astype(np.float32))


@dataclass(frozen=True)
class QuantizedWeights:
    """A weight matrix in codes.

    A weight is its code times the factor of its block times the scale of its channel. Codes times factors fit 8 bits,
    so that integer kernels may read them ("progressive" quantization, as in QServe, Lin et al. 2024,
    arXiv:2405.04532).

    Attributes:
        codes: int8, shape (channels, inputs).
        grid: the levels that they count.
        limited: channels that use fewer levels than there are because they could saturate.
    """

    codes: Array
    grid: Grid
    limited: int = 0

    @property
    def scales(self) -> Array:
        """Of each channel, float32."""
        return self.grid.scales

    @property
    def integers(self) -> Array:
        """What integer kernels read, int8, (channels, inputs); times ``scales`` it is the weight."""
        integers: Array = self.codes * self.grid.multiples(self.codes.shape[1]).astype(np.int8)
        return integers

    @property
    def restored(self) -> Array:
        """The weights, float64."""
        restored: Array = self.integers * self.scales.astype(np.float64)[:, None]
        return restored


def best_steps(rows: Array, importance: Array, bits: int) -> Array:
    """The step of each row with the least sum of importance · (rounding error)², clipping included.

    Args:
        rows, importance: (n, values).
        bits: of a code, 4 or 2.

    Returns:
        (n,), above zero.
    """
    low, high = _BOUNDS[bits]
    widest = np.maximum(rows.max(axis=1, initial=0.0) / high, rows.min(axis=1, initial=0.0) / low)
    best = np.empty(len(rows))
    chunk = max(1, _CHUNK_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        steps = np.maximum(np.multiply.outer(_FRACTIONS[bits], widest[part]), LEAST_SCALE)
        losses = [_loss(rows[part], importance[part], each[:, None], low, high) for each in steps]
        best[part] = np.take_along_axis(steps, np.argmin(losses, axis=0)[None], axis=0)[0]
    return best


def _loss(rows: Array, importance: Array, steps: Array, low: int, high: int) -> Array:
    error = Levels(steps, low, high).nearest(rows) * steps
    error -= rows
    error *= error
    loss: Array = (error * importance).sum(axis=1)
    return loss


def grid_of_few_bits(
    rows: Array, importance: Array, bits: int = 4, block: int = 0, largest_factor: int = LARGEST_FACTOR
) -> Grid:
    """The levels of few bits that serve these weights best.

    Args:
        rows: (channels, inputs).
        importance: of an error in each weight, broadcasts to rows.
        bits: 4 or 2.
        block: neighbouring inputs that share a factor, a divisor of the inputs; 0 for no factors.
        largest_factor: ``LARGEST_FACTOR`` or less.
    """
    weight = np.broadcast_to(importance, rows.shape)
    if not block:
        return Grid(best_steps(rows, weight, bits).astype(np.float32), bits)
    blocks = rows.shape[1] // block
    steps = best_steps(rows.reshape(-1, block), weight.reshape(-1, block), bits).reshape(-1, blocks)
    scales = np.maximum(steps.max(axis=1) / largest_factor, LEAST_SCALE).astype(np.float32)
    factors = np.clip(np.rint(steps / scales[:, None]), 1, largest_factor).astype(np.uint8)
    return Grid(scales, bits, factors)
