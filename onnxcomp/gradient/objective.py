"""What training makes small: differences between tensors of the student and targets that the teacher gave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import onnx

from onnxcomp.gradient.tape import Tape

__all__ = ["Kind", "Term"]

Kind = Literal["kl", "bernoulli", "mse", "ce"]
Shape = tuple[int, ...]
_TINY = 1e-12


@dataclass(frozen=True)
class Term:
    """One loss, of one tensor against a target that is fed.

    Kinds, with z the tensor, t the target, and means over all positions but the classes:

    - ``kl``: the Kullback-Leibler divergence KL(t || softmax(z)); z holds logits, t probabilities (Hinton et al. 2015,
      arXiv:1503.02531).
    - ``bernoulli``: the same for probabilities of two classes, sigmoid(z) against t.
    - ``mse``: the mean of (z - t)², times ``weight``.
    - ``ce``: the cross entropy of softmax(z) with class numbers t (int64).

    Attributes:
        tensor: of the forward graph.
        kind: see above.
        axis: of the classes.
        weight: of this loss in the sum.
    """

    tensor: str
    kind: Kind
    axis: int = -1
    weight: float = 1.0

    def target_type(self, shape: Shape) -> tuple[int, Shape]:
        """Element type and shape of the target."""
        if self.kind != "ce":
            return onnx.TensorProto.FLOAT, shape
        axis = self.axis % len(shape)
        return onnx.TensorProto.INT64, (*shape[:axis], *shape[axis + 1 :])

    def write(self, tape: Tape, shape: Shape, target: str) -> tuple[str, str]:
        """Append the loss; returns the names of its value (a scalar) and of its gradient by the tensor."""
        if self.kind == "mse":
            difference = tape.emit("Sub", self.tensor, target)
            count = math.prod(shape)
            loss = tape.reduce_sum(tape.emit("Mul", difference, difference), range(len(shape)), keepdims=False)
            return tape.scaled(loss, self.weight / count), tape.scaled(difference, 2 * self.weight / count)
        if self.kind == "bernoulli":
            return self._bernoulli(tape, shape, target)
        axis = self.axis % len(shape)
        if self.kind == "ce":
            target = tape.one_hot(target, shape[axis], axis)
        return self._softmax(tape, shape, target, axis)

    def _softmax(self, tape: Tape, shape: Shape, target: str, axis: int) -> tuple[str, str]:
        """Of probabilities p: sum p (log p - log q); its gradient by the logits is q - p."""
        factor = self.weight * shape[axis] / math.prod(shape)
        log_q = tape.emit("LogSoftmax", self.tensor, axis=axis)
        log_p = tape.emit("Log", tape.emit("Max", target, tape.number(_TINY)))
        loss = tape.emit("Mul", target, tape.emit("Sub", log_p, log_q))
        grad = tape.emit("Sub", tape.emit("Exp", log_q), target)
        total = tape.reduce_sum(loss, range(len(shape)), keepdims=False)
        return tape.scaled(total, factor), tape.scaled(grad, factor)

    def _bernoulli(self, tape: Tape, shape: Shape, target: str) -> tuple[str, str]:
        """Sum over both classes of p (log p - log q); -log sigmoid(z) is softplus(-z)."""
        factor = self.weight / math.prod(shape)
        off = tape.emit("Sub", tape.number(1.0), target)
        known = [
            tape.emit("Mul", part, tape.emit("Log", tape.emit("Max", part, tape.number(_TINY))))
            for part in (target, off)
        ]
        # softplus(z) - t z, written so that large z do not overflow
        positive = tape.emit("Relu", self.tensor)
        small = tape.emit("Exp", tape.emit("Neg", tape.emit("Abs", self.tensor)))
        softplus = tape.emit("Add", positive, tape.emit("Log", tape.emit("Add", small, tape.number(1.0))))
        cross = tape.emit("Sub", softplus, tape.emit("Mul", target, self.tensor))
        loss = tape.emit("Add", cross, tape.emit("Add", *known))
        grad = tape.emit("Sub", tape.emit("Sigmoid", self.tensor), target)
        total = tape.reduce_sum(loss, range(len(shape)), keepdims=False)
        return tape.scaled(total, factor), tape.scaled(grad, factor)
