"""Channels that are always equal: one of them is enough, with the weights that read them added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.evaluate import noise
from onnxcomp.fidelity import Outputs
from onnxcomp.graph.constants import replace_input, value_of
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.graph.idle import order_without
from onnxcomp.model import Model
from onnxcomp.runtime.session import create, run

__all__ = ["merge_tied"]

Array = np.ndarray[Any, Any]

_EXACT = 1e-9  # of the outputs' energy: what sums in another order make of float32


def merge_tied(model: Model, groups: Sequence[Group], feeds: Mapping[str, Array], multiple: int) -> list[int]:
    """Let nothing read units that are always equal to others of their group any more; the others are read for them.

    Units are tied where all that produces them is the same: rows of weights, biases, scales. Training with GrOWL makes
    such channels (Zhang et al. 2018, "Learning to share: simultaneous parameter tying and sparsification in deep
    learning"), and so does copying them to widen a network. The weights that read a unit are added to those of the
    first of its kind, and become zero: then it is idle, see ``idle_units``.

    Args:
        model: edited in place; only constants change.
        groups: of the model as it is.
        feeds: one sample. A group stays as it is where the outputs for it would change.
        multiple: units only go as far as their count stays one.

    Returns:
        how many units of each group are read no more.
    """
    counts, expected = [], None
    for group in groups:
        first = _first_of_kind(group)
        tied = first != np.arange(group.size)
        if group.size - len(order_without(tied, multiple)) == 0:
            counts.append(0)
            continue
        expected = run(create(model), feeds) if expected is None else expected
        counts.append(int(tied.sum()) if _merged(model, group, first, feeds, expected) else 0)
    return counts


def _first_of_kind(group: Group) -> Array:
    """For each unit the first one that is produced in the same way; itself where it cannot be known."""
    itself = np.arange(group.size)
    producers = [slot for slot in group.slots if slot.role != "in"]
    if group.kept or not producers or not all(_reads_all(slot) for slot in producers):
        return itself
    readers = _readers(group)
    if not readers or not all(_adds_up(slot) for slot in readers):
        return itself
    rows = np.concatenate([_rows(slot) for slot in producers], axis=1)
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), index) for index, row in enumerate(rows)])


def _rows(slot: Slot) -> Array:
    """What a constant holds for each unit: (size, values)."""
    value = value_of(slot.tensor)
    assert value is not None
    rows = np.moveaxis(value, slot.axis, 0)[slot.positions]
    return rows.reshape(len(rows), -1).astype(np.float64) + 0.0  # no negative zeros


def _reads_all(slot: Slot) -> bool:
    """Whether the outputs of what produces units differ by its constants alone."""
    return slot.role == "along" or slot.layer is None or slot.layer.groups == 1


def _adds_up(slot: Slot) -> bool:
    return slot.layer is not None and slot.layer.groups == 1 and slot.layer.kind != "other"


def _readers(group: Group) -> list[Slot]:
    return [slot for slot in group.slots if slot.role == "in"]


def _merged(model: Model, group: Group, first: Array, feeds: Mapping[str, Array], expected: Outputs) -> bool:
    before = []
    for slot in _readers(group):
        value = value_of(slot.tensor)
        assert value is not None
        before.append((slot, value))
        replace_input(slot.node, slot.index, _added_up(value, slot, first))
    if noise([expected], [run(create(model), feeds)]) <= _EXACT:
        return True
    for slot, value in before:
        replace_input(slot.node, slot.index, value)
    return False


def _added_up(value: Array, slot: Slot, first: Array) -> Array:
    result = np.moveaxis(value.copy(), slot.axis, 0)
    for unit in np.flatnonzero(first != np.arange(len(first))):
        gone = slot.positions[unit]
        result[slot.positions[first[unit]]] += result[gone]
        result[gone] = 0
    return np.moveaxis(result, 0, slot.axis)
