"""Weight matrices rounded to few bits, to the nearest levels or by what their rounding does to the outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.linalg.gptq import descend, gptq, rescaling
from onnxcomp.linalg.int8 import SAFE_FACTOR, can_saturate, quantize_weights
from onnxcomp.linalg.weights import LARGEST_FACTOR, Grid, QuantizedWeights, grid_of_few_bits

__all__ = ["Precision", "divisor", "round_for_outputs", "round_nearest"]

Array = np.ndarray[Any, Any]

_REFINEMENTS = 2  # of scales and codes in turn; the loss hardly falls in more
_SWEEPS = 3


@dataclass(frozen=True)
class Precision:
    """How a weight matrix is to be held.

    Attributes:
        bits: of a code: 8, 4 or 2.
        block: of neighbouring inputs with a factor of their own, at most, beneath 8 bits; 0 for none.
        avoid_saturation: keep sums of two products of integer kernels within 16 bits; see ``quantize_weights``.
    """

    bits: int = 8
    block: int = 0
    avoid_saturation: bool = False

    def grid(self, rows: Array, importance: Array) -> Grid:
        """Levels for weights, (channels, inputs), whose errors matter so much (broadcasts to them)."""
        if self.bits == 8:
            return quantize_weights(rows, self.avoid_saturation).grid
        most = SAFE_FACTOR if self.avoid_saturation else LARGEST_FACTOR
        return grid_of_few_bits(rows, importance, self.bits, divisor(rows.shape[1], self.block), most)


def divisor(inputs: int, block: int) -> int:
    """The size of equal blocks, the largest up to ``block`` and over half of it; 0 where there is none."""
    sizes = (size for size in range(block, block // 2, -1) if inputs % size == 0 and size < inputs)
    return next(sizes, 0)


def round_nearest(rows: Array, precision: Precision) -> QuantizedWeights:
    """Each weight, (channels, inputs), on the nearest level."""
    if precision.bits == 8:
        return quantize_weights(rows, precision.avoid_saturation)
    return precision.grid(rows, np.ones(1)).nearest(rows)


def round_for_outputs(W: Array, H: Array, precision: Precision) -> QuantizedWeights:
    """Weights whose outputs differ least from those of W, of inputs with second moment H.

    Scales are those of the least error weighted by diag(H); codes are found by GPTQ; beneath 8 bits, scales in closed
    form and codes by coordinate descent follow in turn (see ``onnxcomp.linalg.gptq``).

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        precision: how to hold them.

    Returns:
        of shape (G · outputs, d).
    """
    rows = W.reshape(-1, W.shape[2])
    importance = np.repeat(np.diagonal(H, axis1=1, axis2=2), W.shape[1], axis=0)
    grid = precision.grid(rows, importance)
    codes = gptq(W, H, grid.levels(W.shape))
    for _ in range(_REFINEMENTS if precision.bits < 8 else 0):
        grid = grid.rescaled(rescaling(W, H, grid.levels(W.shape), codes).reshape(-1))
        codes = descend(W, H, grid.levels(W.shape), codes, _SWEEPS)
    weights = QuantizedWeights(codes.reshape(rows.shape).astype(np.int8), grid)
    return _safe(weights, rows) if precision.avoid_saturation and precision.bits == 8 else weights


def _safe(weights: QuantizedWeights, rows: Array) -> QuantizedWeights:
    """Rows that could saturate after all, on the levels nearest to what they were."""
    safe = quantize_weights(rows, avoid_saturation=True)
    risky = can_saturate(weights.codes)[:, None]
    return replace(safe, codes=np.where(risky, safe.codes, weights.codes))
