"""First and second moments of vectors x, and of vectors y that go with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Moments"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Moments:
    """Means and sums of products about them, in float64; G independent problems side by side.

    Sets of samples are merged by the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances" (1979), so that nothing cancels where means exceed deviations.

    Attributes:
        count: samples seen.
        mean: of x, (G, d).
        output_mean: of y, (G, outputs).
        xx: sum of (x - mean)(x - mean)ᵀ, (G, d, d).
        yx: sum of (y - mean)(x - mean)ᵀ, (G, outputs, d).
        yy: sum of (y - mean)², (G, outputs).
    """

    count: int
    mean: Array
    output_mean: Array
    xx: Array
    yx: Array
    yy: Array

    @classmethod
    def none(cls, groups: int, inputs: int, outputs: int = 0) -> Moments:
        """Of no samples yet."""
        x, y = np.zeros((groups, inputs)), np.zeros((groups, outputs))
        xx, yx = np.zeros((groups, inputs, inputs)), np.zeros((groups, outputs, inputs))
        return cls(0, x, y, xx, yx, np.zeros_like(y))

    def add(self, x: Array, y: Array | None = None) -> None:
        """Take in samples, (G, samples, d) and (G, samples, outputs)."""
        new = x.shape[1]
        if not new:
            return
        centred = self._centred(x, self.mean)
        self.xx += centred.swapaxes(1, 2) @ centred
        if y is not None:
            centred_y = self._centred(y, self.output_mean)
            self.yx += centred_y.swapaxes(1, 2) @ centred
            self.yy += np.square(centred_y, dtype=np.float64).sum(axis=1)
        self.count += new

    def _centred(self, samples: Array, mean: Array) -> Array:
        """Deviations from the samples' own mean, and as one row more what the two means differ by.

        That row is scaled so that products of the result sum to the change that the samples make. ``mean`` becomes
        that of all samples.
        """
        new = samples.shape[1]
        own = samples.mean(axis=1, dtype=np.float64)
        step = (own - mean)[:, None, :]
        between = math.sqrt(self.count * new / (self.count + new)) * step
        mean += step[:, 0] * (new / (self.count + new))
        deviations = samples - own[:, None, :].astype(samples.dtype)
        return np.concatenate([deviations, between.astype(samples.dtype)], axis=1)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets of samples."""
        count = self.count + other.count
        share = other.count / max(1, count)
        x, y = other.mean - self.mean, other.output_mean - self.output_mean
        weight = self.count * share
        return Moments(
            count,
            self.mean + share * x,
            self.output_mean + share * y,
            self.xx + other.xx + weight * x[:, :, None] * x[:, None, :],
            self.yx + other.yx + weight * y[:, :, None] * x[:, None, :],
            self.yy + other.yy + weight * np.square(y),
        )

    def uncentred(self) -> Moments:
        """The same about zero, for where no bias can make up for a constant."""
        x, y = self.mean, self.output_mean
        return Moments(
            self.count,
            np.zeros_like(x),
            np.zeros_like(y),
            self.xx + self.count * x[:, :, None] * x[:, None, :],
            self.yx + self.count * y[:, :, None] * x[:, None, :],
            self.yy + self.count * np.square(y),
        )

    @property
    def covariance(self) -> Array:
        """H: of x, (G, d, d)."""
        covariance: Array = self.xx / max(1, self.count)
        return covariance

    def expected_covariance(self, sure: Array) -> Array:
        """H as new samples may have it: where there are fewer samples than inputs, what they do not show is not zero.

        Then each input gets a part of the mean square of all inputs besides, the more the fewer samples there are;
        not those that are ``sure`` to be as they were seen.
        """
        unseen = max(0.0, 1.0 - self.count / max(1, self.mean.shape[1]))
        expected = self.covariance.copy()
        others = np.ones(expected.shape[1])
        others[sure] = 0.0
        for H, mean in zip(expected, self.mean, strict=True):
            H.flat[:: len(H) + 1] += unseen * float((np.diag(H) + np.square(mean)).mean()) * others
        return expected

    @property
    def cross_covariance(self) -> Array:
        """Of y and x, (G, outputs, d)."""
        covariance: Array = self.yx / max(1, self.count)
        return covariance

    @property
    def output_variance(self) -> Array:
        """Of y, (G, outputs)."""
        variance: Array = self.yy / max(1, self.count)
        return variance

    @property
    def finite(self) -> bool:
        """Whether no sample was NaN or infinite."""
        # One bad value of x or y spoils its variance.
        return bool(np.isfinite(np.diagonal(self.xx, axis1=1, axis2=2)).all() and np.isfinite(self.yy).all())
