"""Dividing a budget between curves of loss: where the next step costs least for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["allocate"]

Array = np.ndarray[Any, Any]
Cost: TypeAlias = Callable[[Sequence[int]], float]


def allocate(losses: Sequence[Array], cost: Cost, limit: float) -> list[int]:
    """How many steps to take along each curve so that the cost is at most ``limit``, at the least total loss.

    Greedy by loss per saved cost; what a step saves beyond the limit counts for nothing. Steps that turn out to
    be needless in the end are taken back, the dearest first. Steps that lose nothing are always taken.

    Args:
        losses: of each curve, the loss after 0, 1, 2, … steps.
        cost: of all steps taken so far; falls with every step.
        limit: may be out of reach; then all steps are taken.
    """
    steps = [0] * len(losses)
    now = cost(steps)
    while True:
        options = []
        for index, curve in enumerate(losses):
            if steps[index] + 1 < len(curve):
                loss = float(curve[steps[index] + 1] - curve[steps[index]])
                saved = now - cost(_moved(steps, index, 1))
                useful = min(saved, max(0.0, now - limit))
                if loss <= 0.0:
                    options.append((0.0, index))
                elif useful > 0.0:
                    options.append((loss / useful, index))
        if not options:
            break
        steps = _moved(steps, min(options)[1], 1)
        now = cost(steps)
    return _without_needless(steps, losses, cost, limit)


def _without_needless(steps: list[int], losses: Sequence[Array], cost: Cost, limit: float) -> list[int]:
    while True:
        dear = [
            (float(curve[steps[index]] - curve[steps[index] - 1]), index)
            for index, curve in enumerate(losses)
            if steps[index] and cost(_moved(steps, index, -1)) <= limit
        ]
        if not dear or max(dear)[0] <= 0.0:
            return steps
        steps = _moved(steps, max(dear)[1], -1)


def _moved(steps: Sequence[int], index: int, by: int) -> list[int]:
    moved = list(steps)
    moved[index] += by
    return moved
