"""How layers read their inputs: which values of a tensor one output of the layer is made of.

The columns of X are ordered as those of ``WeightedLayer.matrix()``, so that the layer computes W · X: for a
convolution the patches under the kernel (im2col), else the vectors that the weight matrix multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxcomp.graph.layers import WeightedLayer

__all__ = ["Layout", "MatMulLayout", "PatchLayout", "TransposedPatchLayout", "layout_of"]

Array = np.ndarray[Any, Any]


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
        array = array.T if self.transposed else np.atleast_2d(array)  # a vector is one position
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
        spans = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]
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
        for size, kernel, stride, dilation in zip(sizes, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
            small, large = total // 2, total - total // 2
            padding.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return padding


@dataclass(frozen=True)
class TransposedPatchLayout:
    """A transposed convolution, as the convolution of its input with zeros between the values.

    Attributes:
        pads: begin of every axis, then end of every axis; ``auto_pad`` and ``output_shape`` overrule it.
        output_padding: more outputs at the end of each axis.
        output_shape: sizes of the spatial axes of the output, or None.
    """

    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Inputs of one output: channels of the group times kernel positions, most of them zero."""
        return self.channels // self.groups * math.prod(self.kernel)

    def view(self, array: Array) -> tuple[Array, int]:
        sizes = array.shape[2:]
        spread = [(size - 1) * stride + 1 for size, stride in zip(sizes, self.strides, strict=True)]
        stuffed = np.zeros((*array.shape[:2], *spread), array.dtype)
        every = tuple(slice(None, None, stride) for stride in self.strides)
        stuffed[(slice(None), slice(None), *every)] = array
        for axis, (before, after) in enumerate(self.padding(sizes), start=2):
            stuffed = _grow(stuffed, axis, before, after)
        ones = (1,) * len(self.kernel)
        patches = PatchLayout(self.channels, self.kernel, ones, (0,) * 2 * len(ones), self.dilations)
        windows, axes = patches.view(stuffed)
        return np.flip(windows, tuple(range(axes + 1, windows.ndim))), axes

    def padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros to add (or, below zero, values to cut) before and after each axis of the spread input."""
        rank = len(self.kernel)
        extra = self.output_padding or (0,) * rank
        padding = []
        for axis in range(rank):
            reach = self.dilations[axis] * (self.kernel[axis] - 1)
            full = (sizes[axis] - 1) * self.strides[axis] + reach + 1 + extra[axis]
            begin, end = self._pads(axis, full, sizes[axis])
            padding.append((reach - begin, reach - end + extra[axis]))
        return padding

    def _pads(self, axis: int, full: int, size: int) -> tuple[int, int]:
        """What is cut off the full output of an axis, before and after."""
        if self.output_shape is not None:
            total = max(0, full - self.output_shape[axis])
        elif self.auto_pad.startswith("SAME"):
            total = max(0, full - size * self.strides[axis])
        elif self.auto_pad == "VALID":
            return 0, 0
        else:
            return self.pads[axis], self.pads[axis + len(self.kernel)]
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)


def layout_of(layer: WeightedLayer) -> Layout:
    """How a Conv, ConvTranspose, Gemm or MatMul reads its input.

    Raises:
        ValueError: a layer of another kind.
    """
    attributes = layer.node.attrs
    if layer.kind in ("Gemm", "MatMul"):
        transposed = layer.kind == "Gemm" and bool(attributes.get("transA", 0))
        return MatMulLayout(layer.shape[layer.in_axis], transposed)
    if layer.kind not in ("Conv", "ConvTranspose"):
        raise ValueError(f"{layer.name}: no matrix of inputs is known for {layer.op}")
    kernel = layer.shape[2:]
    ones = (1,) * len(kernel)
    strides = tuple(attributes.get("strides") or ones)
    pads = tuple(attributes.get("pads") or (0,) * (2 * len(kernel)))
    dilations = tuple(attributes.get("dilations") or ones)
    auto_pad = str(attributes.get("auto_pad") or "NOTSET")
    if layer.kind == "Conv":
        channels = layer.shape[1] * layer.groups
        return PatchLayout(channels, kernel, strides, pads, dilations, layer.groups, auto_pad)
    shape = attributes.get("output_shape")
    return TransposedPatchLayout(
        *(layer.shape[0], kernel, strides, pads, dilations, layer.groups, auto_pad),
        output_padding=tuple(attributes.get("output_padding") or ()),
        output_shape=tuple(shape[-len(kernel) :]) if shape else None,
    )


def _grow(array: Array, axis: int, before: int, after: int) -> Array:
    """Zeros added at both ends of an axis, or values cut off where a count is below zero."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (max(0, before), max(0, after))
    grown = np.pad(array, widths)
    return grown.take(range(max(0, -before), grown.shape[axis] - max(0, -after)), axis)
