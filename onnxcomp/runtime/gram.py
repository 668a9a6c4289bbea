"""H = X Xᵀ of the inputs of a layer: what second-order pruning and quantization need to know of the data.

X has the layer's inputs in its columns (see ``layouts``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.runtime.layouts import Layout, layout_of

__all__ = ["Gram", "enough_columns", "rows_at", "spread"]

Array = np.ndarray[Any, Any]

# How many columns are enough: H of d inputs from 8·d of them; small layers get more, for they are cheap.
# The columns of a grouped convolution hold all its groups, so they are dear although d is small.
COLUMNS_PER_INPUT = 8
LEAST_COLUMNS = 8192
LEAST_GROUPED_COLUMNS = 2048
CHUNK_VALUES = 4 * 2**20  # of X that exist at once

_GOLDEN = (math.sqrt(5) - 1) / 2
_PLASTIC = 0.7548776662466927  # 1 / the plastic number: with its square, the even sequence in two dimensions


class Gram:
    """Accumulates H = X Xᵀ of one layer.

    Each batch's product is formed in float32 and added up in float64: a product of n columns is wrong by
    about √n · 6e-8 of its diagonal, orders of magnitude below the damping (1 % of the mean diagonal) that
    every consumer of H adds.

    When told how many updates to expect, it takes only as many columns as H needs, an equal share from each
    update, evenly spread over its samples and positions (deterministic: no random numbers).

    Attributes:
        layout: how the layer reads its input.
        columns: about how many columns to use in all; None for 8·d or more, 0 for all.
        count: columns used.
        matrix: shape (groups, d, d), float64; the sum over the columns, not their mean.
    """

    def __init__(self, layout: Layout, columns: int | None = None) -> None:
        self.layout = layout
        self.columns = enough_columns(layout) if columns is None else columns
        self.count = 0
        self.matrix: Array = np.zeros((layout.groups, layout.size, layout.size))
        self._updates = 0
        self._share = 0  # columns of each update; 0 for all

    @classmethod
    def for_layer(cls, layer: WeightedLayer, columns: int | None = None) -> Gram:
        """H of the input ``layer.node.inputs[0]`` of a Conv, ConvTranspose, Gemm or MatMul.

        Raises:
            ValueError: a layer of another kind.
        """
        return cls(layout_of(layer), columns)

    def expect(self, updates: int) -> None:
        """Spread the columns over so many updates."""
        self._share = -(-self.columns // max(1, updates))

    def update(self, array: Array) -> None:
        """Take in the layer's input for one batch."""
        groups, size = self.layout.groups, self.layout.size
        for rows in self._rows(array):
            if groups == 1:
                self.matrix[0] += rows.T @ rows
            else:
                each = np.ascontiguousarray(rows.reshape(len(rows), groups, size).transpose(1, 0, 2))
                self.matrix += each.transpose(0, 2, 1) @ each
            self.count += len(rows)
        self._updates += 1

    def _rows(self, array: Array) -> Iterator[Array]:
        """The columns of X as rows, (n, groups · d), a limited number at a time."""
        view, axes = self.layout.view(array.astype(np.promote_types(array.dtype, np.float32), copy=False))
        chosen = spread(math.prod(view.shape[:axes]), self._share, self._updates)
        step = max(1, CHUNK_VALUES // (self.layout.groups * self.layout.size))
        for start in range(0, len(chosen), step):
            yield rows_at(view, axes, chosen[start : start + step])


def enough_columns(layout: Layout) -> int:
    """How many columns to use for H."""
    return max(COLUMNS_PER_INPUT * layout.size, LEAST_COLUMNS if layout.groups == 1 else LEAST_GROUPED_COLUMNS)


def spread(total: int, share: int, turn: int) -> Array:
    """Which columns of an update to use: one at a shifting place in each of ``share`` equal stretches.

    Args:
        total: columns that there are.
        share: columns to use; 0 for all.
        turn: number of the update.
    """
    if not share or total <= share:
        return np.arange(total)
    stretch = np.arange(share)
    shift = (stretch * _GOLDEN + turn * _PLASTIC) % 1.0
    return np.minimum(((stretch + shift) * (total / share)).astype(np.int64), total - 1)


def rows_at(view: Array, axes: int, chosen: Array) -> Array:
    """The chosen columns of X as rows, (n, groups · d); ``view`` and ``axes`` are from ``Layout.view``."""
    rows = view[np.unravel_index(chosen, view.shape[:axes])]
    return rows.reshape(len(rows), -1)
