"""Derivatives of MatMul, Gemm and Einsum."""

from __future__ import annotations

from onnxcomp.gradient.rules import NotDifferentiableError, register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []

Shape = tuple[int, ...]


@register("MatMul")
def matmul(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """With Y = A B: dA = dY Bᵀ and dB = Aᵀ dY, summed over the axes that were broadcast."""
    a, b, y = operation.shape(0), operation.shape(1), operation.out_shape()
    left, right, result = operation.input(0), operation.input(1), grad
    wide_a = a if len(a) > 1 else (1, *a)
    wide_b = b if len(b) > 1 else (*b, 1)
    wide_y = (*y[: len(y) - (len(a) > 1) - (len(b) > 1)], wide_a[-2], wide_b[-1])
    if wide_y != y:
        result = tape.reshape(grad, wide_y)
    if wide_a != a:
        left = tape.reshape(left, wide_a)
    if wide_b != b:
        right = tape.reshape(right, wide_b)
    by_a = by_b = None
    if 0 in operation.wanted:
        made = tape.emit("MatMul", result, _swapped(tape, right, len(wide_b)))
        by_a = _as(tape, made, (*wide_y[:-2], *wide_a[-2:]), wide_a, a)
    if 1 in operation.wanted:
        by_b = _by_right(tape, left, wide_a, result, wide_y, wide_b, b)
    return [by_a, by_b]


def _by_right(tape: Tape, left: str, a: Shape, result: str, y: Shape, wide_b: Shape, b: Shape) -> str:
    """One product for all samples where they share B."""
    if len(wide_b) == 2 and len(a) > 2 and a[:-2] == y[:-2]:
        rows = tape.transpose(tape.reshape(left, [-1, a[-1]]), [1, 0])
        made = tape.emit("MatMul", rows, tape.reshape(result, [-1, y[-1]]))
        return made if wide_b == b else tape.reshape(made, b)
    made = tape.emit("MatMul", _swapped(tape, left, len(a)), result)
    return _as(tape, made, (*y[:-2], a[-1], y[-1]), wide_b, b)


def _as(tape: Tape, grad: str, made: Shape, wide: Shape, shape: Shape) -> str:
    reduced = tape.sum_to(grad, made, wide)
    return reduced if wide == shape else tape.reshape(reduced, shape)


def _swapped(tape: Tape, tensor: str, rank: int) -> str:
    return tape.transpose(tensor, [*range(rank - 2), rank - 1, rank - 2])


@register("Gemm")
def gemm(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """With Y = alpha A B + beta C, where A and B may be given transposed."""
    flip_a, flip_b = bool(operation.attr("transA", 0)), bool(operation.attr("transB", 0))
    scaled = tape.scaled(grad, float(operation.attr("alpha", 1.0)))
    a, b = operation.input(0), operation.input(1)
    if flip_a:
        by_a = tape.emit("Gemm", b, scaled, transA=int(flip_b), transB=1)
    else:
        by_a = tape.emit("Gemm", scaled, b, transB=int(not flip_b))
    if flip_b:
        by_b = tape.emit("Gemm", scaled, a, transA=1, transB=int(flip_a))
    else:
        by_b = tape.emit("Gemm", a, scaled, transA=int(not flip_a))
    by_c = None
    if operation.has(2) and 2 in operation.wanted:
        by_c = tape.sum_to(
            tape.scaled(grad, float(operation.attr("beta", 1.0))), operation.out_shape(), operation.shape(2)
        )
    return [by_a, by_b, by_c]


@register("Einsum")
def einsum(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """The gradient of one operand is the product of that of the result with the other operands."""
    inputs, _, result = operation.attr("equation").replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not result or "." in inputs or any(len(set(term)) < len(term) for term in terms):
        raise NotDifferentiableError("its equation has dots, diagonals or no result")
    grads: list[str | None] = []
    for index, term in enumerate(terms):
        others = [place for place in range(len(terms)) if place != index]
        if not set(term) <= set(result).union(*(terms[place] for place in others)):
            raise NotDifferentiableError("its equation sums an axis of one operand alone")
        equation = ",".join([result, *(terms[place] for place in others)]) + "->" + term
        grads.append(tape.emit("Einsum", grad, *(operation.input(place) for place in others), equation=equation))
    return grads
