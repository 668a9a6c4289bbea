"""Derivatives of normalizations and of softmax.

With n the normalized values of a group, r the reciprocal of its deviation and g the gradient of n:
the gradient by the values is r (g - mean(g) - n mean(g n)) (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxcomp.gradient.reductions import TINY
from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []

Shape = tuple[int, ...]


def _mean(tape: Tape, tensor: str, shape: Shape, axes: Sequence[int]) -> str:
    return tape.scaled(tape.reduce_sum(tensor, axes), 1 / math.prod(shape[axis] for axis in axes))


def _reciprocal_root(tape: Tape, variance: str, epsilon: float) -> str:
    return tape.emit("Reciprocal", tape.emit("Sqrt", tape.emit("Add", variance, tape.number(epsilon))))


def _standardized(tape: Tape, x: str, shape: Shape, axes: Sequence[int], epsilon: float) -> tuple[str, str]:
    """Normalized values, and the reciprocal of their deviation."""
    centred = tape.emit("Sub", x, _mean(tape, x, shape, axes))
    variance = _mean(tape, tape.emit("Mul", centred, centred), shape, axes)
    factor = _reciprocal_root(tape, variance, epsilon)
    return tape.emit("Mul", centred, factor), factor


def _through(
    tape: Tape, grad: str, normal: str, factor: str, shape: Shape, axes: Sequence[int], centred: bool = True
) -> str:
    """From the gradient of the normalized values to that of the values."""
    along = tape.emit("Mul", normal, _mean(tape, tape.emit("Mul", grad, normal), shape, axes))
    rest = tape.emit("Sub", grad, along)
    if centred:
        rest = tape.emit("Sub", rest, _mean(tape, grad, shape, axes))
    return tape.emit("Mul", rest, factor)


@register("BatchNormalization")
def batch_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Inference form: y = (x - mean) scale r + b with r = (var + epsilon)^(-1/2), channel by channel."""
    if operation.attr("training_mode", 0):
        raise NotDifferentiableError("it is in training mode")
    shape = operation.shape()
    beside = [1, shape[1] if len(shape) > 1 else 1, *[1] * (len(shape) - 2)]
    others = [axis for axis in range(len(shape)) if axis != 1]
    scale, mean, variance = (operation.input(index) for index in (1, 3, 4))
    factor = _reciprocal_root(tape, variance, float(operation.attr("epsilon", 1e-5)))
    slope = tape.emit("Mul", scale, factor)
    by_x = tape.emit("Mul", grad, tape.reshape(slope, beside))
    total = tape.reduce_sum(grad, others, keepdims=False)
    centred = tape.emit("Sub", operation.input(), tape.reshape(mean, beside))
    product = tape.reduce_sum(tape.emit("Mul", grad, centred), others, keepdims=False)
    by_scale = tape.emit("Mul", product, factor)
    by_mean = tape.emit("Neg", tape.emit("Mul", total, slope))
    by_variance = tape.emit("Mul", tape.scaled(by_scale, -0.5), tape.emit("Mul", slope, factor))
    return [by_x, by_scale, total, by_mean, by_variance]


@register("LayerNormalization")
def layer_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """ONNX Runtime gives normalized values and r in one node, where scale is 1."""
    shape = operation.shape()
    axis = operation.axis(-1)
    axes = list(range(axis, len(shape)))
    epsilon = float(operation.attr("epsilon", 1e-5))
    ones = tape.broadcast(tape.number(1.0), shape[axis:])
    normal, _, factor = tape.emit_many("LayerNormalization", [operation.input(), ones], 3, axis=axis, epsilon=epsilon)
    by_x = _through(tape, tape.emit("Mul", grad, operation.input(1)), normal, factor, shape, axes)
    return [by_x, *_affine(tape, operation, grad, normal)]


@register("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """x r scale with r = (mean(x²) + epsilon)^(-1/2)."""
    shape, x = operation.shape(), operation.input()
    axes = list(range(operation.axis(-1), len(shape)))
    square = _mean(tape, tape.emit("Mul", x, x), shape, axes)
    factor = _reciprocal_root(tape, square, float(operation.attr("epsilon", 1e-5)))
    normal = tape.emit("Mul", x, factor)
    scaled = tape.emit("Mul", grad, operation.input(1))
    by_x = _through(tape, scaled, normal, factor, shape, axes, centred=False)
    return [by_x, *_affine(tape, operation, grad, normal)]


def _affine(tape: Tape, operation: Operation, grad: str, normal: str) -> list[str | None]:
    """Gradients of scale and bias that are broadcast as they stand."""
    shape = operation.out_shape()
    by_scale = by_bias = None
    if 1 in operation.wanted:
        by_scale = tape.sum_to(tape.emit("Mul", grad, normal), shape, operation.shape(1))
    if 2 in operation.wanted:
        by_bias = tape.sum_to(grad, shape, operation.shape(2))
    return [by_scale, by_bias]


@register("InstanceNormalization")
def instance_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _by_groups(tape, operation, grad, operation.shape()[1])


@register("GroupNormalization")
def group_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    return _by_groups(tape, operation, grad, int(operation.attr("num_groups")))


def _by_groups(tape: Tape, operation: Operation, grad: str, groups: int) -> list[str | None]:
    """Channels are normalized in groups; scale and bias belong to channels, or (operator set 18) to groups."""
    shape, scales = operation.shape(), operation.shape(1)[0]
    flat = (shape[0], groups, math.prod(shape[1:]) // groups)
    affine = (shape[0], scales, math.prod(shape[1:]) // scales)
    x = tape.reshape(operation.input(), flat)
    normal, factor = _standardized(tape, x, flat, [2], float(operation.attr("epsilon", 1e-5)))
    outer = tape.reshape(grad, affine)
    scaled = tape.emit("Mul", outer, tape.reshape(operation.input(1), [1, scales, 1]))
    by_x = _through(tape, tape.reshape(scaled, flat), normal, factor, flat, [2])
    by_scale = tape.emit("Mul", outer, tape.reshape(normal, affine))
    by_both = [tape.reduce_sum(part, [0, 2], keepdims=False) for part in (by_scale, outer)]
    return [tape.reshape(by_x, shape), *by_both]


@register("LpNormalization")
def lp_normalization(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """Of y = x / |x|: (g - e sum(g y)) / |x|, where e is y for the Euclidean norm, the sign of x for the other one."""
    axis, order, x, y = operation.axis(-1), int(operation.attr("p", 2)), operation.input(), operation.output()
    total = tape.reduce_sum(tape.emit("Mul", x, x) if order == 2 else tape.emit("Abs", x), [axis])
    norm = tape.emit("Max", tape.emit("Sqrt", total) if order == 2 else total, tape.number(TINY))
    edge = y if order == 2 else tape.emit("Sign", x)
    along = tape.emit("Mul", edge, tape.reduce_sum(tape.emit("Mul", grad, y), [axis]))
    return [tape.emit("Div", tape.emit("Sub", grad, along), norm)]


@register("Softmax")
def softmax(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """y (g - sum(g y))."""
    y = operation.output()
    product = tape.emit("Mul", grad, y)
    return [tape.emit("Sub", product, tape.emit("Mul", y, tape.reduce_sum(product, [operation.axis(-1)])))]


@register("LogSoftmax")
def log_softmax(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """g - exp(y) sum(g)."""
    total = tape.reduce_sum(grad, [operation.axis(-1)])
    return [tape.emit("Sub", grad, tape.emit("Mul", tape.emit("Exp", operation.output()), total))]
