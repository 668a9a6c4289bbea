"""H = X Xᵀ of the inputs of a layer: what second-order pruning and quantization need to know of the data.

X has the layer's inputs in its columns, ordered as the columns of ``WeightedLayer.matrix()``: for a
convolution the patches under the kernel (im2col), else the vectors that the weight matrix multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxcomp.graph.layers import WeightedLayer

__all__ = ["Gram", "Layout", "MatMulLayout", "PatchLayout", "layout_of", "rows_at", "spread"]

Array = np.ndarray[Any, Any]

# How many columns are enough: H of d inputs from 8·d of them; small layers get more, for they are cheap.
# The columns of a grouped convolution hold all its groups, so they are dear although d is small.
COLUMNS_PER_INPUT = 8
LEAST_COLUMNS = 8192
LEAST_GROUPED_COLUMNS = 2048
CHUNK_VALUES = 4 * 2**20  # of X that exist at once

_GOLDEN = (math.sqrt(5) - 1) / 2
_PLASTIC = 0.7548776662466927  # 1 / the plastic number: with its square, the even sequence in two dimensions


class Layout(Protocol):
    """How a layer reads its input.

    Attributes:
        groups: of a grouped convolution; each has its own H.
        size: d, the inputs of one output.
    """

    @property
    def groups(self) -> int: ...
    @property
    def size(self) -> int: ...

    def view(self, array: Array) -> tuple[Array, int]:
        """The input as an array with the positions on its leading axes, and how many axes those are.

        The other axes are the layer's inputs at that position, groups · size values in their order.
        """


@dataclass(frozen=True)
class MatMulLayout:
    """A matrix product over the last axis, or the first (Gemm with transA)."""

    size: int
    transposed: bool = False
    groups: int = 1

    def view(self, array: Array) -> tuple[Array, int]:
        array = array.T if self.transposed else array
        if array.shape[-1] != self.size:
            raise ValueError(f"input {array.shape} does not end in the {self.size} inputs of the layer")
        return array, array.ndim - 1


@dataclass(frozen=True)
class PatchLayout:
    """A convolution over (N, C, *spatial), any number of spatial axes.

    Attributes:
        pads: begin of every axis, then end of every axis; of no account under ``auto_pad``.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
    """

    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    auto_pad: str = "NOTSET"

    @property
    def size(self) -> int:
        """Inputs of one output: channels of the group times kernel positions."""
        return self.channels // self.groups * math.prod(self.kernel)

    def view(self, array: Array) -> tuple[Array, int]:
        padded = np.pad(array, [(0, 0), (0, 0), *self.padding(array.shape[2:])])
        spans = [
            dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)
        ]
        axes = tuple(range(2, array.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        starts = tuple(slice(None, None, stride) for stride in self.strides)
        taps = tuple(slice(None, None, dilation) for dilation in self.dilations)
        windows = windows[(slice(None), slice(None), *starts, *taps)]  # (N, C, *outputs, *kernel)
        return np.moveaxis(windows, 1, array.ndim - 1), array.ndim - 1

    def padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after each spatial axis of these sizes."""
        rank = len(self.kernel)
        if self.auto_pad in ("NOTSET", ""):
            return [(self.pads[axis], self.pads[axis + rank]) for axis in range(rank)]
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        padding = []
        for size, kernel, stride, dilation in zip(
            sizes, self.kernel, self.strides, self.dilations, strict=True
        ):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return padding


def layout_of(layer: WeightedLayer) -> Layout:
    """How a Conv, Gemm or MatMul reads its input.

    Raises:
        ValueError: a layer of another kind.
    """
    attributes = layer.node.attrs
    if layer.kind == "Conv":
        kernel = layer.shape[2:]
        ones = (1,) * len(kernel)
        return PatchLayout(
            channels=layer.shape[1] * layer.groups,
            kernel=kernel,
            strides=tuple(attributes.get("strides") or ones),
            pads=tuple(attributes.get("pads") or (0,) * (2 * len(kernel))),
            dilations=tuple(attributes.get("dilations") or ones),
            groups=layer.groups,
            auto_pad=str(attributes.get("auto_pad") or "NOTSET"),
        )
    if layer.kind in ("Gemm", "MatMul"):
        transposed = layer.kind == "Gemm" and bool(attributes.get("transA", 0))
        return MatMulLayout(layer.shape[layer.in_axis], transposed)
    raise ValueError(f"{layer.name}: no matrix of inputs is known for {layer.op}")


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
        least = LEAST_COLUMNS if layout.groups == 1 else LEAST_GROUPED_COLUMNS
        self.columns = max(COLUMNS_PER_INPUT * layout.size, least) if columns is None else columns
        self.count = 0
        self.matrix: Array = np.zeros((layout.groups, layout.size, layout.size))
        self._updates = 0
        self._share = 0  # columns of each update; 0 for all

    @classmethod
    def for_layer(cls, layer: WeightedLayer, columns: int | None = None) -> Gram:
        """H of the input ``layer.node.inputs[0]`` of a Conv, Gemm or MatMul.

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
    """Columns of X as rows, (n, groups · d): ``view`` and ``axes`` from ``Layout.view``, the chosen positions."""
    rows = view[np.unravel_index(chosen, view.shape[:axes])]
    return rows.reshape(len(rows), -1)
