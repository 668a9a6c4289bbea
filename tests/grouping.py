"""Checks that edits of dependency groups are exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.model import Model
from onnxcomp.runtime import session, shapes
from tests.generate import Net

__all__ = ["assert_exact", "checked", "close", "found", "groups_of", "outputs", "silence"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]


def groups_of(model: Model, feeds: Feeds) -> list[Group]:
    return dependency_groups(model, shapes.observed(model, {name: value[:1] for name, value in feeds.items()}))


def outputs(model: Model, feeds: Feeds) -> dict[str, Array]:
    onnx.checker.check_model(model.proto(), full_check=True)
    return session.run(session.create(model), feeds)


def silence(group: Group, unit: int) -> None:
    """Set to zero what reads the unit, or what makes it where only products of activations read it."""
    roles = {slot.role for slot in group.slots}
    for slot in group.slots:
        if slot.role == "in" or "in" not in roles:
            value = value_of(slot.tensor).copy()
            np.moveaxis(value, slot.axis, 0)[slot.positions[unit]] = 0
            assign(slot.tensor, value)


def close(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 1e-5) -> None:
    """Up to a part of the largest value."""
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=tolerance * np.abs(value).max(), rtol=0)


def assert_exact(model: Model, feeds: Feeds, repeats: bool = True) -> None:
    """Any order of any group gives the same outputs; removing units is zeroing them.

    Args:
        repeats: the groups of what is left are what the groups have become.
    """
    rng = np.random.default_rng(0)
    state, before = model.checkpoint(), outputs(model, feeds)
    for group in groups_of(model, feeds):
        if group.pinned is None:
            select(group, rng.permutation(group.size))
    close(outputs(model, feeds), before)
    state.restore()
    free = [group for group in groups_of(model, feeds) if group.kept is None and group.size > 1]
    units = [int(rng.integers(group.size)) for group in free]
    for group, unit in zip(free, units, strict=True):
        silence(group, unit)
    silent = outputs(model, feeds)
    state.restore()
    for group, unit in zip(free, units, strict=True):
        select(group, np.delete(np.arange(group.size), unit))
    close(outputs(model, feeds), silent)
    again = {group.name: group for group in groups_of(model, feeds)}
    for group in free if repeats else ():
        for old, new in zip(group.slots, again[group.name].slots if group.size > 1 else (), strict=group.size > 1):
            np.testing.assert_array_equal(old.positions, new.positions)


def found(groups: list[Group]) -> list[tuple[int, list[int], bool]]:
    """Of each group its size, the positions of a unit on each constant, and whether units may go."""
    return [(group.size, [slot.positions.shape[1] for slot in group.slots], group.kept is None) for group in groups]


def checked(net: Net, *results: str) -> list[Group]:
    """The groups, after edits of another copy of the model were seen to be exact."""
    assert_exact(net.model(*results), net.feeds())
    return groups_of(net.model(*results), net.feeds())
