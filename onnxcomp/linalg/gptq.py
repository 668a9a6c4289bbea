"""Rounding the weights of linear layers so that their outputs, not the weights, change least.

A layer computes y = W x of inputs with second moment H; weights Q instead of W cost E‖(Q - W) x‖² =
tr((Q - W) H (Q - W)ᵀ). Each weight may be a step of its own times a code of a few bits. A weight that is zero stays
zero. G independent problems (the groups of a convolution) are solved side by side: W is (G, outputs, d), H is (G, d,
d), steps broadcast over W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxcomp.linalg.sweeps import Rounder, by_input, coordinate_descent, nearest_plane

__all__ = ["Levels", "damped", "descend", "gptq", "output_error", "rescaling"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Levels:
    """What each weight may be: ``steps`` times a whole number.

    Attributes:
        steps: above zero, broadcasts to W's shape, float64.
        low, high: the least and the largest number.
    """

    steps: Array
    low: int
    high: int

    width: ClassVar[int] = 1
    """See ``onnxcomp.linalg.sweeps.Allowed``."""

    def nearest(self, W: Array) -> Array:
        """The codes nearest to weights, float64."""
        codes: Array = np.clip(np.rint(W / self.steps), self.low, self.high)
        return codes

    def codes(self, Q: Array) -> Array:
        """Of weights on the levels, float64."""
        codes: Array = np.rint(Q / self.steps)
        return codes

    def rounder(self, W: Array, order: Array | None) -> Rounder:
        """See ``Allowed``; zero stays zero."""
        steps, zero = by_input(self.steps, order), by_input(W == 0, order)

        def rounded(j: int, wanted: Array, metric: Array) -> Array:  # noqa: ARG001
            step = steps[:, j : j + 1] if steps.shape[1] > 1 else steps
            level: Array = np.clip(np.rint(wanted / step), self.low, self.high) * step * ~zero[:, j : j + 1]
            return level

        return rounded


def damped(H: Array, damping: float) -> Array:
    """H + λI, λ in units of the mean of diag(H), or ten times that until it is positive definite, for each group.

    Where nothing varies, λ is the damping itself.

    Raises:
        ValueError: H is not finite.
    """
    result = np.array(H, np.float64)
    if not np.isfinite(result).all():
        raise ValueError("the second moment of the inputs is not finite")
    for matrix in result:
        variances = np.diag(matrix).copy()
        level, share = max(float(variances.mean()), 0.0) or 1.0, damping
        while True:
            np.fill_diagonal(matrix, variances + share * level)
            try:
                np.linalg.cholesky(matrix)
                break
            except np.linalg.LinAlgError:
                share = max(10.0 * share, 1e-9)
    return result


def gptq(W: Array, H: Array, levels: Levels) -> Array:
    """Codes by GPTQ: see ``nearest_plane``.

    Args:
        W: (G, outputs, d).
        H: (G, d, d), positive definite; see ``damped``.
        levels: what weights may be.

    Returns:
        codes, float64, of W's shape.
    """
    return levels.codes(nearest_plane(W, H, levels))


def descend(W: Array, H: Array, levels: Levels, codes: Array, sweeps: int = 8) -> Array:
    """Better codes by coordinate descent: see ``coordinate_descent``.

    Args:
        W, H, levels: as for ``gptq``.
        codes: to start from.
        sweeps: over all inputs, at most.
    """
    return levels.codes(coordinate_descent(W, H, levels, codes * levels.steps, sweeps))


def rescaling(W: Array, H: Array, levels: Levels, codes: Array) -> Array:
    """The factor for each output's steps that makes the loss least with these codes, (G, outputs); in closed form."""
    Q = codes * levels.steps
    QH = Q @ H
    power, overlap = (QH * Q).sum(axis=2), (QH * W).sum(axis=2)
    usable = (power > 0) & (overlap > 0)
    factors: Array = np.where(usable, overlap / np.where(usable, power, 1.0), 1.0)
    return factors


def output_error(W: Array, H: Array, Q: Array) -> Array:
    """Mean squared change of each output, (G, outputs): the diagonal of (Q - W) H (Q - W)ᵀ."""
    change = Q - W
    error: Array = ((change @ H) * change).sum(axis=2)
    return error
