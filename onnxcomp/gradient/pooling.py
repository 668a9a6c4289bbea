"""Derivatives of pooling."""

from __future__ import annotations

import math

from onnxcomp.gradient.rules import register
from onnxcomp.gradient.tape import Operation, Tape

__all__: list[str] = []


@register("GlobalAveragePool")
def global_average_pool(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    shape = operation.shape()
    return [tape.broadcast(tape.scaled(grad, 1 / math.prod(shape[2:])), shape)]
