"""Steps along gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

__all__ = ["Optimizer", "OptimizerName", "clipped", "cosine"]

Array = np.ndarray[Any, Any]
OptimizerName = Literal["adam", "sgd"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MOMENTUM = 0.9


class Optimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), or stochastic gradient descent with Nesterov's momentum.

    It holds what it remembers of earlier gradients; ``state`` and ``restore`` take it away and bring it back.

    Args:
        name: which of them.
        values: the parameters, float32; the steps write into these arrays.
        kept: masks of those of which parts stay as they are, by name.
    """

    def __init__(self, name: OptimizerName, values: Mapping[str, Array], kept: Mapping[str, Array]) -> None:
        self._name = name
        self._values = values
        self._kept = kept
        self._count = 0
        self._first = {key: np.zeros_like(value) for key, value in values.items()}
        self._second = {key: np.zeros_like(value) for key, value in values.items()} if name == "adam" else {}

    def step(self, gradients: Mapping[str, Array], rate: float) -> None:
        """Change the parameters; those without a gradient stay.

        Args:
            gradients: of the shapes of the parameters.
            rate: the learning rate; for Adam about how much an element changes.
        """
        self._count += 1
        for key, gradient in gradients.items():
            update = self._adam(key, gradient) if self._name == "adam" else self._sgd(key, gradient)
            update *= np.float32(rate)
            if (mask := self._kept.get(key)) is not None:
                update *= mask
            self._values[key] -= update  # in place: the array is the caller's

    def state(self) -> dict[str, Array]:
        """What it remembers, as arrays by name."""
        parts = {"first": self._first, "second": self._second}
        arrays = {f"{part}/{key}": value.copy() for part, held in parts.items() for key, value in held.items()}
        return arrays | {"count": np.array(self._count)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Remember what ``state`` returned."""
        self._count = int(state["count"])
        for part, held in (("first", self._first), ("second", self._second)):
            for key, value in held.items():
                value[...] = state[f"{part}/{key}"]

    def _adam(self, key: str, gradient: Array) -> Array:
        first, second = self._first[key], self._second[key]
        first += np.float32(1 - _BETA1) * (gradient - first)
        second += np.float32(1 - _BETA2) * (np.square(gradient) - second)
        scale = np.sqrt(second)
        scale *= np.float32(1 / math.sqrt(1 - _BETA2**self._count))
        scale += np.float32(_EPSILON)
        update = np.divide(first, scale, out=scale)
        update *= np.float32(1 / (1 - _BETA1**self._count))
        return update

    def _sgd(self, key: str, gradient: Array) -> Array:
        first = self._first[key]
        first *= np.float32(_MOMENTUM)
        first += gradient
        return gradient + np.float32(_MOMENTUM) * first


def cosine(progress: float, warmup: float = 0.05) -> float:
    """The share of the highest learning rate at a point of the training, from 0 to 1.

    It rises in a straight line, and falls along half a period of the cosine to zero (Loshchilov and Hutter 2017,
    arXiv:1608.03983).
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def clipped(gradients: Mapping[str, Array], most: float) -> tuple[dict[str, Array], float]:
    """The gradients, scaled down together where their norm exceeds ``most`` (Pascanu et al. 2013); and that norm."""
    norm = math.sqrt(sum(float(np.vdot(part, part)) for part in gradients.values()))
    if not math.isfinite(norm) or norm <= most:
        return dict(gradients), norm
    factor = np.float32(most / norm)
    return {key: part * factor for key, part in gradients.items()}, norm
