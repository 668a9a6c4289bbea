"""Dependency groups: what belongs together, what is pinned and why, and that edits keep the function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.layers import MIN_WEIGHTS
from onnxcomp.model import Model
from onnxcomp.runtime import session, shapes
from tests.generate import ZERO_PRESERVING, Net, networks

Array = np.ndarray[Any, Any]


def groups_of(model: Model, feeds: dict[str, Array]) -> list[Group]:
    return dependency_groups(model, shapes.observed(model, {name: value[:1] for name, value in feeds.items()}))


def named(groups: list[Group]) -> dict[str, Group]:
    assert len({group.name for group in groups}) == len(groups)
    return {group.name: group for group in groups}


def run(model: Model, feeds: dict[str, Array]) -> Array:
    onnx.checker.check_model(model.proto(), full_check=True)
    return next(iter(session.run(session.create(model), feeds).values()))


def zero(group: Group, units: Array, roles: tuple[str, ...]) -> None:
    for slot in group.slots:
        if slot.role in roles:
            value = value_of(slot.tensor).copy()
            np.moveaxis(value, slot.axis, 0)[slot.positions[units].reshape(-1)] = 0
            assign(slot.tensor, value)


def free(groups: list[Group]) -> list[Group]:
    return [group for group in groups if group.kept is None and group.size > 1]


class _Zeros:
    """Draws zeros, fast."""

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, np.float32)

    def uniform(self, low: float, high: float, size: int) -> Array:  # noqa: ARG002
        return np.zeros(size, np.float32)


# -- properties ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_any_permutation_leaves_the_outputs(net: Net, random: Any) -> None:
    model, feeds = net.model(), net.feeds()
    before = run(model, feeds)
    for group in groups_of(model, feeds):
        if group.pinned is None:
            select(group, np.array(random.sample(range(group.size), group.size)))
    np.testing.assert_allclose(run(model, feeds), before, atol=1e-5 * (1 + np.abs(before).max()))


@settings(max_examples=60, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_removing_units_is_zeroing_what_reads_them(net: Net, random: Any) -> None:
    model, feeds = net.model(), net.feeds()
    groups = free(groups_of(model, feeds))
    kept = [np.sort(random.sample(range(group.size), random.randint(1, group.size))) for group in groups]
    state = model.checkpoint()
    for group, units in zip(groups, kept, strict=True):
        zero(group, np.setdiff1d(np.arange(group.size), units), ("in",))
    expected = run(model, feeds)
    state.restore()
    for group, units in zip(groups, kept, strict=True):
        select(group, units)
        assert group.size == len(units)
    np.testing.assert_allclose(run(model, feeds), expected, atol=1e-5 * (1 + np.abs(expected).max()))


@settings(max_examples=60, deadline=None)
@given(networks(ZERO_PRESERVING), st.randoms(use_true_random=False))
def test_removing_units_is_zeroing_what_makes_them(net: Net, random: Any) -> None:
    model, feeds = net.model(), net.feeds()
    groups = free(groups_of(model, feeds))
    if not groups:
        return
    group = random.choice(groups)
    unit = random.randrange(group.size)
    state = model.checkpoint()
    zero(group, np.array([unit]), ("out", "along"))
    expected = run(model, feeds)
    state.restore()
    select(group, np.delete(np.arange(group.size), unit))
    np.testing.assert_allclose(run(model, feeds), expected, atol=1e-5 * (1 + np.abs(expected).max()))


@settings(max_examples=20, deadline=None)
@given(networks(), st.randoms(use_true_random=False))
def test_groups_stay_valid_after_edits(net: Net, random: Any) -> None:
    model, feeds = net.model(), net.feeds()
    groups = free(groups_of(model, feeds))
    for group in groups:
        count = max(4, group.size - 1)
        select(group, np.array(random.sample(range(group.size), min(count, group.size))))
    weights = [value_of(slot.layer.weight) for group in groups for slot in group.slots if slot.layer is not None]
    assume(all(weight.size >= MIN_WEIGHTS for weight in weights))  # what is smaller is no layer any more
    again = named(groups_of(model, feeds))
    for group in groups:
        for old, new in zip(group.slots, again[group.name].slots, strict=True):
            np.testing.assert_array_equal(old.positions, new.positions)
            assert (old.tensor is new.tensor, old.role) == (True, new.role)
            if old.layer is not None and new.layer is not None:
                assert old.layer.groups == new.layer.groups


# -- what belongs together -----------------------------------------------------------------------------------


def test_a_chain_has_a_group_for_each_layer_and_its_output_is_pinned() -> None:
    net = Net()
    x = net.gemm(net.flatten(net.conv(net.activation(net.conv("x", 6)), 4), 64), 10)
    groups = groups_of(net.model(x), net.feeds())
    assert [(group.name, group.size) for group in groups] == [("/conv0", 6), ("/conv2", 4), ("/gemm4", 10)]
    assert [[slot.role for slot in group.slots] for group in groups] == [
        ["out", "out", "in"],
        ["out", "out", "in"],
        ["out", "out"],
    ]
    assert groups[2].pinned == "gemm4 is an output of the model"


def test_flatten_expands_a_channel_to_all_its_positions() -> None:
    net = Net()
    groups = groups_of(net.model(net.gemm(net.flatten(net.conv("x", 4), 64), 10)), net.feeds())
    positions = groups[0].slots[2].positions
    np.testing.assert_array_equal(positions, np.arange(256).reshape(4, 64))


def test_flatten_of_channels_last_interleaves_positions() -> None:
    net = Net(shape=(3, 2, 2))
    last = net.node("Transpose", net.conv("x", 4), perm=[0, 2, 3, 1])
    groups = groups_of(net.model(net.gemm(net.flatten(last, 4), 10)), net.feeds())
    np.testing.assert_array_equal(groups[0].slots[2].positions, np.arange(16).reshape(4, 4).T)


def test_residual_spine_is_one_group_through_identity() -> None:
    net = Net()
    x = net.conv("x", 8)
    for _ in range(3):
        x = net.add(x, net.conv(net.activation(net.conv(x, 4)), 8))
    groups = groups_of(net.model(net.conv(x, 2)), net.feeds())
    assert [group.size for group in groups] == [8, 4, 4, 4, 2]
    assert len([slot for slot in groups[0].slots if slot.role == "in"]) == 4


def test_concat_offsets_on_one_axis() -> None:
    net = Net()
    x = net.concat(net.conv("x", 4), net.conv("x", 6))
    first, second, _ = groups_of(net.model(net.conv(x, 2)), net.feeds())
    weight = first.slots[2].tensor
    assert weight is second.slots[2].tensor
    before = value_of(weight).copy()
    select(first, np.array([3, 0]))
    select(second, np.array([0, 1, 2, 4, 5]))
    np.testing.assert_array_equal(second.slots[2].positions[:, 0], [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(value_of(weight), before[:, [3, 0, 4, 5, 6, 8, 9]])


def test_add_of_a_concat_splits_its_partner_in_groups() -> None:
    net = Net()
    x = net.add(net.concat(net.conv("x", 4), net.conv("x", 6)), net.conv("x", 10))
    groups = groups_of(net.model(net.conv(x, 2)), net.feeds())
    assert [group.size for group in groups] == [4, 6, 2]
    np.testing.assert_array_equal(groups[1].slots[2].positions[:, 0], [4, 5, 6, 7, 8, 9])


def test_depthwise_weight_and_group_attribute_follow() -> None:
    net = Net()
    model = net.model(net.conv(net.depthwise(net.conv("x", 6), multiplier=2), 2))
    group = groups_of(model, net.feeds())[0]
    assert [slot.role for slot in group.slots] == ["out", "out", "along", "along", "in"]
    np.testing.assert_array_equal(group.slots[2].positions, np.arange(12).reshape(6, 2))
    select(group, np.array([0, 2, 5]))
    depthwise = model.graph.nodes[1]
    assert depthwise.attrs["group"] == 3
    assert value_of(depthwise.inputs[1]).shape == (6, 1, 3, 3)
    assert group.slots[2].layer is not None
    assert group.slots[2].layer.groups == 3


def test_grouped_convolution_ties_the_same_place_of_every_group() -> None:
    net = Net()
    groups = groups_of(net.model(net.conv(net.conv(net.conv("x", 12), 9, groups=3), 2)), net.feeds())
    np.testing.assert_array_equal(groups[0].slots[0].positions[1], [1, 5, 9])
    np.testing.assert_array_equal(groups[0].slots[2].positions[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(groups[1].slots[0].positions[1], [1, 4, 7])


def test_gate_moves_with_what_it_scales() -> None:
    net = Net()
    groups = groups_of(net.model(net.conv(net.gate(net.conv("x", 8), 4), 2)), net.feeds())
    assert [group.size for group in groups] == [8, 4, 2]


def test_hidden_units_of_a_transformer_mlp_are_free_and_its_spine_is_kept() -> None:
    net = Net(shape=(5, 16))
    net.channels["x"] = 16
    x = net.matmul("x", 16)
    x = net.add(x, net.matmul(net.gelu(net.matmul(x, 32)), 16))
    mean = net.node("ReduceMean", x, axes=[-1])
    centred = net.node("Sub", x, mean)
    groups = groups_of(net.model(net.matmul(centred, 4)), net.feeds())
    assert [group.size for group in groups] == [16, 32, 4]
    assert groups[1].kept is None
    assert groups[0].pinned is None
    assert groups[0].kept is not None
    assert "ReduceMean over the channels" in groups[0].kept


def test_sizes_in_the_graph_follow() -> None:
    net = Net()
    x = net.conv("x", 10)
    sizes = net.constant([4, 6], np.int64)
    first = net.node("Split", x, sizes, channels=4, outputs=2, axis=1)
    starts, ends, axes = (net.constant([value], np.int64) for value in (-3, 2**62, 1))
    tail = net.node("Slice", f"{first}.1", starts, ends, axes, channels=3)
    flat = net.node("Reshape", tail, net.constant([-1, 3 * 64], np.int64), channels=192)
    pooled = net.flatten(net.node("GlobalAveragePool", first), 1)
    model = net.model(net.add(net.gemm(flat, 4), net.gemm(pooled, 4)))
    groups = groups_of(model, net.feeds())
    assert [(group.size, group.kept) for group in groups[:3]] == [(4, None), (3, None), (3, None)]
    for group, units in zip(groups, ([1], [0, 1], [2, 0]), strict=False):
        select(group, np.array(units))
    by_op = {node.op: node for node in model.graph.nodes}
    np.testing.assert_array_equal(value_of(by_op["Split"].inputs[1]), [1, 4])
    np.testing.assert_array_equal(value_of(by_op["Slice"].inputs[1]), [2])
    np.testing.assert_array_equal(value_of(by_op["Reshape"].inputs[1]), [-1, 128])
    run(model, net.feeds())


def test_declared_shapes_follow() -> None:
    net = Net()
    model = net.model(net.conv(net.activation(net.conv("x", 6)), 2))
    select(groups_of(model, net.feeds())[0], np.arange(4))
    assert [tensor.shape[1] for tensor in (node.outputs[0] for node in model.graph.nodes)] == [4, 4, 2]


def test_a_constant_that_others_read_is_not_edited_under_them() -> None:
    net = Net()
    bias = net.vector(6)
    first, second = (net.node("Conv", "x", net.weight(6, 3, 1, 1, fan_in=3), bias, channels=6) for _ in range(2))
    model = net.model(net.add(net.conv(first, 2), net.conv(second, 2)))
    groups = groups_of(model, net.feeds())
    select(groups[0], np.array([5, 1]))
    assert value_of(model.graph.nodes[0].inputs[2]).shape == (2,)
    assert value_of(model.graph.nodes[1].inputs[2]).shape == (6,)
    run(model, net.feeds())


def test_selecting_never_writes_into_an_array() -> None:
    net = Net()
    model = net.model(net.conv(net.conv("x", 6), 2))
    feeds = net.feeds()
    before, state = run(model, feeds), model.checkpoint()
    select(groups_of(model, feeds)[0], np.array([2, 1, 0]))
    state.restore()
    np.testing.assert_array_equal(run(model, feeds), before)


# -- what is pinned, and why ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("LRN", {"size": 3}, "no rule tells how LRN treats channels"),
        ("ArgMax", {"axis": 1}, "ArgMax over the channels"),
    ],
)
def test_operators_in_the_way_are_named(op: str, attributes: dict[str, Any], reason: str) -> None:
    net = Net()
    x = net.node(op, net.conv("x", 8), **attributes)
    x = net.node("Cast", x, to=1)
    groups = groups_of(net.model(x), net.feeds())
    assert groups[0].pinned == f"/{op.lower()}1: {reason}"


def test_tie_to_channels_that_cannot_be_followed_pins() -> None:
    net = Net(shape=(4, 8, 8))
    x = net.add("x", net.conv(net.conv("x", 6), 4))
    groups = named(groups_of(net.model(net.conv(x, 2)), net.feeds()))
    assert "its other operand x has channels that cannot be followed" in (groups["/conv1"].pinned or "")
    assert groups["/conv0"].pinned is None


def test_shared_weights_are_pinned_on_both_sides() -> None:
    net = Net()
    weight = net.weight(8, 8, 1, 1, fan_in=8)
    x = net.conv("x", 8)
    x = net.node("Conv", net.activation(net.node("Conv", x, weight)), weight)
    groups = groups_of(net.model(net.conv(x, 2)), net.feeds())
    assert groups[0].pinned == "/conv1: its weight is shared"
    assert all(group.pinned for group in groups if group.name != "/conv4")


def test_sizes_read_from_a_shape_follow_where_they_are_used_as_sizes() -> None:
    net = Net()
    x = net.conv("x", 4)
    pooled = net.node("GlobalAveragePool", x)
    size = net.node("Gather", net.node("Shape", x), net.constant([1], np.int64))
    flat = net.node("Reshape", pooled, net.node("Concat", net.constant([-1], np.int64), size, axis=0, channels=4))
    model = net.model(net.gemm(flat, 8))
    select(groups_of(model, net.feeds())[0], np.array([2, 0]))
    run(model, net.feeds())


def test_channels_computed_with_are_pinned() -> None:
    net = Net()
    x = net.conv("x", 4)
    size = net.node("Gather", net.node("Shape", x), net.constant([1], np.int64))
    sizes = net.node("Mul", size, net.constant([64], np.int64))
    target = net.node("Concat", net.constant([-1], np.int64), sizes, axis=0, channels=4)
    flat = net.node("Reshape", x, target, channels=256)
    groups = groups_of(net.model(net.gemm(flat, 2)), net.feeds())
    assert "number of channels is read from the shape" in (groups[0].pinned or "")


@pytest.mark.parametrize(("start", "end", "free"), [(0, 1, True), (2, 4, True), (0, 2, False), (1, -1, False)])
def test_a_stretch_of_a_shape_is_seen_through_casts(start: int, end: int, free: bool) -> None:
    net = Net()
    x = net.conv("x", 4)
    sizes = net.node("Cast", net.node("Shape", x), to=int(onnx.TensorProto.INT32))
    bounds = [net.constant([value], np.int64) for value in (start, end, 0, 1)]
    read = net.node("Cast", net.node("Slice", sizes, *bounds), to=1)
    y = net.conv(x, 2)
    group = groups_of(net.model(y, read), net.feeds(samples=1))[0]
    assert (group.pinned is None) == free


def test_a_shape_that_is_an_output_pins_the_channels() -> None:
    net = Net()
    x = net.conv("x", 4)
    shape = net.node("Cast", net.node("Shape", x), to=1)
    groups = groups_of(net.model(net.conv(x, 2), shape), net.feeds(samples=1))
    assert "number of channels is read from the shape" in (groups[0].pinned or "")


def test_control_flow_bodies_pin_what_they_read() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,3,4,4] x, bool c) => (float[N,8,4,4] y)
    <float[8,3,1,1] w, float[8,8,1,1] v> {
        a = Conv(x, w)
        b = If(c) <then_branch = t () => (float[N,8,4,4] o) { o = Relu(a) },
                   else_branch = e () => (float[N,8,4,4] p) { p = Neg(a) }>
        y = Conv(b, v)
    }
    """
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1, 1)), ("v", (8, 8, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = Model.from_proto(proto)
    observed = shapes.observed(model, {"x": np.zeros((1, 3, 4, 4), np.float32), "c": np.array(True)})
    assert dependency_groups(model, observed)[0].pinned == "a is used inside a control flow body"


def test_select_refuses_what_it_must() -> None:
    net = Net()
    model = net.model(net.conv(net.node("Softmax", net.conv("x", 6), axis=1), 2))
    kept, pinned = groups_of(model, net.feeds())
    select(kept, np.array([5, 4, 3, 2, 1, 0]))
    for group, order, message in (
        (kept, [0, 1], "Softmax over the channels"),
        (pinned, [1, 0], "is an output"),
        (kept, [0, 0], "not an order"),
        (kept, [6], "not an order"),
        (kept, [], "not an order"),
    ):
        with pytest.raises(ValueError, match=message):
            select(group, np.array(order))


def test_ten_thousand_nodes_are_followed() -> None:
    net = Net(shape=(16, 4, 4))
    net.rng = _Zeros()  # type: ignore[assignment]  # drawing eight million weights takes longer
    x = net.conv("x", 64, kernel=1)
    for _ in range(2000):
        x = net.activation(net.add(x, net.conv(net.activation(net.conv(x, 64, kernel=1)), 64, kernel=1)))
    model = net.model(net.conv(x, 8))
    size = {name: (1, channels, 4, 4) for name, channels in net.channels.items()}
    assert len(dependency_groups(model, size)) == 2002
