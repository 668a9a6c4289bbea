"""Derivatives of pooling over windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.gradient.convolution import padding, spans
from onnxcomp.gradient.linear import along
from onnxcomp.gradient.rules import register
from onnxcomp.gradient.tape import Operation, Shape, Tape

__all__: list[str] = []

Array = np.ndarray[Any, Any]


@register("GlobalAveragePool")
def global_average_pool(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    shape = operation.shape()
    return [tape.broadcast(tape.scaled(grad, 1 / math.prod(shape[2:])), shape)]


def _windows(operation: Operation) -> tuple[list[int], list[int], list[int], Shape]:
    """Kernel, strides, dilations, and the extents of dilated kernels."""
    kernel = operation.attr("kernel_shape")
    strides = operation.attr("strides", [1] * len(kernel))
    dilations = operation.attr("dilations", [1] * len(kernel))
    return kernel, strides, dilations, spans(kernel, dilations)


@register("AveragePool")
def average_pool(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """It is linear, and a product of maps along single axes; so is its transpose."""
    kernel, strides, dilations, extents = _windows(operation)
    x, shape = operation.shape(), operation.out_shape()
    before, after = padding(operation, extents, strides, x, shape)
    for index, k in enumerate(kernel):
        axis = index + 2
        places = np.arange(shape[axis])[:, None] * strides[index] + np.arange(k) * dilations[index] - before[index]
        matrix = _averages(places, x[axis], after[index], bool(operation.attr("count_include_pad", 0)))
        grad, shape = along(tape, grad, shape, axis, matrix)
    return [grad]


def _averages(places: Array, extent: int, after: int, padding_counts: bool) -> Array:
    """A matrix of (windows, positions) from the positions (windows, places) that each window sees."""
    seen = (places >= 0) & (places < extent)
    counted = places < extent + after if padding_counts else seen
    matrix = np.zeros((len(places), extent), dtype=np.float32)
    windows, columns = np.nonzero(seen)
    matrix[windows, places[windows, columns]] = 1
    return np.asarray(matrix / np.maximum(counted.sum(axis=1, keepdims=True), 1))


@register("MaxPool")
def max_pool(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """ONNX Runtime tells where each window has its maximum, the first one where there are several.

    Windows that overlap may have the same; those some windows apart do not overlap, so that MaxUnpool takes them at
    once, and the sum over such sets of windows is the gradient.
    """
    _, strides, _, extents = _windows(operation)
    kept = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    attributes = {name: operation.attr(name) for name in kept if operation.attr(name) is not None}
    _, places = tape.emit_many("MaxPool", [operation.input()], 2, **attributes)
    outs = operation.out_shape()[2:]
    apart = [min(math.ceil(span / stride), out) for span, stride, out in zip(extents, strides, outs, strict=True)]
    parts = []
    for first in itertools.product(*(range(step) for step in apart)):
        chosen = [_every(tape, tensor, first, outs, apart) for tensor in (grad, places)]
        shape = tape.ints(operation.shape())
        parts.append(tape.emit("MaxUnpool", *chosen, shape, kernel_shape=[1] * len(outs)))
    return [parts[0] if len(parts) == 1 else tape.emit("Sum", *parts)]


def _every(tape: Tape, tensor: str, first: Sequence[int], outs: Sequence[int], steps: Sequence[int]) -> str:
    """Every ``steps``-th position of spatial axes."""
    if set(steps) == {1}:
        return tensor
    return tape.slice(tensor, first, outs, range(2, len(outs) + 2), steps)
