"""Dependency groups: sets of channels that can be permuted among each other, or removed, without harm.

After DepGraph (Fang et al., "DepGraph: towards any structural pruning", CVPR 2023), on ONNX graphs and down
to single channels. A *unit* is what moves together: a channel of one layer, all that an Add ties to it, the
channels at the same place of every group of a grouped convolution, all that makes up an attention head. A
*group* holds units that occur in the same places in the same way: any permutation of them, applied everywhere,
leaves the outputs as they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import replace_input, value_of
from onnxcomp.graph.lattices import decide, line_taker
from onnxcomp.graph.layers import WeightedLayer, layer_name
from onnxcomp.graph.propagate import Extent, Picks, Place, Propagation, Role, propagate
from onnxcomp.graph.rules import RULES
from onnxcomp.model import Model

__all__ = ["Group", "Slot", "dependency_groups", "select"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class _Axis:
    """An axis of a constant, or a count of channels: which unit each position belongs to, kept up to date."""

    units: Array


@dataclass(eq=False)
class _ConstantAxis(_Axis):
    place: Place
    axis: int


@dataclass(eq=False)
class _Indices(_Axis):
    """Constant indices into ``units``; those of the positions they pick are ``picked``."""

    picks: Picks
    picked: Array


@dataclass(eq=False)
class _Count(_Axis):
    extent: Extent


@dataclass(eq=False)
class _Declared(_Axis):
    """The shape that the graph declares for an activation."""

    tensor: gs.Tensor
    axis: int


class Slot:
    """One place where a group's channels appear on a constant.

    Attributes:
        role: ``out``: the weight's outputs, or a bias; ``in``: the weight's inputs; ``along``: one value or
            one kernel for each channel that passes (BatchNormalization, depthwise weight, added constant).
        layer: the node as a weighted layer; None where it is none.
    """

    def __init__(self, group: Group, axis: _ConstantAxis) -> None:
        self._group = group
        self._axis = axis

    @property
    def role(self) -> Role:
        return self._axis.place.role

    @property
    def layer(self) -> WeightedLayer | None:
        return self._axis.place.layer

    @property
    def node(self) -> gs.Node:
        """The node that reads the constant."""
        return self._axis.place.node

    @property
    def index(self) -> int:
        """Which of the node's inputs the constant is."""
        return self._axis.place.index

    @property
    def axis(self) -> int:
        """The axis of the constant along which the channels lie."""
        return self._axis.axis

    @property
    def tensor(self) -> gs.Tensor:
        """The constant."""
        return self.node.inputs[self.index]

    @property
    def positions(self) -> Array:
        """Where each unit is along the axis: (size, multiplicity), ascending in each row."""
        return _positions(self._axis.units, self._group.units)


@dataclass(eq=False)
class Group:
    """Units that can be permuted among each other, and removed.

    Attributes:
        name: of the first layer that produces these channels; unique in the model.
        slots: every place where they appear on a constant.
        pinned: why they must neither move nor go; None where they may.
        kept: why none may be removed, though their order is free; None where they may be removed.
        units: numbers of the units, in their present order.
    """

    name: str
    units: Array
    slots: list[Slot] = field(default_factory=list)
    pinned: str | None = None
    kept: str | None = None
    _axes: list[_Axis] = field(default_factory=list, repr=False)

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.units)


def dependency_groups(model: Model, shapes: Mapping[str, tuple[int, ...]], through_norms: bool = False) -> list[Group]:
    """The groups of all channels that appear on constants, in graph order.

    They describe the model as it is: edits other than by ``select`` make them stale, and so does restoring a
    checkpoint from before a ``select``.

    Args:
        model: with its nodes in topological order.
        shapes: of every activation, as observed by running one sample (``runtime.shapes.observed``).
        through_norms: whether channels may go though a LayerNormalization averages over them: its mean and deviation
            are then those of the channels left, so that removal of channels that nothing reads changes the outputs.
    """
    flow = propagate(model, shapes, RULES, through_norms)
    if not flow.count:
        return []
    unit_of = decide(flow)
    axes = _axes(flow, unit_of)
    pinned, kept = _reasons(flow, unit_of)
    flat = (ids.reshape(-1) for ids in {id(ids): ids for ids in _id_arrays(flow)}.values())
    arrays = list({ids.tobytes(): ids for ids in flat}.values())
    class_of = _refine(arrays, unit_of, pinned, kept)
    groups = _collect(class_of, axes)
    for group in groups:
        group.pinned = pinned.get(int(group.units[0]))
        group.kept = group.pinned or kept.get(int(group.units[0]))
    return _named([group for group in groups if group.slots])


def select(group: Group, order: Array) -> None:
    """Make the group's channels these, in this order, everywhere in the model.

    Unit ``order[i]`` takes the place of the i-th of the units that stay: a whole permutation changes no
    output, an ascending subset removes the other units. Every constant concerned is replaced, never written
    into; sizes that the graph states (Split, Reshape, ``group`` of depthwise convolutions, declared shapes)
    follow. All groups of the same call of ``dependency_groups`` stay valid; so do ``WeightedLayer`` objects,
    save those of depthwise convolutions that are not the slots' own.

    Raises:
        ValueError: ``order`` repeats or exceeds the units, or the group may not be changed so.
    """
    order = np.asarray(order, dtype=np.int64)
    if len(np.unique(order)) != len(order) or not len(order) or order.min() < 0 or order.max() >= group.size:
        raise ValueError(f"{group.name}: not an order of some of its {group.size} units")
    reason = group.pinned or (group.kept if len(order) < group.size else None)
    if reason:
        raise ValueError(f"{group.name}: {reason}")
    stay = np.sort(order)
    gone = group.units[np.setdiff1d(np.arange(group.size), order)]
    edits = [(axis, _source_positions(axis.units, group.units, stay, order, gone)) for axis in group._axes]
    for axis, _ in edits:
        if isinstance(axis, _Indices):
            _renumber(axis, gone)
        axis.units = axis.units[~np.isin(axis.units, gone)]
    for axis, source in edits:
        _apply(axis, source)
    group.units = group.units[stay]


def _source_positions(units: Array, members: Array, stay: Array, order: Array, gone: Array) -> Array:
    """Which old position each new one is filled from."""
    positions = _positions(units, members)
    source = np.arange(len(units))
    source[positions[stay]] = positions[order]
    result: Array = source[~np.isin(units, gone)]
    return result


def _positions(units: Array, members: Array) -> Array:
    """Positions of each member unit, ascending: (members, multiplicity)."""
    by_unit = np.argsort(units, kind="stable")
    start = np.searchsorted(units[by_unit], members)
    multiplicity = np.count_nonzero(units == members[0])
    result: Array = by_unit[start[:, None] + np.arange(multiplicity)]
    return result


def _apply(axis: _Axis, source: Array) -> None:
    if isinstance(axis, _ConstantAxis):
        place = axis.place
        value = value_of(place.node.inputs[place.index])
        assert value is not None
        replace_input(place.node, place.index, np.take(value, source, axis=axis.axis))
        if place.layer is not None and place.layer.groups > 1:
            groups = int(place.node.attrs["group"])
            axis.place = dataclasses.replace(place, layer=dataclasses.replace(place.layer, groups=groups))
    elif isinstance(axis, _Count):
        _write_count(axis.extent, len(axis.units))
    elif isinstance(axis, _Declared) and axis.tensor.shape is not None:
        shape = list(axis.tensor.shape)
        if axis.axis < len(shape) and isinstance(shape[axis.axis], int):
            shape[axis.axis] = len(axis.units)
            axis.tensor.shape = shape


def _renumber(axis: _Indices, gone: Array) -> None:
    """Indices of what stays, among what stays."""
    node = axis.picks.node
    value = value_of(node.inputs[1])
    assert value is not None
    left, kept = ~np.isin(axis.units, gone), ~np.isin(axis.picked, gone)
    indices = value.reshape(-1) % len(axis.units)
    indices = (np.cumsum(left) - 1)[indices[kept]]
    replace_input(node, 1, indices.astype(value.dtype).reshape(-1 if value.ndim else ()))
    axis.picked = axis.picked[kept]


def _write_count(extent: Extent, count: int) -> None:
    node, source, entry = extent.node, extent.source, extent.entry
    if isinstance(source, int):
        value = value_of(node.inputs[source])
        assert value is not None
        changed = value.copy()
        changed.reshape(-1)[entry] = count
        replace_input(node, source, changed)
    elif entry is None:
        node.attrs[source] = count
    else:
        values = list(node.attrs[source])
        values[entry] = count
        node.attrs[source] = values


# -- from numbered channels to groups ------------------------------------------------------------------------


def _axes(flow: Propagation, unit_of: Array) -> list[_Axis]:
    take = line_taker(unit_of)
    axes: list[_Axis] = []
    # Counts come before constants: a depthwise layer is looked at anew once its attribute is right.
    for extent in flow.extents:
        along, units = take(extent.ids)
        if along == extent.axis:
            axes.append(_Count(units[extent.start : extent.stop], extent))
    for picks in flow.picks:
        along, units = take(picks.ids)
        indices = value_of(picks.node.inputs[1])
        if along == picks.axis and indices is not None:
            axes.append(_Indices(units, picks, units[indices.reshape(-1)]))
    for place in flow.places:
        along, units = take(place.ids)
        if place.axes[along] >= 0:
            axes.append(_ConstantAxis(units, place, place.axes[along]))
    for tensor, labels in flow.labelled:
        along, units = take(labels.ids)
        axes.append(_Declared(units, tensor, labels.axes[along]))
    return axes


def _reasons(flow: Propagation, unit_of: Array) -> tuple[dict[int, str], dict[int, str]]:
    """Why units are pinned, and why they are kept: the first reason given for each."""
    pinned: dict[int, str] = {}
    kept: dict[int, str] = {}
    for pin in flow.pins:
        reasons = kept if pin.movable else pinned
        for unit in np.unique(unit_of[pin.ids]).tolist():
            reasons.setdefault(unit, pin.reason)
    return pinned, kept


def _id_arrays(flow: Propagation) -> Iterator[Array]:
    """All that tells units apart: constants, counts, and activations."""
    yield from (place.ids for place in flow.places)
    for extent in flow.extents:
        whole = extent.start == 0 and extent.stop is None
        stretch = slice(extent.start, extent.stop)
        yield extent.ids if whole else extent.ids[(slice(None),) * extent.axis + (stretch,)]
    yield from (labels.ids for _, labels in flow.labelled)
    for picks in flow.picks:
        indices = value_of(picks.node.inputs[1])
        if indices is not None:
            yield picks.ids.take(indices.reshape(-1), axis=picks.axis)


def _refine(arrays: list[Array], unit_of: Array, pinned: dict[int, str], kept: dict[int, str]) -> Array:
    """The class of each unit: those that occur in the same places, in the same way, for the same reasons.

    Partition refinement. In the same way means: the k-th occurrence of one unit corresponds to the k-th of
    the other in every array. A channel's *lane* is the place of its first occurrence in its unit;
    corresponding channels have the same lane, so the lanes of a unit's occurrences, in order, must agree.
    """
    class_of = np.zeros(int(unit_of.max()) + 1, dtype=np.int64)
    for reasons in (pinned, kept):
        codes: dict[str, int] = {}
        marks = np.zeros_like(class_of)
        for unit, reason in reasons.items():
            marks[unit] = codes.setdefault(reason, len(codes) + 1)
        class_of = np.unique(np.stack([class_of, marks], 1), axis=0, return_inverse=True)[1].reshape(-1)
    classes = int(class_of.max()) + 1
    lanes = np.full(len(unit_of), -1, dtype=np.int64)
    lane_count = 0
    for ids in arrays:
        order = np.argsort(unit_of[ids], kind="stable")
        sorted_units = unit_of[ids][order]
        start = np.flatnonzero(np.diff(sorted_units, prepend=-1))
        units, counts = sorted_units[start], np.diff(start, append=len(ids))
        turn = np.arange(len(ids)) - np.repeat(start, counts)
        new = lanes[ids[order]] < 0
        lanes[ids[order][new]] = lane_count + turn[new]
        lane_count += int(counts.max())
        occurrences = np.full((len(units), int(counts.max())), -1, dtype=np.int64)
        occurrences[np.repeat(np.arange(len(units)), counts), turn] = lanes[ids[order]]
        if (occurrences == occurrences[0]).all():
            keys = class_of[units]
        else:
            keys = np.unique(np.column_stack([class_of[units], occurrences]), axis=0, return_inverse=True)[1]
        keys = keys.reshape(-1)
        inverse = np.zeros_like(keys) if (keys == keys[0]).all() else np.unique(keys, return_inverse=True)[1]
        class_of[units] = classes + inverse
        classes += int(inverse.max()) + 1
    return class_of


def _collect(class_of: Array, axes: list[_Axis]) -> list[Group]:
    """A group for each class, in the order of their first units, with the axes on which it appears."""
    _, first, numbers = np.unique(class_of, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    group_of = rank[numbers]
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    groups = [Group("", units) for units in members]
    for axis in axes:
        for number in np.unique(group_of[axis.units]).tolist():
            group = groups[number]
            group._axes.append(axis)
            if isinstance(axis, _ConstantAxis):
                group.slots.append(Slot(group, axis))
    return groups


def _named(groups: list[Group]) -> list[Group]:
    seen: dict[str, int] = {}
    for group in groups:
        slot = next((slot for slot in group.slots if slot.role == "out"), group.slots[0])
        name = slot.layer.name if slot.layer is not None else layer_name(slot.node)
        seen[name] = seen.get(name, 0) + 1
        group.name = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return groups
