"""First and second moments of vectors x, and of vectors y that go with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Moments"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Moments:
    """Sums over samples, in float64; G independent problems side by side.

    Attributes:
        count: samples seen.
        x, y: sums, (G, d) and (G, outputs).
        xx: sum of x xᵀ, (G, d, d).
        yx: sum of y xᵀ, (G, outputs, d).
        yy: sum of the squares of y, (G, outputs).
    """

    count: int
    x: Array
    xx: Array
    y: Array
    yx: Array
    yy: Array

    @classmethod
    def none(cls, groups: int, inputs: int, outputs: int = 0) -> Moments:
        """Of no samples yet."""
        x, y = np.zeros((groups, inputs)), np.zeros((groups, outputs))
        xx, yx = np.zeros((groups, inputs, inputs)), np.zeros((groups, outputs, inputs))
        return cls(0, x, xx, y, yx, np.zeros_like(y))

    def add(self, x: Array, y: Array | None = None) -> None:
        """Take in samples, (G, samples, d) and (G, samples, outputs)."""
        self.count += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.xx += x.swapaxes(1, 2) @ x
        if y is not None:
            self.y += y.sum(axis=1, dtype=np.float64)
            self.yx += y.swapaxes(1, 2) @ x
            self.yy += np.square(y, dtype=np.float64).sum(axis=1)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of samples."""
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.xx + other.xx,
            self.y + other.y,
            self.yx + other.yx,
            self.yy + other.yy,
        )

    @property
    def mean(self) -> Array:
        """Of x, (G, d)."""
        mean: Array = self.x / max(1, self.count)
        return mean

    @property
    def output_mean(self) -> Array:
        """Of y, (G, outputs)."""
        mean: Array = self.y / max(1, self.count)
        return mean

    @property
    def covariance(self) -> Array:
        """H: of x, (G, d, d)."""
        mean = self.mean
        covariance: Array = self.xx / max(1, self.count) - mean[:, :, None] * mean[:, None, :]
        return covariance

    @property
    def cross_covariance(self) -> Array:
        """Of y and x, (G, outputs, d)."""
        means = self.output_mean[:, :, None] * self.mean[:, None, :]
        covariance: Array = self.yx / max(1, self.count) - means
        return covariance

    @property
    def output_variance(self) -> Array:
        """Of y, (G, outputs)."""
        variance: Array = self.yy / max(1, self.count) - self.output_mean**2
        return variance
