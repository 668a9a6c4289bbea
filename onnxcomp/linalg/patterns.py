"""Which weights of a matrix may be zero together: single ones, N of M neighbours, blocks.

A matrix is (G, outputs, d). The d inputs are channels times kernel positions, positions fastest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Blocks", "Elements", "NofM", "Panels", "Pattern", "largest"]

Array = np.ndarray[Any, Any]


class Pattern(Protocol):
    """A kind of sparsity, and how much of it."""

    def kept(self, scores: Array) -> Array:
        """The mask that keeps most of these scores (not negative, (G, outputs, d)); ties go to the first."""


@dataclass(frozen=True)
class Elements:
    """Any weights.

    Attributes:
        share: that becomes zero.
        by_output: the same share in each row.
    """

    share: float
    by_output: bool = False

    def kept(self, scores: Array) -> Array:
        if not self.by_output:
            return largest(scores, scores.size - int(self.share * scores.size))
        left = scores.shape[2] - int(self.share * scores.shape[2])
        kept = np.zeros(scores.shape, bool)
        np.put_along_axis(kept, np.argsort(-scores, axis=2, kind="stable")[:, :, :left], True, axis=2)
        return kept


@dataclass(frozen=True)
class NofM:
    """At most n of every m neighbouring input channels, at the same kernel position, are not zero.

    That is what NVIDIA's sparse tensor cores take for n = 2, m = 4 (Mishra et al. 2021, "Accelerating sparse deep
    neural networks", arXiv:2104.08378), with the channels innermost. A last group of fewer channels counts as
    filled up with zeros.

    Attributes:
        kernel: positions of the kernel.
    """

    n: int
    m: int
    kernel: int = 1

    def kept(self, scores: Array) -> Array:
        groups, outputs, inputs = scores.shape
        channels = inputs // self.kernel
        missing = -channels % self.m
        split = scores.reshape(groups, outputs, channels, self.kernel)
        split = np.pad(split, [(0, 0), (0, 0), (0, missing), (0, 0)], constant_values=-1.0)
        split = split.reshape(groups, outputs, -1, self.m, self.kernel)
        rank = np.argsort(np.argsort(-split, axis=3, kind="stable"), axis=3, kind="stable")
        kept: Array = (rank < self.n).reshape(groups, outputs, -1, self.kernel)[:, :, :channels]
        return kept.reshape(scores.shape)


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of outputs and input channels, with all their kernel positions; those at the edges may be smaller.

    Attributes:
        share: of the weights that becomes zero, about.
        outputs, channels: of a block.
        kernel: positions of the kernel.
    """

    share: float
    outputs: int
    channels: int
    kernel: int = 1

    def kept(self, scores: Array) -> Array:
        rows, columns = self.outputs, self.channels * self.kernel
        groups, outputs, inputs = scores.shape
        tall, wide = -(-outputs // rows), -(-inputs // columns)
        edges = [(0, 0), (0, -outputs % rows), (0, -inputs % columns)]

        def summed(values: Array) -> Array:
            padded = np.pad(values, edges)
            total: Array = padded.reshape(groups, tall, rows, wide, columns).sum(axis=(2, 4))
            return total

        # Blocks at the edges hold fewer weights: the cheapest for each weight go, until so many weights are gone.
        sizes = summed(np.ones_like(scores)).reshape(-1)
        order = np.argsort(summed(scores).reshape(-1) / sizes, kind="stable")
        gone = np.zeros(len(sizes), bool)
        gone[order[np.cumsum(sizes[order]) <= self.share * scores.size + 0.5 * sizes[order]]] = True
        chosen = ~gone.reshape(groups, tall, wide)
        kept: Array = chosen.repeat(rows, axis=1).repeat(columns, axis=2)[:, :outputs, :inputs]
        return kept


@dataclass(frozen=True)
class Panels:
    """Equal panels of neighbouring outputs, each of which reads so many input channels, of its own choice.

    That is a grouped convolution of gathered channels, which runs as fast as it is small.

    Attributes:
        panels: how many; divides the outputs.
        channels: that each reads.
        kernel: positions of the kernel.
    """

    panels: int
    channels: int
    kernel: int = 1

    def kept(self, scores: Array) -> Array:
        groups, outputs, inputs = scores.shape
        rows = outputs // self.panels
        split = scores.reshape(groups, self.panels, rows, inputs // self.kernel, self.kernel)
        order = np.argsort(-split.sum(axis=(2, 4)), axis=2, kind="stable")[:, :, : self.channels]
        chosen = np.zeros((groups, self.panels, inputs // self.kernel), bool)
        np.put_along_axis(chosen, order, True, axis=2)
        kept: Array = chosen.repeat(rows, axis=1).repeat(self.kernel, axis=2)
        return kept


def largest(scores: Array, count: int) -> Array:
    """Mask of so many largest scores; of equal ones the first."""
    flat = scores.reshape(-1)
    if count >= flat.size:
        return np.ones(scores.shape, bool)
    if count <= 0:
        return np.zeros(scores.shape, bool)
    limit = np.partition(flat, flat.size - count)[flat.size - count]
    kept: Array = flat > limit
    ties = np.flatnonzero(flat == limit)
    kept[ties[: count - int(np.count_nonzero(kept))]] = True
    return kept.reshape(scores.shape)
