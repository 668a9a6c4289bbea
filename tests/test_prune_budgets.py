"""prune: budgets of speed, several rounds, whole branches, and scores of the weights alone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, PassError, UsageError
from onnxcomp.graph.branches import residual_branches, without
from onnxcomp.graph.constants import assign
from onnxcomp.graph.cost import cost
from onnxcomp.graph.groups import Group, dependency_groups
from onnxcomp.graph.importance import weight_removals
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passes.prune import Prune
from onnxcomp.runtime import session, shapes
from onnxcomp.runtime.layer_times import layer_times
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable
from tests.architectures import build
from tests.generate import Net

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
TARGET = Target.parse("x86-avx2")


def apply(
    model: Model, feeds: Feeds | None = None, timings: TimingTable | None = None, **options: Any
) -> dict[str, tuple[str, str]]:
    dataset = None if feeds is None else Dataset.from_arrays(feeds, model=model)
    context = Context(TARGET, dataset, scope="prune", timings=timings or TimingTable(measures=False))
    layers = [layer.name for layer in weighted_layers(model)]
    Prune.with_options(options).run(model, context)
    assert [decision.layer for decision in context.decisions] == layers
    onnx.checker.check_model(model.proto(), full_check=True)
    return {decision.layer: (decision.action, decision.reason) for decision in context.decisions}


def run(model: Model, feeds: Feeds) -> Array:
    return np.asarray(next(iter(session.run(session.create(model), feeds).values())))


def macs(model: Model, feeds: Feeds) -> float:
    return cost(model, shapes.observed(model, feeds)).flops / 2


def residual(seed: int = 0, width: int = 32, blocks: int = 3) -> Net:
    """A stem, residual blocks of two convolutions, and a classifier."""
    net = Net(seed, (3, 8, 8))
    x = net.activation(net.conv("x", width))
    for _ in range(blocks):
        x = net.add(x, net.conv(net.activation(net.conv(x, width)), width))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    return net


def scale_layer(model: Model, name: str, factor: float) -> None:
    layer = next(layer for layer in weighted_layers(model) if layer.name == name)
    layer.set_array(layer.array() * np.float32(factor))
    assert layer.bias is not None
    assign(layer.bias, np.asarray(layer.bias.values) * np.float32(factor))


# -- branches ----------------------------------------------------------------------------------------------


def test_a_branch_is_what_serves_one_operand_alone() -> None:
    net = residual(blocks=2)
    model, feeds = net.model(), net.feeds()
    found = residual_branches(model, shapes.observed(model, feeds))
    assert [(branch.name, [layer.name for layer in branch.layers], branch.axis) for branch in found] == [
        ("/add5", ["/conv4", "/conv2"], 1),
        ("/add9", ["/conv8", "/conv6"], 1),
    ]


def test_what_is_seen_elsewhere_is_no_branch() -> None:
    body = """(float[N,8] x) => (float[N,8] y, float[N,8] h) {
        h = MatMul(x, a)
        y = Add(h, x)
    }"""
    model = Model.from_proto(build(body, {"a": (8, 8)}))
    assert not residual_branches(model, {"x": (2, 8), "h": (2, 8), "y": (2, 8)})
    broadcast = """(float[N,8] x, float[1,8] s) => (float[N,8] y) {
        h = MatMul(s, a)
        y = Add(h, x)
    }"""
    model = Model.from_proto(build(broadcast, {"a": (8, 8)}))
    assert not residual_branches(model, {"x": (2, 8), "s": (1, 8), "h": (1, 8), "y": (2, 8)})


def test_a_constant_takes_the_place_of_a_branch() -> None:
    net = residual(blocks=1)
    model, feeds = net.model(), net.feeds()
    (branch,) = residual_branches(model, shapes.observed(model, feeds))
    scale_layer(model, "/conv4", 0.0)
    bias = net.rng.standard_normal(32).astype(np.float32)
    assign(branch.layers[0].bias, bias)
    expected = run(model, feeds)
    without(model, branch, bias.astype(np.float64))
    onnx.checker.check_model(model.proto(), full_check=True)
    assert [layer.name for layer in weighted_layers(model)] == ["/conv0", "/gemm8"]
    np.testing.assert_allclose(run(model, feeds), expected, rtol=1e-5, atol=1e-6)


def test_a_branch_that_adds_next_to_nothing_goes_whole() -> None:
    net = residual(1)
    model, feeds = net.model(), net.feeds(samples=64)
    scale_layer(model, "/conv8", 1e-3)
    expected, before = run(model, feeds), macs(model, feeds)
    decisions = apply(model, feeds, flops=0.25)
    assert decisions["/conv6"] == ("removed", "with all of the residual branch that /add9 added")
    assert decisions["/conv8"][0] == "removed"
    assert "/conv8" not in [layer.name for layer in weighted_layers(model)]
    assert macs(model, feeds) <= 0.75 * before
    assert np.square(run(model, feeds) - expected).sum() < 1e-4 * np.square(expected).sum()


def test_branches_stay_where_that_is_asked_for() -> None:
    net = residual(1)
    model, feeds = net.model(), net.feeds(samples=16)
    scale_layer(model, "/conv8", 1e-3)
    assert "removed" not in {action for action, _ in apply(model, feeds, flops=0.25, blocks=False).values()}


STREAM = """(float[N,6,8] x) => (float[N,6,5] y) {
    e = MatMul(x, w0)
    n = LayerNormalization <axis = -1> (e, s, b)
    h = MatMul(n, w1)
    r = Relu(h)
    m = MatMul(r, w2)
    a = Add(e, m)
    y = MatMul(a, w3)
}"""


def test_the_residual_stream_loses_channels_when_asked_to() -> None:
    weights = {"w0": (8, 32), "w1": (32, 32), "w2": (32, 32), "w3": (32, 5), "s": (32,), "b": (32,)}
    feeds = {"x": np.random.default_rng(0).standard_normal((64, 6, 8)).astype(np.float32)}
    for residual_too in (False, True):
        model = Model.from_proto(build(STREAM, weights))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnnxcompWarning)
            apply(model, feeds, flops=0.9, residual=residual_too, blocks=False)
        assert weighted_layers(model)[0].shape == (8, 8 if residual_too else 32)
        assert run(model, feeds).shape == (64, 6, 5)


# -- speed -------------------------------------------------------------------------------------------------


def test_without_times_speed_is_estimated_from_operations() -> None:
    net = residual(2)
    model, feeds = net.model(), net.feeds(samples=16)
    before = macs(model, feeds)
    apply(model, feeds, speedup=1.5, blocks=False, align=4)
    assert 0.8 * before / 1.5 < macs(model, feeds) <= before / 1.5


def test_the_same_table_of_times_gives_the_same_bytes() -> None:
    net = residual(3, width=16, blocks=1)
    feeds, first, second = net.feeds(samples=8), net.model(), net.model()
    table = TimingTable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        apply(first, feeds, table, speedup=1.2)
        replayed = TimingTable(table.used, "report.json", measures=False)
        apply(second, feeds, replayed, speedup=1.2)
    assert table.measured > 0
    assert replayed.measured == 0
    assert first.serialize() == second.serialize()


def test_a_speed_out_of_reach_is_said_to_be() -> None:
    net = residual(4)
    with pytest.warns(OnnxcompWarning, match=r"made the model [\d.]+x as fast, not 90x: no more channels may go"):
        apply(net.model(), net.feeds(samples=8), speedup=90, blocks=False)


def test_layers_are_timed_alone_at_half_of_their_channels() -> None:
    net = Net(5, (8, 8, 8))
    x = net.activation(net.depthwise(net.conv("x", 16)))
    x = net.conv(x, 12, groups=4)
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 6)
    model, feeds = net.model(), net.feeds()
    table = TimingTable()
    prices = layer_times(model, shapes.observed(model, feeds), table)
    assert prices is not None
    assert prices.layers is not None
    assert list(prices.layers) == [layer.name for layer in weighted_layers(model)]
    for price in prices.layers.values():
        assert 0.0 <= price.fixed <= 0.9 * price.whole
    assert prices.total == pytest.approx(sum(price.whole for price in prices.layers.values()))
    assert layer_times(model, shapes.observed(model, feeds), TimingTable(measures=False)) is None


# -- rounds ------------------------------------------------------------------------------------------------


def test_rounds_reach_the_budget_and_spare_a_quarter() -> None:
    net = residual(6)
    model, feeds = net.model(), net.feeds(samples=16)
    expected, before = run(model, feeds), macs(model, feeds)
    apply(model, feeds, flops=0.4, rounds=3, align=4, blocks=False)
    assert 0.5 * before < macs(model, feeds) <= 0.6 * before
    assert run(model, feeds).shape == expected.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        apply(model, feeds, flops=0.99, rounds=3, align=4, blocks=False)
    assert min(layer.shape[layer.out_axis] for layer in weighted_layers(model)[:-1]) >= 4


def test_rounds_of_one_model_fit_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a layer after two removals are the rows and columns of the very first one."""
    net = residual(7, blocks=1)
    model, feeds = net.model(), net.feeds(samples=64)
    scale = {"/conv2": 1.0}
    before = {layer.name: layer.array() for layer in weighted_layers(model)}
    monkeypatch.setattr("onnxcomp.linalg.reconstruct.DAMPINGS", (1e9,))  # nothing moves: only selection is left
    apply(model, feeds, flops=0.3, rounds=2, align=4, blocks=False)
    for layer in weighted_layers(model):
        if layer.name in scale and layer.shape[1] == before[layer.name].shape[1]:
            old = before[layer.name].reshape(len(before[layer.name]), -1)
            new = layer.array().reshape(layer.shape[0], -1)
            assert all(np.isclose(old, row, rtol=1e-4, atol=1e-6).all(axis=1).any() for row in new)


# -- scores of the weights ---------------------------------------------------------------------------------


def only_group(net: Net) -> Group:
    model, feeds = net.model(), net.feeds()
    return next(group for group in dependency_groups(model, shapes.observed(model, feeds)) if group.kept is None)


def test_the_geometric_median_goes_first() -> None:
    """Sum of distances to all other filters, by brute force."""
    net = Net(8, (3, 4, 4))
    net.conv(net.conv("x", 12, bias=False), 4)
    group = only_group(net)
    filters = next(slot for slot in group.slots if slot.role == "out").tensor.values.reshape(12, -1)
    distances = [sum(np.linalg.norm(one - other) for other in filters) for one in filters]
    (removal,) = weight_removals([group], [5], "median")
    assert removal.order.tolist() == np.argsort(distances)[:5].tolist()
    assert np.all(np.diff(removal.losses) > 0)


def test_the_smallest_scales_go_first() -> None:
    net = Net(9, (3, 4, 4))
    net.conv(net.batch_norm(net.conv("x", 12)), 4)
    group = only_group(net)
    factors = next(
        slot.tensor.values for slot in group.slots if slot.node.op == "BatchNormalization" and slot.index == 1
    )
    (removal,) = weight_removals([group], [12], "scale")
    assert removal.order.tolist() == np.argsort(np.abs(factors)).tolist()
    assert removal.losses[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("score", ["magnitude", "median", "scale"])
@pytest.mark.parametrize("with_data", [True, False])
def test_every_score_meets_the_budget(score: str, with_data: bool) -> None:
    net = residual(10)
    model, feeds = net.model(), net.feeds(samples=16)
    before = macs(model, feeds)
    apply(model, feeds if with_data else None, flops=0.3, score=score)
    assert macs(model, feeds) <= 0.7 * before


def test_losses_of_outputs_need_data() -> None:
    with pytest.raises(PassError, match="needs calibration data"):
        apply(residual(11).model(), score="obs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "wanda"}, "goes with the granularities element, N:M and block"),
        ({"score": "median", "granularity": "element"}, "goes with granularity='channel' alone"),
        ({"speedup": 1.5, "flops": 0.3}, "flops, sparsity and speedup exclude each other"),
        ({"speedup": 1.0}, "must be > 1"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prune.with_options(options)


# -- what must not go wrong --------------------------------------------------------------------------------


def test_speed_is_that_against_the_first_model_in_every_round() -> None:
    for rounds in (1, 3):
        net = residual(2)
        model, feeds = net.model(), net.feeds(samples=16)
        before = macs(model, feeds)
        apply(model, feeds, speedup=1.5, rounds=rounds, blocks=False, align=4)
        assert 0.8 * before / 1.5 < macs(model, feeds) <= before / 1.5


@pytest.mark.parametrize("share", [0.75, 0.9])
def test_branches_may_go_in_any_round(share: float) -> None:
    net = residual(1)
    model, feeds = net.model(), net.feeds(samples=16)
    scale_layer(model, "/conv8", 0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        apply(model, feeds, flops=share, rounds=3, align=4)


def test_a_branch_goes_where_channels_cannot() -> None:
    net = residual(1, width=8)
    model, feeds = net.model(), net.feeds(samples=64)
    scale_layer(model, "/conv8", 1e-3)
    decisions = apply(model, feeds, flops=0.25, align=8)
    assert decisions["/conv6"][0] == "removed"


def test_a_branch_that_ends_in_moved_axes_is_none() -> None:
    body = """(float[N,T,8] x) => (float[N,T,8] y) {
        t = Transpose <perm = [0, 2, 1]> (x)
        c = Conv <pads = [1, 1]> (t, w)
        b = Transpose <perm = [0, 2, 1]> (c)
        y = Add(b, x)
    }"""
    model = Model.from_proto(build(body, {"w": (8, 8, 3)}))
    feeds = {"x": np.zeros((2, 6, 8), np.float32)}
    assert not residual_branches(model, shapes.observed(model, feeds))


def test_few_samples_do_not_make_channels_free() -> None:
    """What one sample does not show is not for nothing."""
    net = Net(12, (32,))
    net.gemm(net.node("Relu", net.gemm(net.node("Relu", net.gemm("x", 64)), 64)), 8)
    model, fresh = net.model(), net.feeds(samples=200, seed=5)
    before = macs(model, net.feeds(samples=1))
    apply(model, net.feeds(samples=1), flops=0.3)
    assert macs(model, fresh) / 200 > 0.5 * before


def test_outputs_of_another_shape_do_not_stop_it() -> None:
    body = """(float[N,16] x) => (float[N,4] y, int64[2,M] z) {
        h = MatMul(x, w1)
        r = Relu(h)
        y = MatMul(r, w2)
        z = NonZero(y)
        u = Relu(y)
    }"""
    body = body.replace("z = NonZero(y)\n        u = Relu(y)", "u = Relu(y)\n        z = NonZero(u)")
    model = Model.from_proto(build(body, {"w1": (16, 32), "w2": (32, 4)}))
    feeds = {"x": np.random.default_rng(3).standard_normal((32, 16)).astype(np.float32)}
    assert apply(model, feeds, flops=0.25)["/MatMul0"][0] == "pruned"


def test_layers_of_functions_with_attributes_are_passed_by() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        net (float[N,8,6,6] x) => (float[N,4,5,5] y) {
            h = Conv(x, a)
            y = local.block <s: ints = [1, 1]> (h)
        }
        <opset_import: ["" : 18], domain: "local"> block <s> (x) => (y) {
            w = Constant <value = float[4,8,2,2] {0}> ()
            y = Conv <strides: ints = @s> (x, w)
        }"""
    weight = "{" + ",".join(["0.1"] * 128) + "}"
    proto = onnx.parser.parse_model(text.replace("{0}", weight))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), "a"))
    model = Model.from_proto(proto)
    feeds = {"x": np.ones((4, 8, 6, 6), np.float32)}
    dataset = Dataset.from_arrays(feeds, model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        Prune(flops=0.25).run(model, Context(TARGET, dataset, scope="prune"))
