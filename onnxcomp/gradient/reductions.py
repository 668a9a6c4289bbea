"""Derivatives of sums, means, extremes and norms over axes."""

from __future__ import annotations

import math

from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__ = ["TINY"]

TINY = 1e-30
"""What a norm of 0 is taken for where it divides."""


def _axes(operation: Operation) -> list[int]:
    """Axes that are reduced."""
    rank = len(operation.shape())
    axes = operation.ints("axes", 1)
    if axes is None and operation.has(1):
        raise NotDifferentiableError("its axes are not constant")
    if not axes:
        return [] if operation.attr("noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


class _Reduced:
    """A reduction, with its result and the gradient of that laid beside the input, ready to be broadcast."""

    def __init__(self, tape: Tape, operation: Operation, grad: str) -> None:
        shape = operation.shape()
        axes = _axes(operation)
        self.kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))
        self.axes = axes
        self.count = math.prod(shape[axis] for axis in axes)
        self.x = operation.input()
        self._tape = tape
        self.grad = self._beside(grad, operation)
        self._operation = operation

    @property
    def y(self) -> str:
        return self._beside(self._operation.output(), self._operation)

    def _beside(self, tensor: str, operation: Operation) -> str:
        return tensor if operation.out_shape() == self.kept else self._tape.reshape(tensor, self.kept)


@register("ReduceSum")
def reduce_sum(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.broadcast(_Reduced(tape, operation, grad).grad, operation.shape())]


@register("ReduceMean")
def reduce_mean(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    reduced = _Reduced(tape, operation, grad)
    return [tape.broadcast(tape.scaled(reduced.grad, 1 / reduced.count), operation.shape())]


@register("ReduceMax", "ReduceMin")
def reduce_extreme(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """In equal parts to all that have the extreme."""
    reduced = _Reduced(tape, operation, grad)
    return [_shared(tape, reduced.x, reduced.y, reduced.grad, reduced.axes)]


@register("GlobalMaxPool")
def global_max_pool(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [_shared(tape, operation.input(), operation.output(), grad, range(2, len(operation.shape())))]


def _shared(tape: Tape, x: str, y: str, grad: str, axes: list[int] | range) -> str:
    chosen = tape.mask(tape.emit("Equal", x, y))
    return tape.emit("Mul", chosen, tape.emit("Div", grad, tape.reduce_sum(chosen, axes)))


@register("ReduceL1")
def reduce_l1(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    reduced = _Reduced(tape, operation, grad)
    return [tape.emit("Mul", tape.emit("Sign", reduced.x), reduced.grad)]


@register("ReduceL2")
def reduce_l2(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """x / y, and 0 where the norm is 0."""
    reduced = _Reduced(tape, operation, grad)
    norm = tape.emit("Max", reduced.y, tape.number(TINY))
    return [tape.emit("Mul", reduced.x, tape.emit("Div", reduced.grad, norm))]


@register("ReduceSumSquare")
def reduce_sum_square(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    reduced = _Reduced(tape, operation, grad)
    return [tape.emit("Mul", reduced.x, tape.scaled(reduced.grad, 2.0))]


@register("ReduceLogSumExp")
def reduce_log_sum_exp(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """exp(x - y)."""
    reduced = _Reduced(tape, operation, grad)
    return [tape.emit("Mul", tape.emit("Exp", tape.emit("Sub", reduced.x, reduced.y)), reduced.grad)]


@register("ReduceLogSum")
def reduce_log_sum(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """exp(-y): one over the sum."""
    reduced = _Reduced(tape, operation, grad)
    part = tape.emit("Div", reduced.grad, tape.emit("Exp", reduced.y))
    return [tape.broadcast(part, operation.shape())]


@register("ReduceProd")
def reduce_prod(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """y / x; not defined so where a factor is 0."""
    reduced = _Reduced(tape, operation, grad)
    return [tape.emit("Div", tape.emit("Mul", reduced.grad, reduced.y), reduced.x)]


@register("CumSum")
def cumulative_sum(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """The cumulative sum of the gradient from the other end."""
    flags = {name: int(operation.attr(name, 0)) for name in ("exclusive", "reverse")}
    return [tape.emit("CumSum", grad, operation.input(1), exclusive=flags["exclusive"], reverse=1 - flags["reverse"])]
