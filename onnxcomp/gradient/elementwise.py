"""Derivatives of arithmetic, element by element with broadcasting."""

from __future__ import annotations

from onnxcomp.gradient.rules import register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []


def _sums(tape: Tape, operation: Operation, grads: list[str]) -> list[str | None]:
    """Gradients of inputs that were broadcast."""
    return [
        tape.sum_to(grad, operation.out_shape(), operation.shape(index)) if index in operation.wanted else None
        for index, grad in enumerate(grads)
    ]


@register("Add", "Sum")
def add(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _sums(tape, operation, [grad] * len(operation))


@register("Sub")
def sub(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _sums(tape, operation, [grad, tape.emit("Neg", grad)])


@register("Mul")
def mul(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    x, y = operation.input(0), operation.input(1)
    return _sums(tape, operation, [tape.emit("Mul", grad, y), tape.emit("Mul", grad, x)])


@register("Div")
def div(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of x / y: by y, -x / y²."""
    by_x = tape.emit("Div", grad, operation.input(1))
    by_y = tape.emit("Neg", tape.emit("Mul", by_x, tape.emit("Div", operation.input(0), operation.input(1))))
    return _sums(tape, operation, [by_x, by_y])


@register("Relu")
def relu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    positive = tape.emit("Greater", operation.output(), tape.number(0.0))
    return [tape.emit("Where", positive, grad, tape.number(0.0))]


@register("Identity", "Dropout")
def identity(tape: Tape, operation: Operation, grad: str) -> list[str | None]:  # noqa: ARG001
    return [grad]
