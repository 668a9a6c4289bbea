"""Derivatives of operators that take values by their indices, or put them there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxcomp.gradient.linear import placed
from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []

# From this operator set on, ScatterElements can add. ONNX Runtime does so in the order of the updates; its ScatterND
# adds from several threads at once, with another result each time.
_ADDS = 16


@register("Gather")
def gather(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    axis, shape, indices = operation.axis(0), operation.shape(), operation.constant(1)
    lead, dim, trail = shape[:axis], shape[axis], shape[axis + 1 :]
    if indices is not None:
        flat = (*lead, indices.size, *trail)
        laid = grad if indices.ndim == 1 else tape.reshape(grad, flat)
        return [placed(tape, laid, flat, axis, indices.reshape(-1) % dim, dim)]
    count, before, behind = math.prod(operation.shape(1)), math.prod(lead), math.prod(trail)
    rows = tape.transpose(tape.reshape(grad, [before, count, behind]), [1, 0, 2]) if before > 1 else grad
    added = _add_rows(
        tape, tape.reshape(rows, [count, before * behind]), operation.input(1), count, dim, before * behind
    )
    if before > 1:
        added = tape.transpose(tape.reshape(added, [dim, before, behind]), [1, 0, 2])
    return [tape.reshape(added, shape)]


def _add_rows(tape: Tape, rows: str, indices: str, count: int, extent: int, width: int) -> str:
    """(extent, width): the rows (count, width), each added where its index says."""
    if tape.opset >= _ADDS:
        spread = tape.broadcast(tape.reshape(indices, [count, 1]), (count, width))
        return tape.emit("ScatterElements", tape.zeros((extent, width)), spread, rows, axis=0, reduction="add")
    return tape.emit("MatMul", tape.one_hot(tape.reshape(indices, [count]), extent, axis=0), rows)


@register("GatherElements")
def gather_elements(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    if tape.opset < _ADDS:
        raise NotDifferentiableError(f"ONNX cannot add to chosen elements before operator set {_ADDS}")
    zeros = tape.zeros(operation.shape())
    return [tape.emit("ScatterElements", zeros, operation.input(1), grad, axis=operation.axis(0), reduction="add")]


@register("GatherND")
def gather_nd(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    if operation.attr("batch_dims", 0):
        raise NotDifferentiableError("its batch_dims are not covered")
    shape, indices = operation.shape(), operation.shape(1)
    depth, count = indices[-1], math.prod(indices[:-1])
    width, extent = math.prod(shape[depth:]), math.prod(shape[:depth])
    rows = tape.reshape(grad, [count, width])
    added = _add_rows(tape, rows, _flat_indices(tape, operation.input(1), shape[:depth]), count, extent, width)
    return [tape.reshape(added, shape)]


def _flat_indices(tape: Tape, indices: str, extents: Sequence[int]) -> str:
    """Numbers of elements from their indices along several axes."""
    steps = [math.prod(extents[axis + 1 :]) for axis in range(len(extents))]
    counted = tape.emit("Mod", indices, tape.ints(extents))  # its sign is that of the extents: -1 is the last one
    return tape.reduce_sum(tape.emit("Mul", counted, tape.ints(steps)), [-1], keepdims=False)


@register("ScatterElements", "ScatterND")
def scatter(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """What is overwritten has no part in the result; indices are unique by the standard."""
    if operation.attr("reduction", "none") != "none":
        raise NotDifferentiableError("its reduction is not covered")
    indices = operation.input(1)
    zeros = tape.zeros(operation.shape(2))
    if operation.op == "ScatterND":
        return [tape.emit("ScatterND", grad, indices, zeros), None, tape.emit("GatherND", grad, indices)]
    axis = operation.axis(0)
    kept = tape.emit("ScatterElements", grad, indices, zeros, axis=axis)
    return [kept, None, tape.emit("GatherElements", grad, indices, axis=axis)]
