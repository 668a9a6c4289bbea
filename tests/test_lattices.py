"""Dependency groups of channels that lie on several axes: what is found in each form, and that edits are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.groups import dependency_groups, select
from onnxcomp.model import Model
from tests import forms
from tests.architectures import build
from tests.generate import Net
from tests.grouping import assert_exact, checked, found, groups_of

Array = np.ndarray[Any, Any]


# -- other operators -----------------------------------------------------------------------------------------


def test_channel_shuffle_ties_the_same_place_of_each_part() -> None:
    net = Net()
    x = forms.shuffle(net, net.conv(net.conv("x", 6), 12), 3, 8, 8)
    groups = checked(net, net.conv(x, 2))
    assert found(groups) == [(6, [1, 1, 1], True), (4, [3, 3, 3], True), (2, [1, 1], False)]
    np.testing.assert_array_equal(groups[1].slots[0].positions[1], [1, 5, 9])


def test_group_norm_loses_whole_groups() -> None:
    net = Net()
    groups = checked(net, net.conv(forms.group_norm(net, net.conv("x", 12), 4), 2))
    assert found(groups) == [(4, [3, 3, 1, 1, 3, 3, 3], True), (2, [1, 1], False)]
    np.testing.assert_array_equal(groups[0].slots[0].positions[1], [3, 4, 5])


def test_group_normalization_operator() -> None:
    def model() -> Model:
        body = """(float[N,3,8,8] x) => (float[N,?,?,?] y) {
            a = Conv(x, w)
            g = GroupNormalization <num_groups = 4> (a, s, b)
            y = Conv(g, v)
        }"""
        weights = {"w": (12, 3, 1, 1), "s": (12,), "b": (12,), "v": (3, 12, 1, 1)}
        return Model.from_proto(build(body, weights, 21, 10))

    assert_exact(model(), Net().feeds())
    groups = groups_of(model(), Net().feeds())
    assert found(groups)[0] == (4, [3, 3, 3, 3], True)


def test_group_normalization_of_one_group_keeps_all() -> None:
    body = """(float[N,3,8,8] x) => (float[N,?,?,?] y) {
        a = Conv(x, w)
        g = GroupNormalization <num_groups = 1> (a, s, b)
        y = Conv(g, v)
    }"""
    model = Model.from_proto(build(body, {"w": (12, 3, 1, 1), "s": (12,), "b": (12,), "v": (3, 12, 1, 1)}, 21, 10))
    group = groups_of(model, Net().feeds())[0]
    assert (group.size, group.pinned, group.kept) == (
        12,
        None,
        "/GroupNormalization1: GroupNormalization over the channels",
    )
    assert_exact(model, Net().feeds())


def test_gathered_channels_are_renumbered() -> None:
    net = Net()
    x = forms.gathered(net, net.conv("x", 6), [5, 0, 2, 2, -3])
    model = net.model(net.conv(x, 3))
    groups = groups_of(model, net.feeds())
    assert [group.size for group in groups] == [3, 2, 1, 3]  # picked once, never, twice
    select(groups[0], np.array([2, 0]))
    indices = value_of(next(node for node in model.graph.nodes if node.op == "Gather").inputs[1])
    assert len(indices) == 4
    assert_exact(net.model(), net.feeds(), repeats=False)


def test_steps_halves_and_depth() -> None:
    net = Net()
    x = forms.strided(net, net.conv("x", 8))
    x = forms.halves(net, net.conv(x, 12))
    x = forms.through_depth(net, net.conv(x, 8), "CRD")
    x = forms.through_depth(net, net.conv(x, 8))
    groups = checked(net, net.conv(forms.tiled(net, x), 3))
    assert [(group.size, group.slots[0].positions.shape[1]) for group in groups] == [
        (4, 2),
        (6, 2),
        (2, 4),
        (2, 4),
        (3, 1),
    ]


def test_pixel_shuffle_of_reshapes_ties_what_becomes_one_channel() -> None:
    net = Net(shape=(3, 4, 4))
    split = forms.reshaped(net, net.conv("x", 12), [-1, 3, 2, 2, 4, 4])
    turned = net.node("Transpose", split, perm=[0, 1, 4, 2, 5, 3])
    groups = checked(net, net.conv(forms.reshaped(net, turned, [-1, 3, 8, 8], 3), 4))
    assert found(groups)[0] == (3, [4, 4, 1], True)


@pytest.mark.parametrize("side", [8, 2048])
def test_large_pictures_take_no_large_lattices(side: int) -> None:
    """Both a GroupNormalization and a pixel shuffle, on pictures of which one is too large to be followed in full."""
    net = Net(shape=(3, side, side))
    x = forms.group_norm(net, net.conv("x", 24), 4)
    split = forms.reshaped(net, net.conv(x, 12), [-1, 3, 2, 2, side, side])
    turned = net.node("Transpose", split, perm=[0, 1, 4, 2, 5, 3])
    large = forms.reshaped(net, turned, [-1, 3, 2 * side, 2 * side], 3)
    y = net.conv(large, 4)
    observed = {name: (1, size, side, side) for name, size in net.channels.items()}
    observed |= {
        "reshape1": (1, 4, 6 * side**2),
        "instancenormalization2": (1, 4, 6 * side**2),
        "shape3": (4,),
        split: (1, 3, 2, 2, side, side),
        turned: (1, 3, side, 2, side, 2),
        large: (1, 3, 2 * side, 2 * side),
        y: (1, 4, 2 * side, 2 * side),
    }
    groups = dependency_groups(net.model(y), observed)
    assert [(group.size, group.slots[0].positions.shape[1]) for group in groups] == [(4, 6), (3, 4), (4, 1)]


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_hidden_units(op: str, directions: int) -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    groups = checked(net, net.matmul(forms.recurrent(net, net.matmul("x", 8), 6, op, directions), 4))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    assert found(groups)[0] == (8, [1, 1, 1], True)
    assert found(groups)[1] == (6, [gates, gates, 1, 2 * gates, directions], True)


@pytest.mark.parametrize("op", ["Expand", "ConstantOfShape"])
def test_initial_states_of_zeros_shrink_with_the_units(op: str) -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    batch = net.node("Gather", net.node("Shape", "x"), net.constant([0], np.int64))
    size = net.node("Concat", net.constant([1], np.int64), batch, net.constant([6], np.int64), axis=0)
    state = net.node("Expand", net.constant([[[0.0]]]), size) if op == "Expand" else net.node("ConstantOfShape", size)
    groups = checked(net, net.matmul(forms.recurrent(net, "x", 6, "GRU", 1, state), 4))
    assert found(groups)[0] == (6, [3, 3, 1, 6, 1], True)


def test_heads_next_to_samples_on_one_axis() -> None:
    """As torch.nn.MultiheadAttention writes them: (L, N, E) to (L, N · heads, D), with N · heads computed."""
    net = Net(shape=(3, 12))
    net.channels["x"] = 12
    x = net.node("Transpose", "x", perm=[1, 0, 2])
    sizes = [net.node("Gather", net.node("Shape", x), net.constant(axis, np.int64)) for axis in (0, 1)]
    joined = net.node("Mul", sizes[1], net.constant(4, np.int64))
    length, both = (net.node("Unsqueeze", size, net.constant([0], np.int64)) for size in (sizes[0], joined))
    target = net.node("Concat", length, both, net.constant([3], np.int64), axis=0)
    query, key, value = (
        net.node("Transpose", net.node("Reshape", net.matmul(x, 12), target), perm=perm)
        for perm in ([1, 0, 2], [1, 2, 0], [1, 0, 2])
    )
    mixed = net.node("MatMul", net.node("Softmax", net.node("MatMul", query, key), axis=-1), value)
    turned = net.node("Transpose", mixed, perm=[1, 0, 2])
    back = net.node("Concat", length, net.constant([-1], np.int64), net.constant([12], np.int64), axis=0)
    groups = checked(net, net.matmul(net.node("Reshape", turned, back, channels=12), 4))
    assert found(groups)[0] == (4, [3] * 7, True)


@pytest.mark.parametrize("equation", ["nshd,nthd->nhst", "nshd,nthe->nhst"])
def test_einsum_of_two_activations(equation: str) -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    query, key = (forms.reshaped(net, net.matmul("x", 12), [0, -1, 3, 4]) for _ in range(2))
    scores = net.node("Softmax", net.node("Einsum", query, key, equation=equation), axis=-1)
    value = forms.reshaped(net, net.matmul("x", 12), [0, -1, 3, 4])
    mixed = net.node("Einsum", scores, value, equation="nhst,nthd->nshd")
    groups = checked(net, net.matmul(forms.reshaped(net, mixed, [0, -1, 12], 12), 4))
    assert found(groups)[0] == (3, [4] * 7, True)


def test_a_token_for_every_sample_moves_with_the_others() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    batch = net.node("Gather", net.node("Shape", "x"), net.constant([0], np.int64))
    size = net.node("Concat", batch, net.constant([1], np.int64), net.constant([8], np.int64), axis=0)
    token = net.node("Expand", net.constant(np.ones((1, 1, 8))), size)
    x = net.node("Concat", token, net.matmul("x", 8), axis=1, channels=8)
    groups = checked(net, net.matmul(x, 4))
    assert found(groups)[0] == (8, [1, 1, 1, 1], True)


# -- any chain -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_of_reshapes_and_transposes(data: st.DataObject) -> None:
    """Axes split, joined, moved, and operators between that work along one of them."""
    net = Net(data.draw(st.integers(0, 100)), shape=(3, 2, 4))
    sizes = [data.draw(st.sampled_from([4, 6, 8, 12])), 2, 4]
    x = net.conv("x", sizes[0])
    for _ in range(data.draw(st.integers(1, 7))):
        x, sizes = _rearranged(data, net, x, sizes)
    count = int(np.prod(sizes))
    model, feeds = net.model(net.gemm(forms.reshaped(net, x, [-1, count], count), 5)), net.feeds()
    assert_exact(model, feeds, repeats=False)


def _rearranged(data: st.DataObject, net: Net, x: str, sizes: list[int]) -> tuple[str, list[int]]:
    axis = data.draw(st.integers(0, len(sizes) - 1))
    action = data.draw(st.sampled_from(["split", "join", "move", "any", "softmax", "mean", "scale", "slice"]))
    if action == "split":
        first = data.draw(st.sampled_from([size for size in range(1, sizes[axis] + 1) if sizes[axis] % size == 0]))
        sizes = [*sizes[:axis], first, sizes[axis] // first, *sizes[axis + 1 :]]
        return forms.reshaped(net, x, [-1, *sizes]), sizes
    if action == "join" and axis:
        sizes = [*sizes[: axis - 1], sizes[axis - 1] * sizes[axis], *sizes[axis + 1 :]]
        return forms.reshaped(net, x, [-1, *sizes]), sizes
    if action == "move":
        order = data.draw(st.permutations(range(len(sizes))))
        return net.node("Transpose", x, perm=[0, *(at + 1 for at in order)]), [sizes[at] for at in order]
    if action == "any":
        sizes = data.draw(st.permutations(sizes))
        return forms.reshaped(net, x, [-1, *sizes]), list(sizes)
    if action == "softmax":
        return net.node("Softmax", x, axis=axis + 1), sizes
    if action == "mean":
        return net.node("Sub", x, net.node("ReduceMean", x, axes=[axis + 1])), sizes
    if action == "scale":
        factors = net.rng.uniform(0.5, 2, [size if at == axis else 1 for at, size in enumerate(sizes)])
        return net.node("Mul", x, net.constant(factors)), sizes
    if action == "slice" and sizes[axis] > 2:
        bounds = [net.constant([value], np.int64) for value in (1, 2**62, axis + 1)]
        return net.node("Slice", x, *bounds), [*sizes[:axis], sizes[axis] - 1, *sizes[axis + 1 :]]
    return net.node("Tanh", x), sizes


# -- what stands in the way ----------------------------------------------------------------------------------


def test_lattices_that_disagree_are_pinned_with_both_reasons() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    x = forms.reshaped(net, net.matmul("x", 12), [0, -1, 3, 4])
    x = net.node("Softmax", net.node("Softmax", x, axis=2), axis=3)
    groups = groups_of(net.model(net.matmul(forms.reshaped(net, x, [0, -1, 12], 12), 4)), net.feeds())
    reason = "/reshape2: it makes 3 x 4 of the channels, none of which can go without all "
    assert groups[0].pinned == reason + "(/softmax3: Softmax over the channels; /softmax4: Softmax over the channels)"


def test_one_matrix_for_all_heads_leaves_whole_heads() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    x = forms.reshaped(net, net.matmul("x", 12), [0, -1, 3, 4])
    net.channels[x] = 4
    y = net.matmul(x, 4, bias=False)
    groups = checked(net, net.matmul(forms.reshaped(net, y, [0, -1, 12], 12), 4))
    assert found(groups)[0][0] == 3
    assert groups[1].pinned == "/matmul3: it multiplies each part of the channels with one matrix"
