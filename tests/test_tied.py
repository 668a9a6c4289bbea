"""Channels that always equal others: they go, and what reads them is added up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from onnxcomp.context import Context
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.tied import merge_tied
from onnxcomp.model import Model
from onnxcomp.passes.reorder import Reorder
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks
from tests.grouping import close, groups_of, outputs

Array = np.ndarray[Any, Any]


def tie(group: Group, unit: int, to: int) -> None:
    """Let all that produces a unit be what produces another."""
    for slot in group.slots:
        if slot.role != "in":
            value = value_of(slot.tensor).copy()
            rows = np.moveaxis(value, slot.axis, 0)
            rows[slot.positions[unit]] = rows[slot.positions[to]]
            assign(slot.tensor, value)


def two_convs(activation: str, hidden: int = 40, **second: Any) -> Net:
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", hidden), activation)
    net.gemm(net.flatten(net.conv(x, 8, **second), positions=64), 5)
    return net


def tied_model(net: Net) -> Model:
    """Units 1, 3, 5 … of the first group equal unit 0."""
    model = net.model()
    group = groups_of(model, net.feeds())[0]
    for unit in range(1, group.size, 2):
        tie(group, unit, 0)
    return model


@settings(max_examples=40, deadline=None)
@given(networks())
def test_any_network_with_equal_channels_computes_what_it_did(net: Net) -> None:
    model = net.model()
    feeds = net.feeds()
    for group in groups_of(model, feeds):
        if group.size > 1:
            tie(group, group.size - 1, 0)
    expected = outputs(model, feeds)
    groups = groups_of(model, feeds)
    one = {name: value[:1] for name, value in feeds.items()}
    counts = merge_tied(model, groups, one, 1)
    close(outputs(model, feeds), expected)
    for group, count in zip(groups, counts, strict=True):
        for slot in group.slots:
            if count and slot.role == "in":
                rows = np.moveaxis(value_of(slot.tensor), slot.axis, 0)[slot.positions]
                assert not rows[-1].any()


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_tied_channels_go_and_the_count_stays_a_multiple(activation: str) -> None:
    net = two_convs(activation)
    model = tied_model(net)
    expected = outputs(model, net.feeds())
    context = Context(target=Target.parse("x86-avx2"), scope="reorder")
    Reorder(density=1).run(model, context)
    first, second = list(weighted_layers(model))[:2]
    assert first.shape[0] == second.shape[1] == 24  # 20 others and the one that all of these equal
    assert "lost 16 idle or tied channels" in context.decisions[0].reason
    close(outputs(model, net.feeds()), expected)


def test_nothing_changes_where_no_channel_would_go() -> None:
    net = two_convs("Relu")
    model = net.model()
    group = groups_of(model, net.feeds())[0]
    tie(group, 1, 0)
    before = model.serialize()
    assert not any(merge_tied(model, groups_of(model, net.feeds()), net.feeds(), 8))
    assert model.serialize() == before


def test_channels_of_different_groups_are_not_alike_whatever_their_kernels() -> None:
    net = Net(0, (4, 8, 8))
    x = net.activation(net.conv("x", 8, groups=2), "Relu")
    net.gemm(net.flatten(net.conv(x, 8), positions=64), 5)
    model = net.model()
    for group in groups_of(model, net.feeds()):
        if group.size > 1:
            tie(group, group.size - 1, 0)
    expected = outputs(model, net.feeds())
    merge_tied(model, groups_of(model, net.feeds()), net.feeds(), 1)
    close(outputs(model, net.feeds()), expected)


def test_a_group_stays_where_the_outputs_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.graph.tied.noise", lambda *_: 1.0)
    net = two_convs("Relu")
    model = tied_model(net)
    before = model.serialize()
    assert not any(merge_tied(model, groups_of(model, net.feeds()), net.feeds(), 1))
    assert model.serialize() == before
