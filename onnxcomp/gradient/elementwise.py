"""Derivatives of arithmetic and of functions of single numbers, element by element with broadcasting."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxcomp.gradient.rules import NotDifferentiableError, register
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


@register("Mean")
def mean(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _sums(tape, operation, [tape.scaled(grad, 1 / len(operation))] * len(operation))


@register("Sub")
def sub(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _sums(tape, operation, [grad, tape.emit("Neg", grad)])


@register("Mul")
def mul(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    x, y = operation.input(0), operation.input(1)
    return _sums(tape, operation, [tape.emit("Mul", grad, y), tape.emit("Mul", grad, x)])


@register("Div")
def div(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of q = x / y: by y, -q / y."""
    by_x = tape.emit("Div", grad, operation.input(1))
    by_y = tape.emit("Neg", tape.emit("Mul", by_x, operation.output()))
    return _sums(tape, operation, [by_x, by_y])


@register("Pow")
def power(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of y = x^p: by x, p x^(p - 1); by p, y log(x), and 0 where x is not positive."""
    x, exponent = operation.input(0), operation.constant(1)
    if exponent is None:
        if operation.types.get(operation.input(1)) != onnx.TensorProto.FLOAT:
            raise NotDifferentiableError("its exponents are neither constant nor float32")
        less, factor = tape.emit("Sub", operation.input(1), tape.number(1.0)), operation.input(1)
    else:
        value = exponent.astype(np.float32)
        less, factor = tape.constant(value - 1), tape.constant(value)
    if exponent is not None and (exponent == 2).all():
        slope = tape.scaled(x, 2.0)
    else:
        slope = tape.emit("Mul", tape.emit("Pow", x, less), factor)
    by_x = tape.emit("Mul", grad, slope)
    if 1 not in operation.wanted:
        return [tape.sum_to(by_x, operation.out_shape(), operation.shape())]
    safe = tape.emit("Where", tape.emit("Greater", x, tape.number(0.0)), x, tape.number(1.0))
    by_exponent = tape.emit("Mul", grad, tape.emit("Mul", operation.output(), tape.emit("Log", safe)))
    return _sums(tape, operation, [by_x, by_exponent])


@register("Max", "Min")
def extreme(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """To the first input that has the extreme."""
    grads, rest = [], grad
    for index in range(len(operation) - 1):
        chosen = tape.mask(tape.emit("Equal", operation.input(index), operation.output()))
        grads.append(tape.emit("Mul", rest, chosen))
        rest = tape.emit("Sub", rest, grads[-1])
    return _sums(tape, operation, [*grads, rest])


@register("Where")
def where(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    chosen = tape.mask(operation.input(0))
    by_x = tape.emit("Mul", grad, chosen)
    by_y = tape.emit("Mul", grad, tape.emit("Sub", tape.number(1.0), chosen))
    shapes = operation.shape(1), operation.shape(2)
    return [None, *(tape.sum_to(g, operation.out_shape(), s) for g, s in zip((by_x, by_y), shapes, strict=True))]


@register("Identity", "Dropout", "Cast", "CastLike", "Round")
def identity(tape: Tape, operation: Operation, grad: str) -> list[str | None]:  # noqa: ARG001
    """Round passes gradients straight through (Bengio et al. 2013, arXiv:1308.3432); true is 0, which trains nothing.

    Cast and CastLike are asked between floating-point types only, and from codes of QuantizeLinear.
    """
    return [grad]


@register("Floor", "Ceil", "Sign")
def steps(tape: Tape, operation: Operation, grad: str) -> list[str | None]:  # noqa: ARG001
    """Zero almost everywhere: an empty name adds nothing."""
    return [""]


@register("Neg")
def neg(tape: Tape, operation: Operation, grad: str) -> list[str | None]:  # noqa: ARG001
    return [tape.emit("Neg", grad)]


@register("Abs")
def absolute(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, tape.emit("Sign", operation.input()))]


@register("Reciprocal")
def reciprocal(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """-y²."""
    y = operation.output()
    return [tape.emit("Neg", tape.emit("Mul", grad, tape.emit("Mul", y, y)))]


@register("Sqrt")
def sqrt(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """1 / (2 y)."""
    return [tape.emit("Div", tape.scaled(grad, 0.5), operation.output())]


@register("Exp")
def exp(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, operation.output())]


@register("Log")
def log(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Div", grad, operation.input())]


@register("Sin")
def sin(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, tape.emit("Cos", operation.input()))]


@register("Cos")
def cos(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Neg", tape.emit("Mul", grad, tape.emit("Sin", operation.input())))]


@register("Atan")
def atan(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """1 / (1 + x²)."""
    x = operation.input()
    return [tape.emit("Div", grad, tape.emit("Add", tape.emit("Mul", x, x), tape.number(1.0)))]


@register("Erf")
def erf(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """2 / sqrt(pi) exp(-x²)."""
    x = operation.input()
    bell = tape.emit("Exp", tape.emit("Neg", tape.emit("Mul", x, x)))
    return [tape.emit("Mul", grad, tape.scaled(bell, 2 / math.sqrt(math.pi)))]
