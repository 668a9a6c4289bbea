"""Dividing a budget between curves of loss: where the next step costs least for what it saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Cost", "allocate", "marginal"]

Array = np.ndarray[Any, Any]


class Cost(Protocol):
    """What is left to pay after so many steps along each curve."""

    def total(self, steps: Sequence[int]) -> float: ...

    def saving(self, steps: Sequence[int], index: int) -> float:
        """How much less it is after one more step along that curve."""


def allocate(losses: Sequence[Array], cost: Cost, limit: float) -> list[int]:
    """How many steps to take along each curve so that the cost is at most ``limit``, at the least total loss.

    Greedy by loss per saved cost; what a step saves beyond the limit counts for nothing. Steps that turn out
    to be needless in the end are taken back, the dearest first. Steps that lose nothing are always taken.

    Args:
        losses: of each curve, the loss after 0, 1, 2, … steps; infinite where none may be taken.
        cost: of the steps taken so far; falls with every step.
        limit: may be out of reach; then all steps are taken.
    """
    steps = [0] * len(losses)
    now = cost.total(steps)
    while True:
        options = []
        for index, curve in enumerate(losses):
            if steps[index] + 1 < len(curve):
                loss = float(curve[steps[index] + 1] - curve[steps[index]])
                useful = min(cost.saving(steps, index), max(0.0, now - limit))
                if not math.isfinite(loss):
                    continue
                if loss <= 0.0:
                    options.append((0.0, index))
                elif useful > 0.0:
                    options.append((loss / useful, index))
        if not options:
            break
        steps = _moved(steps, min(options)[1], 1)
        now = cost.total(steps)
    return _without_needless(steps, losses, cost, limit)


def _without_needless(steps: list[int], losses: Sequence[Array], cost: Cost, limit: float) -> list[int]:
    while True:
        room = limit - cost.total(steps)
        dear = [
            (float(curve[steps[index]] - curve[steps[index] - 1]), index)
            for index, curve in enumerate(losses)
            if steps[index] and cost.saving(_moved(steps, index, -1), index) <= room
        ]
        if not dear or max(dear)[0] <= 0.0:
            return steps
        steps = _moved(steps, max(dear)[1], -1)


def marginal(losses: Sequence[Array], cost: Cost, steps: Sequence[int]) -> float:
    """The most that a step among those taken loses for what it saves: the price at which the budget was met."""
    rates = [0.0]
    for index, (curve, taken) in enumerate(zip(losses, steps, strict=True)):
        if taken:
            back = _moved(steps, index, -1)
            saved = cost.saving(back, index)
            rates.append(float(curve[taken] - curve[taken - 1]) / saved if saved > 0.0 else 0.0)
    return max(rates)


def _moved(steps: Sequence[int], index: int, by: int) -> list[int]:
    moved = list(steps)
    moved[index] += by
    return moved


def equal_marginal_shares(losses: Array, shares: Array, sizes: Array, total: float) -> Array:
    """Which share of each layer's weights to remove, so that so many go in all at the least sum of losses.

    Lagrange's condition for it: at one price μ of a weight, each layer takes the share that minimises its loss minus
    μ times the weights removed; μ is found by bisection. What the grid of shares leaves over is evened out by one
    factor near 1.

    Args:
        losses: of each layer at each share, (layers, shares).
        shares: ascending.
        sizes: weights of each layer.
        total: weights to remove, as far as the largest share allows.

    Returns:
        (layers,).
    """
    gains = sizes[:, None] * shares

    def chosen(price: float) -> Array:
        picked: Array = np.argmin(losses - price * gains, axis=1)
        return shares[picked]

    low, high = -80.0, 80.0  # powers of 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if chosen(2.0**middle) @ sizes >= total else (middle, high)
    result = chosen(2.0**high)
    removed = float(result @ sizes)
    return result * min(1.0, total / removed) if removed > 0 else result
