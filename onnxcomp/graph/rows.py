"""Weight arrays as matrices with a row for each scale, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer

__all__ = ["RowLayout", "rows_of"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of a matrix (channels, inputs) are in an array.

    Attributes:
        shape: of the array.
        kept: the axes that channels are on; all others are inputs.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, layer: WeightedLayer) -> RowLayout:
        """Of a layer's weight: channels are the outputs where the layout is known, else all but the last axis.

        The rows are those of ``WeightedLayer.matrix()``, except that the groups of a ConvTranspose share theirs.
        """
        kept = range(len(layer.shape) - 1) if layer.kind == "other" else (layer.out_axis,)
        return cls(layer.shape, tuple(kept))

    @property
    def size(self) -> tuple[int, int]:
        """Channels and inputs."""
        channels = math.prod(self.shape[axis] for axis in self.kept)
        return channels, math.prod(self.shape) // channels

    @property
    def order(self) -> list[int]:
        """The axes of the array, those of channels first: the order in which rows have them."""
        return [*self.kept, *(axis for axis in range(len(self.shape)) if axis not in self.kept)]

    def rows(self, array: Array) -> Array:
        """The array as (channels, inputs)."""
        return array.transpose(self.order).reshape(self.size)

    def array(self, rows: Array) -> Array:
        """The inverse of ``rows``."""
        moved = rows.reshape([self.shape[axis] for axis in self.order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self.order)))

    def scales(self, scales: Array) -> Array:
        """One value for each row, in a shape that broadcasts over the array."""
        return scales.reshape([size if axis in self.kept else 1 for axis, size in enumerate(self.shape)])

    def split(self, array: Array, runs: int) -> Array:
        """An array of the shape of this or of ``scales``, with channels on two axes: so many runs, and theirs."""
        first, last = self.kept[0], self.kept[-1] + 1
        return array.reshape(*array.shape[:first], runs, -1, *array.shape[last:])

    @property
    def has_blocks(self) -> bool:
        """Whether neighbouring inputs of a row are neighbours in the array."""
        return self.kept in (tuple(range(len(self.kept))), (len(self.shape) - 1,))

    def blocks(self, rows: Array, factors: Array) -> tuple[Array, Array]:
        """Rows and the factors of their blocks, (channels, blocks), as arrays that broadcast.

        Their product, reshaped to the shape of the array, is the array.
        """
        split, alone = rows.reshape(*factors.shape, -1), factors[:, :, None]
        if self.kept[0] == 0:
            return split, alone
        return np.ascontiguousarray(np.moveaxis(split, 0, 2)), np.ascontiguousarray(np.moveaxis(alone, 0, 2))


def rows_of(layer: WeightedLayer) -> Array:
    """A layer's weight as (channels, inputs), float64; see ``RowLayout.of``."""
    return RowLayout.of(layer).rows(np.asarray(layer.array(), np.float64))
