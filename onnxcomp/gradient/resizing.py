"""The derivative of Resize, which is linear, and a product of maps along single axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxcomp.gradient.linear import along
from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []

Array = np.ndarray[Any, Any]

_OF_SCALING = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "mode",
    "nearest_mode",
)


@register("Resize")
def resize(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    if operation.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise NotDifferentiableError("it crops as well")
    x, shape = operation.shape(), operation.out_shape()
    scales = _scales(operation)
    matrices = {
        axis: _matrix(operation, tape.opset, axis, scales)
        for axis in range(len(x))
        if x[axis] != shape[axis] or (scales is not None and scales[axis] != 1)
    }
    repeats = [_repeats(matrices[axis]) if axis in matrices else 1 for axis in range(len(x))]
    if 3 <= len(x) <= 5 and min(repeats) > 0 and repeats[:2] == [1, 1]:
        return [_gather_repeats(tape, grad, repeats[2:])]
    for axis, matrix in matrices.items():
        grad, shape = along(tape, grad, shape, axis, matrix.T)
    return [grad]


def _scales(operation: Operation) -> list[float] | None:
    """A factor for each axis; None where the sizes are given instead."""
    given = operation.constant(2)
    if given is None and operation.has(2):
        raise NotDifferentiableError("its scales are not constant")
    if given is None or not given.size:
        return None
    rank = len(operation.shape())
    scales = [1.0] * rank
    for axis, value in zip(operation.attr("axes", range(rank)), given, strict=True):
        scales[axis] = float(value)
    return scales


def _matrix(operation: Operation, opset: int, axis: int, scales: Sequence[float] | None) -> Array:
    """What one axis is multiplied by, (extent, new extent): unit vectors, resized by ONNX Runtime itself."""
    from onnxcomp.runtime.session import create

    rank, extent, new = len(operation.shape()), operation.shape()[axis], operation.out_shape()[axis]
    if rank < 2:
        raise NotDifferentiableError("it has a single axis")
    other = 0 if axis else 1
    shape = [extent if place in (axis, other) else 1 for place in range(rank)]
    if scales is None:
        sizes = [new if place == axis else size for place, size in enumerate(shape)]
        inputs, value = ["x", "", "", "factors"], np.array(sizes, dtype=np.int64)
    else:
        factors = [scales[axis] if place == axis else 1.0 for place in range(rank)]
        inputs, value = ["x", "", "factors"], np.array(factors, dtype=np.float32)
    attributes = {name: operation.attr(name) for name in _OF_SCALING if operation.attr(name) is not None}
    node = onnx.helper.make_node("Resize", inputs, ["y"], **attributes)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "resize",
        [info("x", onnx.TensorProto.FLOAT, shape)],
        [info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, "factors")],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    unit = np.eye(extent, dtype=np.float32).reshape(shape)
    (result,) = create(model, threads=1, optimize=False).run(None, {"x": unit})
    units_first = np.asarray(result).reshape((extent, new) if other < axis else (new, extent))
    return units_first if other < axis else np.ascontiguousarray(units_first.T)


def _repeats(matrix: Array) -> int:
    """How often each position is repeated, where that is all; else 0."""
    extent, new = matrix.shape
    if new % extent:
        return 0
    times = new // extent
    return times if np.array_equal(matrix, np.repeat(np.eye(extent), times, axis=1)) else 0


def _gather_repeats(tape: Tape, grad: str, repeats: Sequence[int]) -> str:
    """Sums of blocks: their means, for which there is a fast operator, times their size."""
    pooled = tape.emit("AveragePool", grad, kernel_shape=list(repeats), strides=list(repeats))
    return tape.scaled(pooled, float(math.prod(repeats)))
