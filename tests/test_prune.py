"""prune: what goes is what costs least, the others make up for it, and the budget is met or said not to be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, UsageError
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.graph.groups import Group, dependency_groups
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model
from onnxcomp.passes.fold import Fold
from onnxcomp.passes.prune import Prune
from onnxcomp.passes.quant import Quant
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime import session, shapes
from onnxcomp.runtime.channels import Candidates
from onnxcomp.runtime.target import Target
from tests.generate import ZERO_PRESERVING, Net, networks

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
ROOT = Path(__file__).parents[1]
CACHE = Path.home() / ".cache" / "onnxcomp"
TARGET = Target.parse("x86-avx2")


def apply(model: Model, data: Dataset | Feeds | None = None, **options: Any) -> dict[str, tuple[str, str]]:
    """Run the pass; what it decided, by layer: all that there were, each once."""
    dataset = Dataset.from_arrays(data, model=model) if isinstance(data, dict) else data
    context = Context(target=TARGET, data=dataset, scope="prune")
    layers = [layer.name for layer in weighted_layers(model)]
    Prune.with_options(options).run(model, context)
    assert [decision.layer for decision in context.decisions] == layers
    assert all(decision.reason for decision in context.decisions)
    onnx.checker.check_model(model.proto(), full_check=True)
    return {decision.layer: (decision.action, decision.reason) for decision in context.decisions}


def run(model: Model, feeds: Feeds) -> Array:
    return np.asarray(next(iter(session.run(session.create(model), feeds).values())))


def relative_error(model: Model, feeds: Feeds, expected: Array) -> float:
    return float(np.square(run(model, feeds) - expected).sum() / np.square(expected).sum())


def cost_of(model: Model) -> Cost:
    return cost(model, shapes.observed(model, made_up.synthetic(model)))


def layer_of(model: Model, name: str) -> WeightedLayer:
    return next(layer for layer in weighted_layers(model) if layer.name == name)


def free_groups(model: Model, feeds: Feeds) -> list[Group]:
    observed = shapes.observed(model, {name: value[:1] for name, value in feeds.items()})
    return [group for group in dependency_groups(model, observed) if group.kept is None]


def text(model: Model) -> list[str]:
    """Each node as its operator with the shapes of its constants, of one element or more."""
    lines = []
    for node in model.graph.nodes:
        constants = [value for tensor in node.inputs if (value := value_of(tensor)) is not None]
        lines.append(" ".join([node.op, *("x".join(map(str, value.shape)) for value in constants)]))
    return lines


def chain(seed: int = 0, width: int = 16) -> Net:
    """Three convolutions with Relu, and a classifier of what they pool."""
    net = Net(seed, (3, 8, 8))
    x = "x"
    for _ in range(3):
        x = net.activation(net.conv(x, width))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    return net


# -- what goes ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    networks(ZERO_PRESERVING), st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["flops", "sparsity"])
)
def test_channels_that_are_zero_go_and_the_outputs_stay(net: Net, random: Any, with_data: bool, unit: str) -> None:
    model, feeds = net.model(), net.feeds(samples=12)
    groups = [group for group in free_groups(model, feeds) if group.size >= 4]
    groups = [group for group in groups if any(slot.role == "in" for slot in group.slots)]
    groups = [group for group in groups if all(slot.layer.kind != "other" for slot in group.slots if slot.layer)]
    assume(groups)
    for group in random.sample(groups, random.randint(1, len(groups))):
        most = group.size - -(-group.size // 4)
        _set_zero(group, np.array(random.sample(range(group.size), random.randint(1, most))))
    before = sum(_zero_outputs(model).values())
    assume(before)
    expected = run(model, feeds)
    # Every part of the calibration data wakes the same channels as what is compared below.
    calibration = {name: np.concatenate([value] * 4) for name, value in feeds.items()}
    apply(model, calibration if with_data else None, **{unit: 1e-9}, align=1)
    assert sum(_zero_outputs(model).values()) < before
    if not with_data:  # else channels that the samples never wake may have gone instead
        assert not any(_zero_outputs(model).values())
    np.testing.assert_allclose(run(model, feeds), expected, rtol=0, atol=1e-5 * (1 + np.abs(expected).max()))


def _set_zero(group: Group, units: Array) -> None:
    for slot in group.slots:
        if slot.role != "in":
            value = value_of(slot.tensor).copy()
            np.moveaxis(value, slot.axis, 0)[slot.positions[units].reshape(-1)] = 0
            assign(slot.tensor, value)


def _zero_outputs(model: Model) -> dict[str, int]:
    """Outputs of each layer that it gives no weight."""
    layers = [layer for layer in weighted_layers(model) if layer.kind != "other"]
    return {layer.name: int((layer.matrix() == 0).all(axis=2).sum()) for layer in layers}


def doubled(seed: int = 0) -> tuple[Net, Model]:
    """The last 8 outputs of the first convolution are the first 8 once more."""
    net = chain(seed)
    model = net.model()
    layer = weighted_layers(model)[0]
    layer.set_array(np.concatenate([layer.array()[:8]] * 2))
    assert layer.bias is not None
    assign(layer.bias, np.concatenate([value_of(layer.bias)[:8]] * 2))
    return net, model


def test_what_a_twin_can_give_goes_at_nearly_no_loss() -> None:
    net, model = doubled()
    feeds, others = net.feeds(samples=24), net.feeds(samples=8, seed=2)
    expected, plain = run(model, others), doubled()[1]
    first = weighted_layers(model)[0]
    decisions = apply(model, feeds, flops=0.2, align=8)
    assert decisions[first.name] == ("pruned", "16 -> 8 outputs")
    assert len(np.unique(first.array(), axis=0)) == 8
    assert {name for name, (action, _) in decisions.items() if action == "pruned"} == {"/conv0", "/conv2"}
    assert relative_error(model, others, expected) < 1e-4
    apply(plain, flops=0.2, align=8)
    assert relative_error(plain, others, expected) > 1e-2


def test_the_layers_left_are_fitted_to_the_original() -> None:
    """Calibrated pruning loses much less than the same share without data."""
    net = chain(1, width=32)
    feeds, others = net.feeds(samples=64), net.feeds(samples=16, seed=2)
    calibrated, plain = net.model(), net.model()
    expected = run(calibrated, others)
    decisions = apply(calibrated, feeds, flops=0.4)
    without = apply(plain, flops=0.4)
    assert relative_error(calibrated, others, expected) < 0.25 * relative_error(plain, others, expected)
    assert "relative output error" in decisions["/gemm8"][1]
    assert any("nothing makes up for it without calibration data" in reason for _, reason in without.values())
    assert not any("relative output error" in reason for _, reason in without.values())


def test_a_bias_counts_without_data() -> None:
    """A channel that is a large constant is not taken for one that is nothing."""
    net = chain(2)
    model = net.model()
    layer = weighted_layers(model)[0]
    layer.set_array(np.where(np.arange(16)[:, None, None, None] < 8, 0.0, layer.array()))
    assert layer.bias is not None
    assign(layer.bias, np.where(np.arange(16) < 8, np.float32(50.0), value_of(layer.bias)))
    apply(model, flops=0.2, align=8)
    assert value_of(layer.bias).tolist() == [50.0] * 8


def test_constants_of_channels_that_go_are_kept_in_the_biases() -> None:
    """A channel that never varies is made up for by a bias, exactly."""
    net = chain(3)
    model, feeds = net.model(), net.feeds(samples=64)  # with fewer than inputs, nobody knows that it never varies
    layer = weighted_layers(model)[2]
    layer.set_array(np.where(np.arange(16)[:, None, None, None] < 8, 0.0, layer.array()))
    assert layer.bias is not None
    assign(layer.bias, np.where(np.arange(16) < 8, np.float32(2.0), value_of(layer.bias)))
    expected = run(model, feeds)
    decisions = apply(model, feeds, flops=1e-9, align=8)
    assert decisions[layer.name][0] == "pruned"
    np.testing.assert_allclose(run(model, feeds), expected, atol=1e-5 * (1 + np.abs(expected).max()))


# -- how much goes -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(networks(), st.sampled_from([2, 3, 4, 8]))
def test_counts_are_multiples_and_a_quarter_stays(net: Net, align: int) -> None:
    model, feeds = net.model(), net.feeds(samples=1)
    found = Candidates.of(model, shapes.observed(model, feeds), align)
    for group, counts in zip(found.groups, found.counts, strict=True):
        assert counts[0] == 0
        assert len(counts) > 1
        for count in counts[1:]:
            assert 4 * (group.size - count) >= group.size
            for slot in group.slots:
                if slot.role == "out":
                    assert (group.size - count) * slot.positions.shape[1] % align == 0


@settings(max_examples=12, deadline=None)
@given(networks(), st.sampled_from([2, 3, 4]), st.floats(0.05, 0.5), st.booleans())
def test_any_network_is_pruned_or_said_not_to_be(net: Net, align: int, share: float, with_data: bool) -> None:
    model, feeds = net.model(), net.feeds(samples=4)
    expected = run(model, feeds).shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)  # some cannot lose so much
        apply(model, feeds if with_data else None, flops=share, align=align)
    assert run(model, feeds).shape == expected


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("with_data", [False, True])
def test_the_budget_of_operations_is_met_within_a_step(share: float, with_data: bool) -> None:
    net = chain(4, width=32)
    model = net.model()
    whole = cost_of(model).flops
    apply(model, net.feeds(samples=8) if with_data else None, flops=share, align=4)
    removed = 1 - cost_of(model).flops / whole
    step = 4 / 32 * 0.9  # of the channels between two convolutions that are 0.45 of the whole each
    assert share <= removed <= share + step


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_budget_of_parameters_is_met_within_a_step(share: float) -> None:
    net = chain(5, width=32)
    model = net.model()
    whole = cost_of(model).parameters
    apply(model, net.feeds(samples=8), sparsity=share, align=4)
    assert share <= 1 - cost_of(model).parameters / whole <= share + 4 / 32 * 0.9


@pytest.mark.parametrize(("option", "unit"), [("flops", "multiply-accumulates"), ("sparsity", "parameters")])
def test_a_budget_out_of_reach_is_said_to_be(option: str, unit: str) -> None:
    model = chain(6).model()
    whole = cost_of(model)
    with pytest.warns(OnnxcompWarning, match=rf"removed (.*)% of the {unit}, not the 99.0% asked for") as caught:
        apply(model, **{option: 0.99}, align=1)
    left = cost_of(model)
    removed = 1 - left.flops / whole.flops if option == "flops" else 1 - left.parameters / whole.parameters
    assert f"removed {removed:.1%} of" in str(caught[0].message)
    assert [layer.shape[layer.out_axis] for layer in weighted_layers(model)] == [4, 4, 4, 5]


def test_the_default_alignment_is_the_targets() -> None:
    assert TARGET.channel_multiple == 8
    model = chain(7, width=32).model()
    apply(model)
    assert all(layer.shape[0] % 8 == 0 for layer in weighted_layers(model)[:3])


def test_the_same_input_gives_the_same_bytes() -> None:
    net = chain(8)
    for feeds in (None, net.feeds(samples=8)):
        one, two = net.model(), net.model()
        assert apply(one, feeds, align=4) == apply(two, feeds, align=4)
        assert one.serialize() == two.serialize()


def test_it_can_be_rolled_back() -> None:
    net = chain(9)
    model = net.model()
    before, state = model.serialize(), model.checkpoint()
    apply(model, net.feeds(samples=8))
    assert model.serialize() != before
    state.restore()
    assert model.serialize() == before


# -- before and after --------------------------------------------------------------------------------------


def test_a_block_with_a_depthwise_convolution_and_a_residual() -> None:
    net = Net(10, (3, 8, 8))
    x = net.conv("x", 16)
    hidden = net.activation(net.depthwise(net.batch_norm(net.conv(x, 32, kernel=1, bias=False))))
    x = net.add(x, net.conv(hidden, 16, kernel=1))
    net.gemm(net.flatten(x, positions=64), 5)
    model = net.model()
    assert text(model) == [
        "Conv 16x3x3x3 16",
        "Conv 32x16x1x1",
        "BatchNormalization 32 32 32 32",
        "Conv 32x1x3x3 32",
        "Relu",
        "Conv 16x32x1x1 16",
        "Add",
        "Flatten",
        "Gemm 5x1024 5",
    ]
    with pytest.warns(OnnxcompWarning, match="asked for"):
        decisions = apply(model, net.feeds(samples=8), flops=0.9, blocks=False)
    assert text(model) == [
        "Conv 8x3x3x3 8",
        "Conv 8x8x1x1 8",
        "BatchNormalization 8 8 8 8",
        "Conv 8x1x3x3 8",
        "Relu",
        "Conv 8x8x1x1 8",
        "Add",
        "Flatten",
        "Gemm 5x512 5",
    ]
    assert decisions["/conv3"] == ("pruned", "32 -> 8 outputs")
    assert decisions["/gemm8"][1].startswith("1024 -> 512 inputs; relative output error")


def test_a_product_without_a_bias_gets_one() -> None:
    net = Net(11, (16,))
    x = net.activation(net.matmul("x", 32))
    net.matmul(x, 4, bias=False)
    model, feeds = net.model(), net.feeds(samples=64)
    expected = run(model, feeds)
    apply(model, feeds, flops=0.4)
    assert text(model) == ["MatMul 16x16", "Add 16", "Relu", "MatMul 16x4", "Add 4"]
    np.testing.assert_allclose(run(model, feeds).mean(axis=0), expected.mean(axis=0), atol=0.1)


def test_a_bias_is_added_to_channels_and_not_to_positions() -> None:
    """A convolution with a computed bias, and a vector added behind it along the last axis."""
    net = Net(12, (3, 8, 8))
    x = net.activation(net.conv(net.activation(net.conv("x", 16)), 16))
    bias = net.node("Identity", net.vector(8), channels=8)
    x = net.node("Conv", x, net.weight(8, 16, 1, 1, fan_in=16), bias, channels=8)
    x = net.node("Add", x, net.vector(8))
    net.gemm(net.flatten(x, positions=64), 5)
    model, feeds = net.model(), net.feeds(samples=32)
    expected = run(model, feeds)
    decisions = apply(model, feeds, flops=0.3)
    assert decisions["/conv5"][0] == "adjusted"
    assert relative_error(model, feeds, expected) < 0.05


# -- what cannot be pruned ---------------------------------------------------------------------------------


def test_a_model_of_one_layer_is_left_alone() -> None:
    net = Net(13, (8, 4, 4))
    net.conv("x", 32)
    model = net.model()
    before = model.serialize()
    with pytest.warns(OnnxcompWarning, match=r"removed 0.0% of the multiply-accumulates, not the 25.0%"):
        decisions = apply(model, net.feeds())
    assert decisions == {"/conv0": ("skipped", "conv0 is an output of the model")}
    assert model.serialize() == before


def test_a_model_without_layers_is_left_alone() -> None:
    net = Net(14, (8, 4, 4))
    net.activation("x")
    model = net.model()
    assert apply(model, net.feeds()) == {}


def test_too_few_channels_are_left_alone() -> None:
    model = chain(15, width=8).model()
    with pytest.warns(OnnxcompWarning):
        decisions = apply(model)
    assert decisions["/conv0"] == ("skipped", "it has 8 channels, too few to remove 8 and keep a quarter")


def test_one_sample_is_enough_to_run() -> None:
    net = chain(16)
    model, feeds = net.model(), net.feeds(samples=1)
    apply(model, feeds)
    assert np.isfinite(run(model, net.feeds(seed=3))).all()


def test_samples_that_are_all_the_same_lose_nothing() -> None:
    net = chain(17)
    model, feeds = net.model(), {"x": np.ones((8, 3, 8, 8), np.float32)}
    expected = run(model, feeds)
    apply(model, feeds)
    assert relative_error(model, feeds, expected) < 1e-2


def test_channels_that_are_all_dead_keep_a_quarter() -> None:
    net = chain(18)
    model, feeds = net.model(), net.feeds(samples=8)
    layer = layer_of(model, "/conv2")
    layer.set_array(np.zeros_like(layer.array()))
    assert layer.bias is not None
    assign(layer.bias, np.full(16, -1, np.float32))
    expected = run(model, feeds)
    apply(model, feeds, flops=1e-9, align=1)
    assert layer.shape[0] == 4
    np.testing.assert_allclose(run(model, feeds), expected, atol=1e-5)


def test_weights_that_are_not_finite_are_left_alone() -> None:
    net = chain(19)
    model = net.model()
    layer = layer_of(model, "/conv2")
    spoilt = layer.array().copy()
    spoilt[3, 2, 1, 1] = np.nan
    layer.set_array(spoilt)
    for feeds in (None, net.feeds(samples=8)):
        with pytest.warns(OnnxcompWarning):
            decisions = apply(net_with(layer, net), feeds, flops=0.9)
        assert decisions["/conv0"][0] == decisions["/conv2"][0] == "skipped"
        assert "holds NaN or infinite values" in decisions["/conv2"][1]


def net_with(layer: WeightedLayer, net: Net) -> Model:
    """The net once more, with that layer's weight."""
    model = net.model()
    layer_of(model, layer.name).set_array(layer.array())
    return model


def test_activations_that_are_not_finite_prune_nothing() -> None:
    net = Net(20, (3, 8, 8))
    net.conv(net.activation(net.conv(net.node("Log", "x"), 32)), 8)
    model, feeds = net.model(), net.feeds(samples=8)  # half of the values have no logarithm
    before = model.serialize()
    with pytest.warns(OnnxcompWarning), np.errstate(invalid="ignore"):
        decisions = apply(model, feeds)
    assert model.serialize() == before
    assert decisions["/conv1"] == ("skipped", "NaN or infinite values reach its readers on the calibration data")


def test_shared_weights_keep_their_channels() -> None:
    net = Net(21, (3, 8, 8))
    x = net.conv("x", 16)
    weight = net.weight(16, 16, 1, 1, fan_in=16)
    for _ in range(2):
        x = net.activation(net.node("Conv", x, weight))
    net.conv(net.conv(x, 32), 4)
    model, feeds = net.model(), net.feeds(samples=8)
    decisions = apply(model, feeds)
    assert decisions["/conv1"] == ("skipped", "its weight is shared")
    assert decisions["/conv5"][0] == "pruned"


def test_channels_that_are_read_twice_are_fitted_in_both_readers() -> None:
    net = Net(22, (3, 8, 8))
    x = net.activation(net.conv("x", 32))
    first, second = net.conv(x, 8), net.conv(x, 8, kernel=1)
    net.gemm(net.flatten(net.add(first, second), positions=64), 5)
    model, feeds = net.model(), net.feeds(samples=16)
    decisions = apply(model, feeds)
    for name in (f"/{first}", f"/{second}"):
        assert decisions[name][1].startswith("32 -> ")
        assert "relative output error" in decisions[name][1]


def test_layers_that_become_small_are_fitted_and_told() -> None:
    """Below sixteen weights a layer is none any more; it is until the end of the pass."""
    net = Net(23, (3, 8, 8))
    net.conv(net.activation(net.conv("x", 32)), 1, kernel=1)
    model, feeds = net.model(), net.feeds(samples=16)
    decisions = apply(model, feeds, flops=0.7)
    assert decisions["/conv2"][1].startswith("32 -> 8 inputs; relative output error")


def test_control_flow_and_its_layers_are_left_alone() -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3,4,4] x, bool c) => (float[N,8,4,4] y)
        <float[32,3,1,1] w, float[32,32,1,1] v, float[8,32,1,1] u> {
            a = Conv(x, w)
            b = If(c) <then_branch = t () => (float[N,32,4,4] o) { o = Conv(a, v) },
                       else_branch = e () => (float[N,32,4,4] p) { p = Neg(a) }>
            y = Conv(b, u)
        }
        """
    )
    rng = np.random.default_rng(24)
    for name, shape in (("w", (32, 3, 1, 1)), ("v", (32, 32, 1, 1)), ("u", (8, 32, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = Model.from_proto(proto)
    feeds = [{"x": rng.standard_normal((1, 3, 4, 4)).astype(np.float32), "c": np.array(flag)} for flag in (True, False)]
    with pytest.warns(OnnxcompWarning):
        decisions = apply(model, Dataset.from_feeds(feeds))
    assert decisions["Conv:a"] == ("skipped", "a is used inside a control flow body")
    assert decisions["Conv:o"] == (
        "skipped",
        "it lies in the body of a control-flow node, where channels are not followed",
    )


def test_a_model_whose_layers_are_all_in_bodies_is_said_to_lose_nothing() -> None:
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,16] x, bool c) => (float[N,16] y) <float[16,16] w> {
            y = If(c) <then_branch = t () => (float[N,16] o) { o = MatMul(x, w) },
                       else_branch = e () => (float[N,16] p) { p = Neg(x) }>
        }
        """
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((16, 16), np.float32), "w"))
    with pytest.warns(OnnxcompWarning, match="removed 0.0%"):
        decisions = apply(Model.from_proto(proto))
    assert decisions == {
        "MatMul:o": ("skipped", "it lies in the body of a control-flow node, where channels are not followed")
    }


def test_a_quantized_model_is_left_alone() -> None:
    net = chain(25)
    model, feeds = net.model(), net.feeds(samples=8)
    data = Dataset.from_arrays(feeds, model=model)
    Quant().run(model, Context(target=TARGET, data=data, scope="quant"))
    before = model.serialize()
    with pytest.warns(OnnxcompWarning):
        decisions = apply(model, feeds)
    assert model.serialize() == before
    assert {action for action, _ in decisions.values()} == {"skipped"}


def test_feeds_of_different_shapes_are_learned_from() -> None:
    rng = np.random.default_rng(26)
    net = Net(26, (3, 8, 8))
    x = net.activation(net.conv("x", 32))
    net.node("ReduceMean", net.conv(x, 8), axes=[2, 3], keepdims=0)
    proto = net.proto()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "HW"[axis - 2]
    del proto.graph.value_info[:], proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(net.nodes[-1].output[0], 1, ["N", 8]))
    model = Model.from_proto(proto)
    sizes = [(8, 8), (5, 9), (12, 4), (3, 3)]
    feeds = [{"x": rng.standard_normal((1, 3, *size)).astype(np.float32)} for size in sizes]
    decisions = apply(model, Dataset.from_feeds(feeds))
    assert decisions["/conv2"][0] == "pruned"


def test_options_are_checked_and_written_back() -> None:
    assert str(Prune()) == "prune"
    assert str(Prune(sparsity=0.5, align=4)) == "prune(sparsity=0.5, align=4)"
    for options in (
        {"flops": 1.0},
        {"sparsity": 0},
        {"align": 0},
        {"granularity": "x"},
        {"flops": 0.5, "sparsity": 0.5},
    ):
        with pytest.raises(UsageError):
            Prune.with_options(options)


# -- real models -------------------------------------------------------------------------------------------


@pytest.mark.zoo
def test_a_residual_network_keeps_its_accuracy() -> None:
    model = Model.load(ROOT / "models" / "fashion_resnet.onnx")
    whole = cost_of(model)
    data = Dataset.open(str(ROOT / "models" / "fashion_calibration.npz"), model).take(128)
    test = Dataset.open(str(ROOT / "models" / "fashion_test.npz"), model).take(256)
    assert test.labels is not None
    decisions = apply(model, data)
    scores = np.concatenate([run(model, feeds) for feeds in test.feeds()])
    assert cost_of(model).flops <= 0.75 * whole.flops
    assert np.mean(scores.argmax(axis=1) == test.labels) >= 0.9
    assert sum(action == "pruned" for action, _ in decisions.values()) >= 6


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["ppocr_cls", "mobilenetv2", "silero_vad"])
def test_real_models_are_pruned_without_data(name: str) -> None:
    path = CACHE / name / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there; fetch it with models/fetch.py")
    model = Model.load(path)
    Fold().run(model, Context(target=TARGET, scope="fold"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        decisions = apply(model, flops=0.2)
    session.run(session.create(model), made_up.synthetic(model))
    assert name == "silero_vad" or sum(action == "pruned" for action, _ in decisions.values()) >= 15
