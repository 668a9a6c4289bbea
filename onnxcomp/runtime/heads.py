"""What the outputs of a model say, and which loss brings those of another one close to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from scipy.special import softmax

from onnxcomp.errors import PassError
from onnxcomp.gradient.objective import Kind, Term
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.stored import producer_of
from onnxcomp.model import Model

__all__ = ["Head", "LossName", "float_outputs", "heads", "matched"]

Array = np.ndarray[Any, Any]
LossName = Literal["auto", "kl", "mse", "ce"]

_BEHIND_LOGITS = ("Gemm", "MatMul", "Add", "Flatten", "Reshape", "Squeeze", "Conv")
_LAYERS = ("Gemm", "MatMul", "Conv")
_DENSE = ("Conv", "ConvTranspose", "Resize")  # whose outputs have classes on axis 1


@dataclass(frozen=True)
class Head:
    """An output with the loss that it is trained by.

    Attributes:
        output: its name in the teacher.
        tensor: of the student, that the loss is of: the output, or the logits before it.
        kind: see ``Term``.
        axis: of the classes.
        logits: the teacher's output holds logits, which become probabilities first.
        logarithms: it holds logarithms of probabilities.
    """

    output: str
    tensor: str
    kind: Kind
    axis: int = -1
    logits: bool = False
    logarithms: bool = False

    def target(self, value: Array) -> Array:
        """What the student's tensor is compared with, of the teacher's output."""
        if self.logits:
            value = softmax(value, axis=self.axis)
        elif self.logarithms:
            value = np.exp(value)
        return np.ascontiguousarray(value, dtype=np.float32)

    def term(self, share: float, variance: float) -> Term:
        """Its loss.

        Args:
            share: of this output in the sum.
            variance: of the teacher's values, which errors are told in parts of.
        """
        weight = share / variance if self.kind == "mse" and variance > 0 else share
        return Term(self.tensor, self.kind, self.axis, weight)


def heads(model: Model, shapes: Mapping[str, tuple[int, ...]], loss: LossName) -> list[Head]:
    """How each float output is trained.

    With ``auto``: behind Softmax or Sigmoid, and for logits, by the divergence of the probabilities; else by squared
    errors. Logits are outputs with two axes that a layer computes directly; an embedding, which is normalized or
    averaged, is none.

    Args:
        model: the student.
        shapes: of its tensors.
        loss: for all outputs.

    Raises:
        PassError: it has no output that can be trained so.
    """
    found = [_head(tensor, shapes[tensor.name], loss) for tensor in float_outputs(model) if tensor.name in shapes]
    by_tensor: dict[str, Head] = {}
    for head in found:  # logits that are given out beside their probabilities are one tensor: it is trained once
        if head is not None and (head.tensor not in by_tensor or by_tensor[head.tensor].kind == "mse"):
            by_tensor[head.tensor] = head
    kept = list(by_tensor.values())
    if not kept:
        needs = "of class scores" if loss in ("kl", "ce") else "of float32"
        raise PassError(f"recover: loss={loss!r} needs an output {needs}, and the model has none; use loss='mse'")
    return kept[:1] if loss == "ce" else kept


def matched(
    names: Sequence[str], student: Mapping[str, tuple[int, ...]], teacher: Mapping[str, tuple[int, ...]]
) -> list[Head]:
    """Intermediate tensors that are to have the teacher's values, by squared errors (Romero et al. 2015,
    arXiv:1412.6550).

    Args:
        names: of tensors of both.
        student, teacher: shapes of their tensors.

    Raises:
        PassError: one of the models lacks a tensor, or has another shape of it.
    """
    for name in names:
        for model, shapes in (("the original", teacher), ("the model at this stage", student)):
            if name not in shapes:
                raise PassError(f"recover: option match names {name!r}, which {model} does not compute")
        if student[name] != teacher[name]:
            raise PassError(
                f"recover: option match names {name!r}, which is {student[name]} now and was {teacher[name]}; "
                "name tensors that no pass made smaller"
            )
    return [Head(name, name, "mse") for name in dict.fromkeys(names)]


def float_outputs(model: Model) -> list[gs.Tensor]:
    """The outputs of a model that a loss can be of."""
    return [tensor for tensor in model.graph.outputs if tensor.dtype in (None, np.float32)]


def _head(tensor: gs.Tensor, shape: tuple[int, ...], loss: LossName) -> Head | None:
    producer = _producer(tensor)
    if loss == "mse" or producer is None:
        return Head(tensor.name, tensor.name, "mse") if loss in ("auto", "mse") else None
    kind: Kind = "ce" if loss == "ce" else "kl"
    if producer.op in ("Softmax", "LogSoftmax"):
        axis = int(producer.attrs.get("axis", -1))
        return Head(tensor.name, producer.inputs[0].name, kind, axis, logarithms=producer.op == "LogSoftmax")
    if producer.op == "Sigmoid" and loss != "ce":
        return Head(tensor.name, producer.inputs[0].name, "bernoulli")
    if loss in ("kl", "ce") or (len(shape) == 2 and shape[1] > 1 and _is_computed_by_layer(tensor)):
        axis = 1 if len(shape) > 2 and producer.op in _DENSE else -1
        return Head(tensor.name, tensor.name, kind, axis, logits=True) if len(shape) > 1 else None
    return Head(tensor.name, tensor.name, "mse")


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    """What computes a tensor, and not what rounds it to codes and back."""
    producer = producer_of(tensor)
    while producer is not None and producer.op in ("QuantizeLinear", "DequantizeLinear"):
        producer = producer_of(producer.inputs[0])
    return producer


def _is_computed_by_layer(tensor: gs.Tensor) -> bool:
    """Behind nothing but a bias and operators that move values."""
    while (producer := _producer(tensor)) is not None and producer.op in _BEHIND_LOGITS:
        if producer.op in _LAYERS:
            return any(is_constant(item) or item.inputs for item in producer.inputs[1:2])
        tensor = next((item for item in producer.inputs if not is_constant(item)), tensor)
        if producer_of(tensor) is producer:
            break
    return False
