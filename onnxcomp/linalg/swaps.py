"""Exchanging units pair by pair until no pair gains: the M-step of Ji et al., "TETRIS" (NeurIPS 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["swapped"]

Array = np.ndarray[Any, Any]


def swapped(cost: Array, class_of_unit: Array, least: float) -> Array:
    """The class of each unit after swaps of the pair with the largest gain, until that is less than ``least``.

    Units i and j in classes k and l gain S_ik + S_jl - S_il - S_jk. No swap raises the total cost; where no pair
    gains, another assignment may still be better.

    Args:
        cost: S, (units, classes).
        class_of_unit: (units,), to start from.
        least: gain of a swap, above zero.
    """
    own, units = class_of_unit.copy(), np.arange(len(cost))

    def gains(unit: int) -> Array:
        """What swapping this unit with each gains."""
        found: Array = cost[unit, own[unit]] + cost[units, own] - cost[unit, own] - cost[units, own[unit]]
        return found

    gain = np.stack([gains(unit) for unit in range(len(cost))])
    partner = gain.argmax(axis=1)
    best = gain[units, partner]
    while best[one := int(best.argmax())] >= least:
        other = int(partner[one])
        own[[one, other]] = own[[other, one]]
        for unit in (one, other):
            gain[unit] = gain[:, unit] = gains(unit)
            risen = gain[unit] > best
            partner[risen], best[risen] = unit, gain[unit][risen]
        fallen = np.flatnonzero((partner == one) | (partner == other) | (units == one) | (units == other))
        partner[fallen] = gain[fallen].argmax(axis=1)
        best[fallen] = gain[fallen, partner[fallen]]
    return own
