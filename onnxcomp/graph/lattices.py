"""Which axis of a lattice of channels becomes shorter when channels go, and which channels are one unit.

A Reshape that splits the axis of the channels wants a rectangle. It stays one when whole lines go: the channels
are tied along every axis but one. Mostly the operators behind it have said along which (attention heads: the
product of queries and keys needs all of a head). Where none has (a channel shuffle), the channels at the same
place of each part are tied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Propagation

__all__ = ["decide", "line", "line_taker", "shrinking"]

Array = np.ndarray[Any, Any]


def decide(flow: Propagation) -> Array:
    """The unit of each numbered channel; lattices that could lose positions along several axes are tied."""
    unit_of = _connected(flow)
    open_lattices = flow.lattices
    while open_lattices:
        open_lattices = [(node, ids) for node, ids in open_lattices if len(_varying(unit_of[ids])) > 1]
        touched = np.zeros(len(unit_of), dtype=bool)
        for _, ids in open_lattices:
            units = unit_of[ids]
            if not touched[units].any():  # else the ties of this round may have decided it
                touched[units] = True
                flow.tie(ids.take([0], _varying(units)[0]), ids)
        if open_lattices:
            unit_of = _connected(flow)
    whole = [(node, ids) for node, ids in flow.lattices if not _varying(unit_of[ids])]
    if whole:
        _pin(flow, whole, unit_of)
    return unit_of


def shrinking(units: Array) -> int:
    """The axis along which positions can go, of a lattice for which that has been decided."""
    return next(iter(_varying(units)), 0)


def line(ids: Array, axis: int) -> Array:
    """The channels along one axis, at the beginning of all others."""
    return ids[tuple(slice(None) if at == axis else 0 for at in range(ids.ndim))]


def line_taker(unit_of: Array) -> Callable[[Array], tuple[int, Array]]:
    """A function that gives the shrinking axis of a lattice, and the units of the positions along it.

    The same array gives the same result.
    """
    known: dict[int, tuple[Array, int, Array]] = {}

    def take(ids: Array) -> tuple[int, Array]:
        if id(ids) not in known:
            units = unit_of[ids]
            axis = shrinking(units) if ids.ndim > 1 else 0
            known[id(ids)] = ids, axis, line(units, axis)
        return known[id(ids)][1:]

    return take


def _varying(units: Array) -> list[int]:
    """The axes along which not all units are the same."""
    if units.ndim == 1:
        return [0] if len(units) and (units != units[0]).any() else []
    return [axis for axis in range(units.ndim) if (units != units.take([0], axis)).any()]


def _connected(flow: Propagation) -> Array:
    """Channels that are tied, directly or through others, are one unit; numbered by their first channels."""
    if not flow.ties:
        return np.arange(flow.count)
    first = np.concatenate([tie[0] for tie in flow.ties])
    second = np.concatenate([tie[1] for tie in flow.ties])
    edges = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), (flow.count, flow.count))
    labels: Array = connected_components(edges, directed=False)[1]
    _, earliest = np.unique(labels, return_index=True)
    return np.argsort(np.argsort(earliest))[labels]


def _pin(flow: Propagation, whole: list[tuple[gs.Node, Array]], unit_of: Array) -> None:
    """All channels of these lattices are one unit each, as operators need all positions of each of their axes."""
    reasons: dict[int, list[str]] = {}
    for held, reason in flow.holds:
        for unit in np.unique(unit_of[held]).tolist():
            reasons.setdefault(unit, []).append(reason)
    for node, ids in whole:
        shape = " x ".join(map(str, ids.shape))
        given = dict.fromkeys(reasons.get(int(unit_of[ids.reshape(-1)[0]]), []))
        because = f" ({'; '.join(given)})" if given else ""
        flow.pin(
            ids, f"{layer_name(node)}: it makes {shape} of the channels, none of which can go without all{because}"
        )
