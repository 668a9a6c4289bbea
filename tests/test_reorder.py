"""Reorder: the same function in a better order, exact removals, and a reason for every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import UsageError
from onnxcomp.graph.constants import assign
from onnxcomp.graph.diagonal import equal_blocks
from onnxcomp.graph.idle import order_without
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.tiling import salience, untileable
from onnxcomp.linalg.tiles import fitted_block, masked_share
from onnxcomp.model import Model
from onnxcomp.passes import reorder
from onnxcomp.passes.reorder import Reorder
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime import session
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks
from tests.zoo import each_model, zoo_model

Array = np.ndarray[Any, Any]
WIDE = ("fashion_resnet", "mobilenetv2", "ppocr_rec", "minilm")  # with many channels, tiles have much to gain


def apply(model: Model, seed: int = 0, **options: Any) -> dict[str, tuple[str, str]]:
    """Run the pass; what it decided, by layer."""
    context = Context(target=Target.parse("x86-avx2"), seed=seed, scope="reorder")
    layers = [layer.name for layer in weighted_layers(model)]
    Reorder.with_options(options).run(model, context)
    assert sorted(decision.layer for decision in context.decisions) == sorted(layers)
    return {decision.layer: (decision.action, decision.reason) for decision in context.decisions}


def run(model: Model, feeds: dict[str, Array]) -> Array:
    onnx.checker.check_model(model.proto(), full_check=True)
    return np.asarray(next(iter(session.run(session.create(model), feeds).values())))


def assert_same(actual: Array, expected: Array, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * (1 + np.abs(expected).max()))


def objective(model: Model, block: tuple[int, int], rate: float = 0.5) -> float:
    """Masked share of all layers that have tiles, each weighing as much as it has weights."""
    total = 0.0
    for layer in weighted_layers(model):
        if untileable(layer) is None:
            matrix = salience(layer)
            total += layer.array().size * masked_share(matrix, fitted_block(matrix.shape, block), rate)
    return total


def layer_of(model: Model, name: str) -> WeightedLayer:
    return next(layer for layer in weighted_layers(model) if layer.name == name)


def set_zero(model: Model, name: str, outputs: Any = (), inputs: Any = (), bias: bool = True) -> None:
    layer = layer_of(model, name)
    weight = np.moveaxis(layer.array(), (layer.out_axis, layer.in_axis), (0, 1)).copy()
    weight[list(outputs)] = 0
    weight[:, list(inputs)] = 0
    layer.set_array(np.moveaxis(weight, (0, 1), (layer.out_axis, layer.in_axis)))
    if layer.bias is not None and bias:
        values = layer.node.inputs[2].values.copy()
        values[list(outputs)] = 0
        assign(layer.node.inputs[2], values)


def two_convs(hidden: int, activation: str = "Relu") -> Net:
    """conv0, an activation, conv2, and a classifier of its 8 channels."""
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", hidden), activation)
    net.gemm(net.flatten(net.conv(x, 8), positions=64), 5)
    return net


def convs(net: Net) -> list[str]:
    return [f"/{node.output[0]}" for node in net.nodes if node.op_type == "Conv"]


# -- the function stays, the objective falls ---------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(networks())
def test_any_network_computes_what_it_did_and_masks_no_more(net: Net) -> None:
    model, feeds = net.model(), net.feeds()
    expected, before = run(model, feeds), objective(model, (2, 2))
    apply(model, block=(2, 2), least_gain=0)
    assert_same(run(model, feeds), expected)
    assert objective(model, (2, 2)) <= before * (1 + 1e-9)


def test_planted_tiles_of_a_chain_of_layers_are_found() -> None:
    """Half of the 4 x 4 tiles of the middle one are light; its channels are shuffled."""
    rng = np.random.default_rng(0)
    net = Net(0, (4, 6, 6))
    x = net.activation(net.conv("x", 32))
    x = net.activation(net.conv(x, 32))
    net.conv(x, 4, kernel=1)
    model = net.model()
    light = np.kron(rng.permutation(np.arange(64) < 32).reshape(8, 8), np.ones((4, 4), dtype=bool))
    light = light[rng.permutation(32)][:, rng.permutation(32)]
    middle = layer_of(model, convs(net)[1])
    middle.set_array(np.where(light[:, :, None, None], 0.0438, 1.0) * middle.array())
    weights = salience(middle)
    oracle = float(weights[light].sum() / weights.sum())
    expected = run(model, net.feeds())
    decisions = apply(model, block=(4, 4), starts=4)
    after = masked_share(salience(layer_of(model, convs(net)[1])), (4, 4), 0.5)
    assert masked_share(weights, (4, 4), 0.5) > 0.3
    assert after <= 1.1 * oracle
    assert decisions[convs(net)[1]][0] == "permuted"
    assert f"-> {after:.3f}" in decisions[convs(net)[1]][1]
    assert_same(run(model, net.feeds()), expected)


def test_nothing_is_permuted_where_the_gain_is_too_small() -> None:
    net = two_convs(32)
    model = net.model()
    before = model.serialize()
    decisions = apply(model, least_gain=0.9)
    assert model.serialize() == before
    assert {action for action, _ in decisions.values()} == {"skipped"}
    assert "no other order of its channels gains over 90.0%" in decisions[convs(net)[0]][1]


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, two, other = (two_convs(32).model() for _ in range(3))
    apply(one, seed=1, starts=5)
    apply(two, seed=1, starts=5)
    apply(other, seed=2, starts=5)
    assert one.serialize() == two.serialize()
    np.testing.assert_allclose(objective(one, (8, 8)), objective(other, (8, 8)), rtol=0.1)


def test_without_dropping_calibration_data_only_show_the_shapes() -> None:
    net = two_convs(32)
    with_data, without = net.model(), net.model()
    data = Dataset.from_arrays(net.feeds(samples=5))
    Reorder(density=1).run(with_data, Context(target=Target.parse("x86-avx2"), data=data, scope="reorder"))
    apply(without)
    assert with_data.serialize() == without.serialize()


def test_it_can_be_rolled_back() -> None:
    model = two_convs(32).model()
    before, state = model.serialize(), model.checkpoint()
    apply(model)
    assert model.serialize() != before
    state.restore()
    assert model.serialize() == before


# -- idle channels -----------------------------------------------------------------------------------------


def test_channels_that_no_one_reads_are_removed() -> None:
    net = two_convs(40, "Sigmoid")
    first, second = convs(net)
    model = net.model()
    set_zero(model, second, inputs=range(5, 29))
    expected = run(model, net.feeds())
    decisions = apply(model)
    assert layer_of(model, first).shape[0] == layer_of(model, second).shape[1] == 16
    assert "lost 24 idle channels" in decisions[first][1]
    assert "lost 24 idle channels" in decisions[second][1]
    assert_same(run(model, net.feeds()), expected)


@pytest.mark.parametrize(
    ("activation", "bias", "left"),
    [("Relu", True, 24), ("Sigmoid", True, 24), ("Relu", False, 40)],  # one that is always 0.5 stays for all of them
)
def test_channels_that_are_zero_are_removed_if_they_are_constant(activation: str, bias: bool, left: int) -> None:
    net = two_convs(40, activation)
    first, second = convs(net)
    model = net.model()
    set_zero(model, first, outputs=range(0, 40, 2), bias=bias)
    expected = run(model, net.feeds())
    apply(model)
    assert layer_of(model, first).shape[0] == layer_of(model, second).shape[1] == left
    assert_same(run(model, net.feeds()), expected)


def test_idle_channels_stay_where_their_number_matters() -> None:
    net = Net(0, (3, 8, 8))
    x = net.node("Softmax", net.conv("x", 32), axis=1)
    net.gemm(net.flatten(net.conv(x, 8), positions=64), 5)
    model = net.model()
    set_zero(model, convs(net)[1], inputs=range(16))
    apply(model)
    assert layer_of(model, convs(net)[0]).shape[0] == 32


@pytest.mark.parametrize(
    ("size", "idle", "multiple", "kept"),
    [
        (40, 24, 8, 16),
        (40, 3, 8, 40),
        (20, 3, 8, 20),
        (20, 5, 8, 16),
        (32, 32, 8, 8),
        (6, 6, 8, 6),
        (7, 0, 1, 7),
    ],
)
def test_counts_stay_multiples(size: int, idle: int, multiple: int, kept: int) -> None:
    marks = np.arange(size) < idle
    order = order_without(marks, multiple)
    assert len(order) == kept
    assert (np.diff(order) > 0).all()
    assert set(np.flatnonzero(~marks)) <= set(order.tolist())


# -- block-diagonal weights --------------------------------------------------------------------------------


def shuffled_blocks(rng: np.random.Generator, count: int, outs: int, ins: int) -> Array:
    blocks = np.kron(np.eye(count, dtype=bool), np.ones((outs, ins), dtype=bool))
    return blocks[rng.permutation(len(blocks))][:, rng.permutation(blocks.shape[1])]


@pytest.mark.parametrize(("multiple", "count"), [(1, 4), (4, 4), (8, 2), (16, None)])
def test_blocks_are_found_and_joined_to_multiples(multiple: int, count: int | None) -> None:
    nonzero = shuffled_blocks(np.random.default_rng(0), 4, 4, 6 if multiple == 1 else 4)
    found = equal_blocks(nonzero, multiple)
    if count is None or found is None:
        assert found is count is None
        return
    outs, ins = nonzero.shape[0] // count, nonzero.shape[1] // count
    diagonal = np.kron(np.eye(count, dtype=bool), np.ones((outs, ins), dtype=bool))
    assert found.count == count
    assert not (nonzero[found.outputs][:, found.inputs] & ~diagonal).any()


def test_unequal_or_connected_parts_are_no_blocks() -> None:
    unequal = np.kron(np.eye(2, dtype=bool), np.ones((4, 4), dtype=bool))
    unequal[0, :] = False  # a line on its own
    assert equal_blocks(unequal, 1) is None
    assert equal_blocks(np.ones((4, 4), dtype=bool), 1) is None


def diagonal_net(last: bool) -> tuple[Model, Net]:
    """The second convolution falls apart into two blocks; with ``last`` its outputs are the model's."""
    net = Net(0, (3, 8, 8))
    x = net.conv(net.activation(net.conv("x", 16)), 16)
    if not last:
        net.conv(net.activation(x), 4)
    model = net.model()
    layer = layer_of(model, convs(net)[1])
    mask = shuffled_blocks(np.random.default_rng(1), 2, 8, 8)
    layer.set_array(layer.array() * mask[:, :, None, None])
    return model, net


def test_a_convolution_of_blocks_becomes_a_grouped_one() -> None:
    model, net = diagonal_net(last=False)
    expected, size = run(model, net.feeds()), len(model.serialize())
    decisions = apply(model)
    layer = layer_of(model, convs(net)[1])
    assert layer.groups == 2
    assert layer.shape == (16, 8, 3, 3)
    assert "split into 2 groups" in decisions[convs(net)[1]][1]
    assert len(model.serialize()) < size
    assert_same(run(model, net.feeds()), expected)


def test_blocks_whose_channels_are_pinned_are_only_reported() -> None:
    model, net = diagonal_net(last=True)
    expected = run(model, net.feeds())
    decisions = apply(model)
    assert layer_of(model, convs(net)[1]).groups == 1
    assert "falls apart into 2 independent blocks" in decisions[convs(net)[1]][1]
    assert_same(run(model, net.feeds()), expected)


# -- reasons and options -----------------------------------------------------------------------------------


def test_pinned_channels_are_told_why() -> None:
    net = Net(0, (8, 4, 4))
    net.conv("x", 16)
    ((action, reason),) = apply(net.model()).values()
    assert action == "skipped"
    assert "is an output of the model" in reason


def test_kernels_without_tiles_move_with_their_channels() -> None:
    net = Net(0, (3, 8, 8))
    x = net.depthwise(net.conv("x", 32))
    net.gemm(net.flatten(net.conv(x, 16), positions=64), 5)
    model = net.model()
    expected = run(model, net.feeds())
    action, reason = apply(model)[convs(net)[1]]
    assert action == "permuted"
    assert "no tiles of its own" in reason
    assert_same(run(model, net.feeds()), expected)


def test_a_group_of_too_many_channels_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder, "_MOST_UNITS", 16)
    net = two_convs(32)
    action, reason = apply(net.model())[convs(net)[0]]
    assert action == "skipped"
    assert "32 channels are too many" in reason


def test_large_groups_are_left_out_where_the_others_are_work_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reorder, "_MOST_WORK", 8 * 8 + 16 * 16 + 32 * 32)
    net = Net(0, (3, 8, 8))
    x = net.conv(net.conv(net.conv("x", 32), 16), 32)
    net.gemm(net.flatten(net.conv(x, 8), positions=64), 5)
    first, second, third, _ = convs(net)
    decisions = apply(net.model(), least_gain=0)
    assert decisions[first][0] == "permuted"
    assert f"moves with {first} and {second}" in decisions[second][1]
    assert f"moves with {second}:" in decisions[third][1]  # and not with its own 32 outputs


def test_options_are_checked_and_written_back() -> None:
    assert str(Reorder()) == "reorder"
    assert str(Reorder(block=(4, 16), rate=0.75)) == "reorder(block=(4, 16), rate=0.75)"
    for options in ({"block": (0, 8)}, {"block": 8}, {"rate": 1.0}, {"starts": 0}, {"tile": 8}):
        with pytest.raises(UsageError):
            Reorder.with_options(options)


# -- real models -------------------------------------------------------------------------------------------


@pytest.mark.zoo
@each_model
def test_real_models_compute_what_they_did(name: str) -> None:
    model = Model.load(zoo_model(name))
    feeds = made_up.synthetic(model, seed=1)
    expected = session.run(session.create(model), feeds)
    before = objective(model, (8, 8))
    decisions = apply(model, iterations=2)
    onnx.checker.check_model(model.proto())
    for output, value in session.run(session.create(model), feeds).items():
        assert_same(value, expected[output])
    after = objective(model, (8, 8))
    assert after <= before
    if name in WIDE:
        assert sum(action == "permuted" for action, _ in decisions.values()) >= 10
        assert after < 0.97 * before
