"""Weight matrices in codes of few bits: how they are laid out, and which scales lose least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.gptq import Levels

__all__ = ["LARGEST_FACTOR", "Grid", "QuantizedWeights", "best_steps", "code_range", "grid_4bit"]

Array = np.ndarray[Any, Any]

LARGEST_FACTOR = 15  # fits 4 bits, and with codes from -8 on the product fits 8
LEAST_SCALE = 1e-12
# Of the scale that cuts nothing off, these are tried. Narrower ones cut off more than they refine.
_FRACTIONS = np.linspace(0.4, 1.0, 25)
_CHUNK_VALUES = 2**22


def code_range(bits: int) -> tuple[int, int]:
    """The least and the largest code: symmetric in 8 bits, all there are in 4."""
    return (-8, 7) if bits == 4 else (-127, 127)


@dataclass(frozen=True)
class Grid:
    """The levels of a weight matrix.

    Attributes:
        scales: float32, shape (channels,).
        bits: of a code, 4 or 8.
        factors: of each block of neighbouring inputs, uint8, (channels, blocks); None for one block of factor 1.
    """

    scales: Array
    bits: int = 8
    factors: Array | None = None

    def steps(self, inputs: int) -> Array:
        """What a code of 1 stands for, float64, (channels, inputs), or (channels, 1) where all are alike."""
        scales = self.scales.astype(np.float64)[:, None]
        if self.factors is None:
            return scales
        return scales * np.repeat(self.factors, inputs // self.factors.shape[1], axis=1)

    def levels(self, shape: tuple[int, int, int]) -> Levels:
        """As ``gptq`` takes them, for weights of this shape, (groups, outputs, inputs)."""
        return Levels(self.steps(shape[2]).reshape(*shape[:2], -1), *code_range(self.bits))

    def rescaled(self, factors: Array) -> Grid:
        """With each channel's scale times a factor."""
        return replace(self, scales=np.maximum(self.scales * factors, LEAST_SCALE).astype(np.float32))


@dataclass(frozen=True)
class QuantizedWeights:
    """A weight matrix in codes.

    The weight is ``codes * factors * scales``, with the factor of the code's block. ``codes * factors`` fits 8 bits,
    so integer kernels may read it ("progressive" quantization, as in QServe, Lin et al. 2024, arXiv:2405.04532).

    Attributes:
        codes: int8, shape (channels, inputs).
        grid: the levels they count.
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
        if self.grid.factors is None:
            return self.codes
        repeated = np.repeat(self.grid.factors, self.codes.shape[1] // self.grid.factors.shape[1], axis=1)
        integers: Array = self.codes * repeated.astype(np.int8)
        return integers

    @property
    def restored(self) -> Array:
        """The weights, float64."""
        return self.integers * self.scales.astype(np.float64)[:, None]


def best_steps(rows: Array, importance: Array, low: int, high: int) -> Array:
    """For each row the step that makes the sum of importance · (rounding error)² least, among fractions of what
    cuts nothing off.

    Args:
        rows, importance: (n, values).
        low, high: codes.

    Returns:
        (n,), above zero.
    """
    widest = np.maximum(rows.max(axis=1, initial=0.0) / high, rows.min(axis=1, initial=0.0) / low)
    best, least = widest.copy(), np.full(len(rows), np.inf)
    chunk = max(1, _CHUNK_VALUES // max(1, rows.shape[1]))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        for fraction in _FRACTIONS:
            steps = np.maximum(fraction * widest[part], LEAST_SCALE)[:, None]
            error = np.clip(np.rint(rows[part] / steps), low, high) * steps - rows[part]
            loss = (importance[part] * error * error).sum(axis=1)
            better = loss < least[part]
            least[part] = np.where(better, loss, least[part])
            best[part] = np.where(better, steps[:, 0], best[part])
    return np.maximum(best, LEAST_SCALE)


def grid_4bit(rows: Array, importance: Array, block: int = 0, largest_factor: int = LARGEST_FACTOR) -> Grid:
    """A grid of 4 bits for these weights.

    Args:
        rows: (channels, inputs).
        importance: of an error of each weight, broadcasts to rows.
        block: neighbouring inputs that share a factor, a divisor of the inputs; 0 for no factors.
        largest_factor: as ``LARGEST_FACTOR``, or less.
    """
    low, high = code_range(4)
    importance = np.broadcast_to(importance, rows.shape)
    if not block:
        return Grid(best_steps(rows, importance, low, high).astype(np.float32), 4)
    blocks = rows.shape[1] // block
    steps = best_steps(rows.reshape(-1, block), importance.reshape(-1, block), low, high).reshape(-1, blocks)
    scales = np.maximum(steps.max(axis=1) / largest_factor, LEAST_SCALE).astype(np.float32)
    factors = np.clip(np.rint(steps / scales[:, None]), 1, largest_factor).astype(np.uint8)
    return Grid(scales, 4, factors)
