"""Linear assignment of units to classes of equal slots, restarted from known prices."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["assign", "assign_nearly", "balanced_prices", "prices"]

Array = np.ndarray[Any, Any]

_LEAST_BALANCED = 64  # units; fewer are assigned in no time
_STEPS = (0.1, 0.03, 0.01, 0.003, 0.001)  # of prices, in units of the mean spread of a unit's costs
_FINE_STEPS = _STEPS[2:]
_ROUNDS = 40  # at each step
_CROWDED = 0.01  # part of the units that may be without a place before the exact solver takes over


def assign(cost: Array, class_of_slot: Array, price: Array | None = None) -> Array:
    """The class of each unit in an assignment of all units to all slots of least total cost.

    Prices that are taken from the costs of the classes do not change which assignment is best. At prices that
    are nearly right almost every unit gets its own choice, which the solver finds some ten times faster.

    Args:
        cost: (units, classes).
        class_of_slot: (units,), which class each slot belongs to.
        price: (classes,); by default balanced ones.
    """
    reduced = cost - (balanced_prices(cost, class_of_slot) if price is None else price)
    units, slots = linear_sum_assignment(reduced[:, class_of_slot])
    class_of_unit = np.empty_like(class_of_slot)
    class_of_unit[units] = class_of_slot[slots]
    return class_of_unit


def assign_nearly(cost: Array, class_of_slot: Array, price: Array) -> Array:
    """An assignment of nearly least total cost, of many units several times faster than the best.

    Every unit goes where it wants to at balanced prices. Where too many do, those stay that would lose most by
    their second choice, and the others are assigned to the slots that are left.

    Args:
        cost: (units, classes), two classes at least.
        class_of_slot: (units,), which class each slot belongs to.
        price: (classes,), balanced.
    """
    reduced = cost - price
    first, second = np.partition(reduced, 1, axis=1)[:, :2].T
    wanted = reduced.argmin(axis=1)
    by_class = np.lexsort((first - second, wanted))  # those that would lose most first; stable
    class_of_unit: Array = wanted.copy()
    room = np.bincount(class_of_slot, minlength=cost.shape[1])
    rank = np.arange(len(cost)) - np.searchsorted(wanted[by_class], wanted[by_class])
    left = np.sort(by_class[rank >= room[wanted[by_class]]])
    taken = np.minimum(np.bincount(wanted, minlength=len(room)), room)
    free = np.repeat(np.arange(len(room)), room - taken)
    units, slots = linear_sum_assignment(reduced[left][:, free])
    class_of_unit[left[units]] = free[slots]
    return class_of_unit


def balanced_prices(cost: Array, class_of_slot: Array, known: Array | None = None) -> Array:
    """Prices at which nearly every unit finds room in the class that it likes best, by finer and finer steps.

    With fewer than 64 units nothing is balanced: the exact assignment takes no time.

    Args:
        cost: (units, classes).
        class_of_slot: (units,), which class each slot belongs to.
        known: (classes,), prices of similar costs, from where fine steps suffice.
    """
    price = np.zeros(cost.shape[1]) if known is None else known.copy()
    if len(cost) < _LEAST_BALANCED:
        return price
    room = np.bincount(class_of_slot, minlength=cost.shape[1])
    spread, reduced = float(np.ptp(cost, axis=1).mean()), np.empty(cost.shape)
    for step in _STEPS if known is None else _FINE_STEPS:
        for _ in range(_ROUNDS):
            np.subtract(cost, price, out=reduced)
            excess = np.bincount(reduced.argmin(axis=1), minlength=len(price)) - room
            if np.maximum(excess, 0).sum() <= _CROWDED * len(cost):
                return price
            price -= step * spread * np.clip(excess / room, -1.0, 3.0)
    return price


def prices(cost: Array, class_of_unit: Array) -> Array:
    """Dual prices p of an optimal assignment: for all units i and classes k,
    cost[i, own] - p[own] <= cost[i, k] - p[k].

    So p[k] <= p[j] + the least extra cost of moving a unit from class j to k: shortest paths (Bellman-Ford).

    Args:
        cost: (units, classes).
        class_of_unit: (units,), an optimal assignment in which no class is empty.

    Returns:
        (classes,), none positive.
    """
    by_class = np.argsort(class_of_unit, kind="stable")
    starts = np.searchsorted(class_of_unit[by_class], np.arange(cost.shape[1]))
    extra = cost - np.take_along_axis(cost, class_of_unit[:, None], axis=1)
    move = np.minimum.reduceat(extra[by_class], starts, axis=0)
    price = np.zeros(cost.shape[1])
    for _ in range(len(price)):
        shorter = np.minimum(price, (price[:, None] + move).min(axis=0))
        if np.array_equal(shorter, price):
            break
        price = shorter
    return price
