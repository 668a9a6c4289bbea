"""Dependency groups of attention layers: heads are units, in every form that exporters write."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.model import Model
from onnxcomp.runtime import shapes
from tests import forms
from tests.architectures import build
from tests.generate import Net
from tests.grouping import assert_exact, checked, close, found, groups_of, outputs, silence

Array = np.ndarray[Any, Any]


# -- attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", forms.ATTENTION_FORMS)
def test_heads_are_units_in_every_form(form: str) -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    x = net.matmul("x", 12)
    groups = checked(net, net.matmul(forms.attention(net, x, width=24, heads=4, form=form), 3))
    packed = form in ("fused gather", "fused slice", "fused split", "channels first")
    heads = groups[1]
    assert (heads.size, heads.kept) == (4, None)
    assert sorted(slot.positions.shape[1] for slot in heads.slots) == ([6, 18, 18] if packed else [6] * 7)
    assert [group.size for group in groups] == [12, 4, 12, 3]
    assert [group.kept is None for group in groups] == [True, True, True, False]


def test_heads_of_weights_with_an_axis_of_heads() -> None:
    """As Keras writes attention: every projection is an Einsum with a weight (inputs, heads, channels of a head)."""

    def model() -> Model:
        body = """(float[N,5,12] x) => (float[N,5,12] y) {
            q0 = Einsum <equation = "nse,ehd->nshd"> (x, wq)
            q = Add(q0, bq)
            k = Einsum <equation = "nse,ehd->nshd"> (x, wk)
            v = Einsum <equation = "nse,ehd->nshd"> (x, wv)
            a = Einsum <equation = "nshd,nthd->nhst"> (q, k)
            p = Softmax <axis = -1> (a)
            o = Einsum <equation = "nhst,nthd->nshd"> (p, v)
            z = Einsum <equation = "nshd,hde->nse"> (o, wo)
            y = MatMul(z, w)
        }"""
        heads = dict.fromkeys(("wq", "wk", "wv"), (12, 3, 4))
        return Model.from_proto(build(body, {**heads, "bq": (3, 4), "wo": (3, 4, 8), "w": (8, 12)}))

    assert_exact(model(), tokens())
    assert found(groups_of(model(), tokens()))[:2] == [(3, [1] * 5, True), (8, [1, 1], True)]


@pytest.mark.parametrize("shape", [(1, 12, 8), (3, 12, 8)])
def test_weights_for_each_head_are_followed(shape: tuple[int, ...]) -> None:
    net = Net(shape=(3, 5, 12))
    net.channels["x"] = 12
    hidden = net.node("MatMul", "x", net.weight(*shape, fan_in=12), channels=8)
    groups = checked(net, net.matmul(net.activation(hidden, "Sigmoid"), 4))
    assert found(groups)[0] == (8, [1, 1], True)


def test_a_weight_on_the_left_has_rows_for_channels() -> None:
    body = "(float[32,N] x) => (float[16,N] y) { h = MatMul(w1, x)  r = Relu(h)  y = MatMul(w2, r) }"
    model = Model.from_proto(build(body, {"w1": (48, 32), "w2": (16, 48)}))
    feeds = {"x": np.random.default_rng(1).standard_normal((32, 6)).astype(np.float32)}
    state, before = model.checkpoint(), outputs(model, feeds)
    group = dependency_groups(model, shapes.observed(model, feeds))[0]
    assert (group.size, [slot.axis for slot in group.slots], group.kept) == (48, [0, 1], None)
    select(group, np.arange(47, -1, -1))
    close(outputs(model, feeds), before)
    state.restore()
    silence(dependency_groups(model, shapes.observed(model, feeds))[0], 5)
    silent = outputs(model, feeds)
    state.restore()
    select(dependency_groups(model, shapes.observed(model, feeds))[0], np.delete(np.arange(48), 5))
    close(outputs(model, feeds), silent)


def test_a_scale_read_from_the_shape_of_a_head_leaves_heads() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    query, key, value = (forms._heads(net, net.matmul("x", 12), 3, [0, 2, 1, 3]) for _ in range(3))
    width = net.node("Gather", net.node("Shape", query), net.constant(-1, np.int64))
    root = net.node("Sqrt", net.node("Cast", width, to=1))
    scores = net.node("MatMul", net.node("Div", query, root), net.node("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = net.node("Transpose", net.node("MatMul", net.node("Softmax", scores), value), perm=[0, 2, 1, 3])
    groups = checked(net, net.matmul(forms.reshaped(net, mixed, [0, 0, 12], 12), 4))
    assert found(groups)[0] == (3, [4] * 7, True)


def test_a_mask_that_differs_from_head_to_head_goes_with_them() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    mask = np.random.default_rng(0).standard_normal((1, 3, 5, 5))
    groups = checked(net, net.matmul(forms.attention(net, "x", 6, 3, mask=mask), 4))
    assert groups[0].size == 3
    assert ("Add", 1) in {(slot.node.op, slot.positions.shape[1]) for slot in groups[0].slots}


def test_a_single_head_has_its_channels_for_units() -> None:
    """Queries and keys together, values on their own."""
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    query, key, value = (net.matmul("x", 8) for _ in range(3))
    scores = net.node("Softmax", net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1])), axis=-1)
    groups = checked(net, net.matmul(net.node("MatMul", scores, value, channels=8), 4))
    assert found(groups)[:2] == [(8, [1] * 4, True), (8, [1] * 3, True)]


def test_keys_that_all_heads_share_stay_and_heads_of_queries_go() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    heads, each = 3, 4
    query = forms._heads(net, net.matmul("x", heads * each), heads, [0, 2, 1, 3])
    shared = [net.node("Unsqueeze", net.matmul("x", each), net.constant([1], np.int64)) for _ in range(2)]
    scores = net.node("MatMul", query, net.node("Transpose", shared[0], perm=[0, 1, 3, 2]))
    mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), shared[1])
    joined = forms.reshaped(net, net.node("Transpose", mixed, perm=[0, 2, 1, 3]), [0, -1, 12], 12)
    groups = {group.name: group for group in groups_of(net.model(net.matmul(joined, 4)), net.feeds())}
    assert groups["/matmul4"].kept is not None
    assert "MatMul over the channels" in groups["/matmul4"].kept


def test_two_reshapes_that_share_their_computed_shape() -> None:
    """As exporters write ``view(*x.shape[:2], heads, -1)``, with common subexpressions joined."""
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    sizes = [net.node("Gather", net.node("Shape", "x"), net.constant([axis], np.int64)) for axis in (0, 1)]
    target = net.node("Concat", *sizes, net.constant([3], np.int64), net.constant([4], np.int64), axis=0)
    split = [net.node("Reshape", net.matmul("x", 12), target) for _ in range(3)]
    query, key, value = (
        net.node("Transpose", part, perm=perm)
        for part, perm in zip(split, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = net.node("Softmax", net.node("MatMul", query, key), axis=-1)
    mixed = net.node("Transpose", net.node("MatMul", scores, value), perm=[0, 2, 1, 3])
    joined = net.node("Concat", *sizes, net.constant([12], np.int64), axis=0)
    groups = checked(net, net.matmul(net.node("Reshape", mixed, joined, channels=12), 4))
    assert found(groups)[0] == (3, [4] * 7, True)


def test_a_computed_shape_that_other_axes_have_too_holds_the_channels() -> None:
    net = Net(shape=(5, 12))
    net.channels["x"] = 12
    sizes = [net.node("Gather", net.node("Shape", "x"), net.constant([axis], np.int64)) for axis in (0, 1)]
    target = net.node("Concat", *sizes, net.constant([3], np.int64), net.constant([4], np.int64), axis=0)
    plain = net.node("Reshape", "x", target)
    x = forms.reshaped(net, net.node("Reshape", net.matmul("x", 12), target), [0, 0, 12], 12)
    group = groups_of(net.model(net.matmul(x, 4), plain), net.feeds())[0]
    assert "/concat4: it gives a size that is used for other axes too" in (group.pinned or "")


ATTENTION = "(float[N,5,12] x) => (float[N,5,12] y) {{ {projections} {core} y = MatMul(o, p) }}"
PROJECTIONS = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"


def operator_model(core: str, query: int, keys: int, opset: int = 17, **weights: Any) -> Model:
    ir_version = 11 if opset > 22 else 8
    matrices = {"wq": (12, query), "wk": (12, keys), "wv": (12, keys), "p": (query, 12)}
    body = ATTENTION.format(projections=PROJECTIONS, core=core)
    return Model.from_proto(build(body, {**matrices, **weights}, opset, ir_version))


def tokens() -> dict[str, Array]:
    return {"x": np.random.default_rng(1).standard_normal((2, 5, 12)).astype(np.float32)}


@pytest.mark.parametrize(
    ("core", "query", "keys", "opset", "multiplicities"),
    [
        ("o = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v)", 12, 12, 17, [4, 4, 4, 4]),
        ("o = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v, b)", 12, 12, 17, [4, 4, 4, 12, 4]),
        ("o = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v)", 12, 12, 23, [4, 4, 4, 4]),
        ("o = Attention <q_num_heads = 6, kv_num_heads = 3> (q, k, v)", 24, 12, 23, [8, 4, 4, 8]),
    ],
)
def test_heads_of_attention_operators(core: str, query: int, keys: int, opset: int, multiplicities: list[int]) -> None:
    def model() -> Model:
        return operator_model(core, query, keys, opset, **({"b": (36,)} if ", b)" in core else {}))

    assert_exact(model(), tokens())
    assert found(groups_of(model(), tokens()))[0] == (3, multiplicities, True)


def test_heads_of_packed_attention() -> None:
    body = """(float[N,5,12] x) => (float[N,5,12] y) {
        o = com.microsoft.Attention <num_heads = 3, qkv_hidden_sizes = [12, 12, 24]> (x, w, b)
        y = MatMul(o, p)
    }"""
    weights = {"w": (12, 48), "b": (48,), "p": (24, 12)}

    def model() -> Model:
        return Model.from_proto(build(body, weights))

    assert_exact(model(), tokens())
    assert found(groups_of(model(), tokens()))[0] == (3, [16, 16, 8], True)
    changed = model()
    select(groups_of(changed, tokens())[0], np.array([2, 0]))
    attributes = changed.graph.nodes[0].attrs
    assert (attributes["num_heads"], list(attributes["qkv_hidden_sizes"])) == (2, [8, 8, 16])


def test_attention_over_keys_of_earlier_steps_is_pinned() -> None:
    core = "o, ek = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v) z = ReduceSum(ek) o2 = Add(o, z)"
    group = groups_of(operator_model(core.replace("o2", "u"), 12, 12, 23), tokens())[0]
    assert group.pinned == "/Attention3: it gives out keys and values of earlier steps"


def test_operators_that_onnx_runtime_fuses() -> None:
    """Bias and activation, or sum and normalization, in one."""

    def model() -> Model:
        body = """(float[N,5,12] x) => (float[N,5,4] y) {
            a = MatMul(x, w1)
            h = MatMul(a, w2)
            g = com.microsoft.BiasGelu(h, b)
            r = MatMul(g, w3)
            s = com.microsoft.SkipLayerNormalization(a, r, scale, shift)
            y = MatMul(s, w4)
        }"""
        weights = {"w1": (12, 8), "w2": (8, 16), "b": (16,), "w3": (16, 8), "w4": (8, 4), "scale": (8,), "shift": (8,)}
        return Model.from_proto(build(body, weights))

    assert_exact(model(), tokens())
    groups = groups_of(model(), tokens())
    assert found(groups)[:2] == [(8, [1] * 6, False), (16, [1] * 3, True)]
    assert groups[0].kept == "/SkipLayerNormalization4: SkipLayerNormalization over the channels"


# -- groups are as large as can be ---------------------------------------------------------------------------


def exchange(first: Group, one: int, second: Group, other: int) -> None:
    """Two units take each other's place, in every constant."""
    for mine, yours in zip(first.slots, second.slots, strict=True):
        value = value_of(mine.tensor)
        source = np.arange(value.shape[mine.axis])
        here, there = mine.positions[one], yours.positions[other]
        source[here], source[there] = there, here
        assign(mine.tensor, np.take(value, source, axis=mine.axis))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.permutations(range(3)), min_size=2, max_size=5))
def test_heads_whose_keys_lie_in_different_orders_cannot_be_exchanged(orders: list[list[int]]) -> None:
    """By brute force: two heads are of one group exactly where their exchange leaves the outputs."""
    net, heads = Net(shape=(4, 6)), len(orders)
    net.channels["x"] = 6
    query, key, value = (net.matmul("x", 3 * heads) for _ in range(3))
    shuffled = [3 * head + place for head, order in enumerate(orders) for place in order]
    key = net.node("Gather", key, net.constant(shuffled, np.int64), axis=2, channels=3 * heads)
    query, key, value = (
        forms._heads(net, part, heads, perm)
        for part, perm in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3]))
    )
    mixed = net.node("MatMul", net.node("Softmax", net.node("MatMul", query, key), axis=-1), value)
    joined = forms.reshaped(net, net.node("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, -1], 3 * heads)
    model, feeds = net.model(net.matmul(joined, 4)), net.feeds()
    state, before = model.checkpoint(), outputs(model, feeds)
    groups = [group for group in groups_of(model, feeds) if group.pinned is None]
    assert sum(group.size for group in groups) == heads
    units = [(group, unit) for group in groups for unit in range(group.size)]
    for (first, one), (second, other) in itertools.combinations(units, 2):
        exchange(first, one, second, other)
        after = outputs(model, feeds)
        same = all(np.allclose(after[name], before[name], atol=1e-5) for name in before)
        assert same == (first is second)
        state.restore()
