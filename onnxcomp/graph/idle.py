"""Channels that contribute nothing: no one reads them, or they are zero whatever the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.groups import Group, Slot
from onnxcomp.model import Model
from onnxcomp.runtime.session import create, run, with_outputs

__all__ = ["idle_units", "order_without"]

Array = np.ndarray[Any, Any]


def idle_units(model: Model, groups: Sequence[Group], feeds: Mapping[str, Array]) -> list[Array]:
    """For each group a boolean array (size,): which units can be removed without changing any output.

    A unit is idle where all weights that read it are zero; or where all that produces it is zero (weights,
    biases, scales) and no operator on the way makes something of that zero (as Sigmoid does). The latter is
    seen by running the model once: what does not depend on the input is the same in every run.
    Units of groups that are kept or pinned are not idle.

    Args:
        model: the model that the groups are of.
        groups: of the model as it is.
        feeds: one sample.
    """
    unread = [_unread(group) for group in groups]
    silent = [_unproduced(group) & ~idle for group, idle in zip(groups, unread, strict=True)]
    tensors = {
        slot.node.inputs[0].name
        for group, units in zip(groups, silent, strict=True)
        if units.any()
        for slot in _readers(group)
    }
    if tensors:
        session = create(with_outputs(model.skeleton(), sorted(tensors)), optimize=False)
        values = run(session, feeds)
        for group, units in zip(groups, silent, strict=True):
            if units.any():
                for slot in _readers(group):
                    units &= _zero_in(slot, values[slot.node.inputs[0].name])
    return [idle | quiet for idle, quiet in zip(unread, silent, strict=True)]


def order_without(idle: Array, multiple: int) -> Array:
    """The units to keep, ascending: those not idle, and idle ones to fill up a multiple of channels.

    A count that is no multiple of the target's vectors can be slower than the larger one that is.
    """
    live = np.flatnonzero(~idle)
    count = min(len(idle), -(-max(len(live), 1) // multiple) * multiple)
    filling = np.flatnonzero(idle)[: count - len(live)]
    return np.sort(np.concatenate([live, filling]))


def _readers(group: Group) -> list[Slot]:
    return [slot for slot in group.slots if slot.role == "in"]


def _unread(group: Group) -> Array:
    readers = _readers(group)
    if group.kept or not readers:
        return np.zeros(group.size, dtype=bool)
    return _zero(readers)


def _unproduced(group: Group) -> Array:
    producers = [slot for slot in group.slots if slot.role != "in"]
    layers = [slot.layer for slot in _readers(group)]
    simple = all(layer is not None and layer.groups == 1 and layer.kind != "other" for layer in layers)
    if group.kept or not producers or not _readers(group) or not simple:
        return np.zeros(group.size, dtype=bool)
    return _zero(producers)


def _zero(slots: Sequence[Slot]) -> Array:
    """Which units have nothing but zeros in all these constants."""
    zero = np.ones(len(slots[0].positions), dtype=bool)
    for slot in slots:
        value = value_of(slot.tensor)
        assert value is not None
        zero &= _zero_along(value, slot.axis, slot.positions)
    return zero


def _zero_in(slot: Slot, activation: Array) -> Array:
    """Which units are zero in what the layer reads."""
    return _zero_along(activation, _channel_axis(slot.node, activation.ndim), slot.positions)


def _zero_along(value: Array, axis: int, positions: Array) -> Array:
    zero = np.moveaxis(value != 0, axis, 0).reshape(value.shape[axis], -1).sum(axis=1) == 0
    every: Array = zero[positions].all(axis=1)
    return every


def _channel_axis(node: gs.Node, rank: int) -> int:
    if node.op == "MatMul":
        return rank - 1
    return 0 if node.op == "Gemm" and node.attrs.get("transA", 0) else 1
