"""Derivatives of activation functions, from their outputs where these tell enough."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []


@register("Relu")
def relu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, tape.positive(operation.output()))]


@register("Clip")
def clip(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """1 between the bounds; the bounds have none, which is asked for only where they are computed."""
    for index, sign in ((1, 1), (2, -1)):
        if not operation.has(index):
            continue
        bound = operation.constant(index)
        if bound is not None and np.abs(bound).max() < 1e6:
            mask = tape.beyond(operation.output(), float(bound.reshape(-1)[0]), sign)
        else:
            low, high = (operation.input(index), None) if sign > 0 else (None, operation.input(index))
            mask = tape.between(operation.output(), low, high)
        grad = tape.emit("Mul", grad, mask)
    return [grad]


def _knee(tape: Tape, operation: Operation, grad: str, scale: float, below: float, above: float) -> str:
    """The slope ``above`` for positive outputs y, ``below + scale y`` for negative ones."""
    slope = tape.number(below)
    if scale:
        negative = tape.scaled(tape.emit("Min", operation.output(), tape.number(0.0)), scale)
        slope = tape.emit("Add", negative, slope)
    if above != below:
        step = tape.scaled(tape.positive(operation.input()), above - below)
        slope = tape.emit("Add", step, slope)
    return tape.emit("Mul", grad, slope)


@register("LeakyRelu")
def leaky_relu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [_knee(tape, operation, grad, 0.0, float(operation.attr("alpha", 0.01)), 1.0)]


@register("Elu")
def elu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """y = alpha (exp(x) - 1) where x is negative, whose slope is y + alpha."""
    return [_knee(tape, operation, grad, 1.0, float(operation.attr("alpha", 1.0)), 1.0)]


@register("Selu")
def selu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    alpha = float(operation.attr("alpha", 1.6732631921768188))
    gamma = float(operation.attr("gamma", 1.0507010221481323))
    return [_knee(tape, operation, grad, 1.0, alpha * gamma, gamma)]


@register("Celu")
def celu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """y = alpha (exp(x / alpha) - 1) where x is negative, whose slope is y / alpha + 1."""
    return [_knee(tape, operation, grad, 1 / float(operation.attr("alpha", 1.0)), 1.0, 1.0)]


@register("PRelu")
def prelu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    x, slope = operation.input(0), operation.input(1)
    positive = tape.positive(x)
    rest = tape.emit("Mul", slope, tape.emit("Sub", tape.number(1.0), positive))
    by_x = tape.emit("Mul", grad, tape.emit("Add", positive, rest))
    by_slope = tape.emit("Mul", grad, tape.emit("Min", x, tape.number(0.0)))
    return [by_x, tape.sum_to(by_slope, operation.out_shape(), operation.shape(1))]


@register("ThresholdedRelu")
def thresholded_relu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    threshold = tape.number(float(operation.attr("alpha", 1.0)))
    return [tape.emit("Mul", grad, tape.between(operation.input(), threshold, None))]


@register("Sigmoid")
def sigmoid(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """y (1 - y)."""
    y = operation.output()
    return [tape.emit("Mul", grad, tape.emit("Mul", y, tape.emit("Sub", tape.number(1.0), y)))]


@register("HardSigmoid")
def hard_sigmoid(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    inside = tape.between(operation.output(), tape.number(0.0), tape.number(1.0))
    return [tape.emit("Mul", grad, tape.scaled(inside, float(operation.attr("alpha", 0.2))))]


@register("HardSwish")
def hard_swish(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of x s with s = max(0, min(1, x / 6 + 1/2)): s + x / 6 where s lies between 0 and 1."""
    x = operation.input()
    gate = tape.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    inside = tape.scaled(tape.between(gate, tape.number(0.0), tape.number(1.0)), 1 / 6)
    return [tape.emit("Mul", grad, tape.emit("Add", gate, tape.emit("Mul", x, inside)))]


@register("Softplus")
def softplus(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, tape.emit("Sigmoid", operation.input()))]


@register("Softsign")
def softsign(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """1 / (1 + |x|)², which is (1 - |y|)²."""
    root = tape.emit("Sub", tape.number(1.0), tape.emit("Abs", operation.output()))
    return [tape.emit("Mul", grad, tape.emit("Mul", root, root))]


@register("Tanh")
def tanh(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [tape.emit("Mul", grad, _one_less_square(tape, operation.output()))]


def _one_less_square(tape: Tape, tensor: str) -> str:
    return tape.emit("Sub", tape.number(1.0), tape.emit("Mul", tensor, tensor))


@register("Mish")
def mish(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of x t with t = tanh(softplus(x)): t + x (1 - t²) sigmoid(x)."""
    x = operation.input()
    gate = tape.emit("Tanh", tape.emit("Softplus", x))
    slope = tape.emit("Mul", _one_less_square(tape, gate), tape.emit("Sigmoid", x))
    return [tape.emit("Mul", grad, tape.emit("Add", gate, tape.emit("Mul", x, slope)))]


def _swish(tape: Tape, x: str, grad: str, alpha: float) -> str:
    """Of x s with s = sigmoid(alpha x): s + alpha x s (1 - s)."""
    gate = tape.emit("Sigmoid", tape.scaled(x, alpha))
    curve = tape.emit("Mul", gate, tape.emit("Sub", tape.number(1.0), gate))
    return tape.emit("Mul", grad, tape.emit("Add", gate, tape.emit("Mul", tape.scaled(x, alpha), curve)))


@register("Swish")
def swish(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [_swish(tape, operation.input(), grad, float(operation.attr("alpha", 1.0)))]


@register("QuickGelu", domain="com.microsoft")
def quick_gelu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return [_swish(tape, operation.input(), grad, float(operation.attr("alpha", 1.702)))]


def _gelu(tape: Tape, x: str, grad: str) -> str:
    """Of x F(x), F the normal distribution function (Hendrycks and Gimpel 2016, arXiv:1606.08415): F(x) + x F'(x)."""
    area = tape.emit("Add", tape.emit("Erf", tape.scaled(x, math.sqrt(0.5))), tape.number(1.0))
    bell = tape.emit("Exp", tape.scaled(tape.emit("Mul", x, x), -0.5))
    density = tape.emit("Mul", tape.scaled(x, 1 / math.sqrt(2 * math.pi)), bell)
    return tape.emit("Mul", grad, tape.emit("Add", tape.scaled(area, 0.5), density))


def _tanh_gelu(tape: Tape, x: str, grad: str) -> str:
    """Of x (1 + t) / 2 with t = tanh(u), u = sqrt(2 / pi) (x + c x³): (1 + t) / 2 + x u' (1 - t²) / 2."""
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    square = tape.emit("Mul", x, x)
    inner = tape.emit("Add", tape.scaled(square, root * cubic), tape.number(root))
    t = tape.emit("Tanh", tape.emit("Mul", x, inner))
    steep = tape.emit("Add", tape.scaled(square, 3 * root * cubic), tape.number(root))
    curve = tape.emit("Mul", tape.emit("Mul", x, steep), _one_less_square(tape, t))
    total = tape.emit("Add", tape.emit("Add", t, tape.number(1.0)), curve)
    return tape.emit("Mul", grad, tape.scaled(total, 0.5))


@register("Gelu")
def gelu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    kinds = {"none": _gelu, "tanh": _tanh_gelu}
    kind = operation.attr("approximate", "none")
    if kind not in kinds:
        raise NotDifferentiableError(f"its approximation {kind!r} is not covered")
    return [kinds[kind](tape, operation.input(), grad)]


@register("Gelu", "BiasGelu", domain="com.microsoft")
def contrib_gelu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _biased(tape, operation, grad, fast=False)


@register("FastGelu", domain="com.microsoft")
def fast_gelu(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _biased(tape, operation, grad, fast=True)


def _biased(tape: Tape, operation: Operation, grad: str, fast: bool) -> list[str | None]:
    """Of x + bias, where there is one."""
    biased = operation.has(1)
    x = tape.emit("Add", operation.input(0), operation.input(1)) if biased else operation.input()
    by_x = (_tanh_gelu if fast else _gelu)(tape, x, grad)
    return [by_x, tape.sum_to(by_x, operation.out_shape(), operation.shape(1)) if biased else None]
