"""Derivatives of operators that move values without changing them."""

from __future__ import annotations

import numpy as np

from onnxcomp.gradient.linear import along
from onnxcomp.gradient.rules import NotDifferentiableError, register, register_many
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []


@register("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.reshape(grad, operation.shape())]


@register("Transpose")
def transpose(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    rank = len(operation.shape())
    perm = operation.attr("perm", list(reversed(range(rank))))
    return [tape.transpose(grad, [perm.index(axis) for axis in range(rank)])]


@register("Expand")
def expand(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.sum_to(grad, operation.out_shape(), operation.shape())]


@register("Tile")
def tile(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    shape = operation.shape()
    repeats = [new // max(dim, 1) for new, dim in zip(operation.out_shape(), shape, strict=True)]
    apart = tape.reshape(grad, [size for pair in zip(repeats, shape, strict=True) for size in pair])
    axes = [2 * axis for axis, times in enumerate(repeats) if times != 1]
    return [tape.reshape(tape.reduce_sum(apart, axes), shape)]


@register("Concat")
def concat(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    axis = operation.axis(0)
    sizes = [operation.shape(index)[axis] for index in range(len(operation))]
    if len(operation.wanted) == 1:
        (index,) = operation.wanted
        start = sum(sizes[:index])
        part = tape.slice(grad, [start], [start + sizes[index]], [axis], [1])
        return [part if place == index else None for place in range(len(sizes))]
    return list(tape.emit_many("Split", [grad, tape.ints(sizes)], len(sizes), axis=axis))


@register_many("Split")
def split(tape: Tape, operation: Operation, grads: list[str | None]) -> list[str | None]:
    parts = [tape.zeros(operation.out_shape(index)) if grad is None else grad for index, grad in enumerate(grads)]
    return [tape.emit("Concat", *parts, axis=operation.axis(0))]


@register("Slice")
def slices(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Zeros between and around. Ends are not asked for: the shape of the result tells them."""
    starts, axes, steps = operation.ints("starts", 1), operation.ints("axes", 3), operation.ints("steps", 4)
    if starts is None or (axes is None and operation.has(3)) or (steps is None and operation.has(4)):
        raise NotDifferentiableError("where it starts is not constant")
    shape, out = operation.shape(), list(operation.out_shape())
    if 0 in out:
        return [tape.zeros(shape)]
    before, after = [0] * len(shape), [0] * len(shape)
    for place, start in enumerate(starts):
        axis = (axes[place] if axes is not None else place) % len(shape)
        step, dim, count = steps[place] if steps is not None else 1, shape[axis], out[axis]
        first = min(max(start + dim if start < 0 else start, 0), dim if step > 0 else dim - 1)
        if step < 0:
            grad = tape.slice(grad, [-1], [-(2**31)], [axis], [-1])
            first += step * (count - 1)
        grad = _spread(tape, grad, out, axis, abs(step))
        before[axis], after[axis] = first, dim - first - out[axis]
    return [tape.pad(grad, before, after)]


def _spread(tape: Tape, grad: str, shape: list[int], axis: int, step: int) -> str:
    """With step - 1 zeros behind each position of an axis; the shape is updated."""
    if step == 1 or shape[axis] == 1:
        return grad
    apart = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    zeros = [0] * len(apart)
    padded = tape.pad(tape.reshape(grad, apart), zeros, [*zeros[: axis + 1], step - 1, *zeros[axis + 2 :]])
    shape[axis] *= step
    return tape.reshape(padded, shape)


@register("Pad")
def pad(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Constant borders are cut off; others go where their values came from."""
    pads, axes = operation.ints("pads", 1), operation.ints("axes", 3)
    if pads is None or (axes is None and operation.has(3)):
        raise NotDifferentiableError("its widths are not constant")
    shape, rank = operation.shape(), len(operation.shape())
    chosen = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(chosen):
        before[axis], after[axis] = pads[place], pads[place + len(chosen)]
    mode = operation.attr("mode", "constant")
    if mode == "constant":
        return [tape.pad(grad, [-width for width in before], [-width for width in after])]
    if min(*before, *after) < 0:
        raise NotDifferentiableError("it cuts and mirrors at once")
    current = operation.out_shape()
    for axis in range(rank):
        if before[axis] or after[axis]:
            sources = np.pad(np.arange(shape[axis]), (before[axis], after[axis]), mode=mode)
            grad, current = along(tape, grad, current, axis, np.eye(shape[axis])[sources])
    return [grad]


@register("DepthToSpace")
def depth_to_space(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    size = int(operation.attr("blocksize"))
    if operation.attr("mode", "DCR") == "DCR":
        return [tape.emit("SpaceToDepth", grad, blocksize=size)]
    batch, channels, height, width = operation.shape()
    blocks = tape.reshape(grad, [batch, channels // size**2, height, size, width, size])
    return [tape.reshape(tape.transpose(blocks, [0, 1, 3, 5, 2, 4]), operation.shape())]


@register("SpaceToDepth")
def space_to_depth(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("DepthToSpace", grad, blocksize=int(operation.attr("blocksize")), mode="DCR")]
