"""Linear maps along one axis of a tensor: what resizing, padding and average pooling are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxcomp.gradient.tape import Shape, Tape

__all__ = ["along", "placed"]

Array = np.ndarray[Any, Any]


def along(tape: Tape, tensor: str, shape: Shape, axis: int, matrix: Array) -> tuple[str, Shape]:
    """Multiply one axis by a matrix of (its extent, its new extent); returns the tensor and its new shape."""
    lead, dim, trail = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    values = np.asarray(matrix, dtype=np.float32)
    if trail == 1:
        product = tape.emit("MatMul", tape.reshape(tensor, [lead, dim]), tape.constant(values))
    else:
        flipped = tape.constant(np.ascontiguousarray(values.T))
        product = tape.emit("MatMul", flipped, tape.reshape(tensor, [lead, dim, trail]))
    result = (*shape[:axis], values.shape[1], *shape[axis + 1 :])
    return tape.reshape(product, result), result


def placed(tape: Tape, tensor: str, shape: Shape, axis: int, positions: Array, extent: int) -> str:
    """Slices along an axis, each added at its position of an axis of another extent that is 0 elsewhere."""
    count, after = len(positions), len(shape) - axis - 1
    if np.array_equal(positions, positions[0] + np.arange(count)):
        first = int(positions[0])
        lead, rest = [0] * axis, [0] * after
        return tape.pad(tensor, [*lead, first, *rest], [*lead, extent - first - count, *rest])
    if len(np.unique(positions)) < count:
        matrix = np.zeros((count, extent), dtype=np.float32)
        matrix[np.arange(count), positions] = 1
        return along(tape, tensor, shape, axis, matrix)[0]
    sources = np.full(extent, count, dtype=np.int64)
    sources[positions] = np.arange(count)
    if count < extent:
        zeros = [0] * len(shape)
        tensor = tape.pad(tensor, zeros, [*zeros[:axis], 1, *zeros[axis + 1 :]])
    return tape.emit("Gather", tensor, tape.constant(sources), axis=axis)
