"""Derivatives of operators that move values without changing them."""

from __future__ import annotations

from onnxcomp.gradient.rules import register
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
