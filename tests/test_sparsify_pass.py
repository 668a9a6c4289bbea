"""prune with zeros among weights: how many, where, what is said of them, and that later passes keep them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcomp.context import Context, Decision
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, PassError, UsageError
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.residual import other_branch
from onnxcomp.linalg.reconstruct import solved
from onnxcomp.model import Model
from onnxcomp.passbase import Pass
from onnxcomp.passes.equalize import Equalize
from onnxcomp.passes.fold import Fold
from onnxcomp.passes.prune import Prune
from onnxcomp.passes.quant import Quant
from onnxcomp.passes.reorder import Reorder
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import session
from onnxcomp.runtime.fits import observe_stage
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks

Array = np.ndarray[Any, Any]
TARGET = Target.parse("x86-vnni")
FORMS = ("element", "2:4", "block(4,4)")


def apply(model: Model, step: Pass, data: dict[str, Array] | None) -> list[Decision]:
    dataset = None if data is None else Dataset.from_arrays(data, model=model)
    context = Context(target=TARGET, data=dataset, scope=step.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        step.run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    return context.decisions


def net(seed: int = 0) -> Net:
    result = Net(seed, (3, 8, 8))
    x = result.activation(result.conv("x", 16))
    x = result.add(x, result.conv(result.activation(result.conv(x, 16)), 16))
    x = result.activation(result.depthwise(x))
    result.gemm(result.flatten(result.node("GlobalAveragePool", x), positions=1), 8)
    return result


def zeros(model: Model) -> dict[str, Array]:
    """Where the weights of each layer are zero, or the integers that stand for them."""
    return {layer.name: np.asarray(layer.array()) == 0 for layer in weighted_layers(model)}


def output(model: Model, feeds: dict[str, Array]) -> Array:
    return np.asarray(next(iter(session.run(session.create(model), feeds).values())))


def restored(model: Model, feeds: dict[str, Array]) -> dict[str, Array]:
    """What the nodes of the layers read as their weights, when the model runs."""
    names = {layer.name: layer.node.inputs[layer.weight_index] for layer in weighted_layers(model)}
    computed = sorted({tensor.name for tensor in names.values() if value_of(tensor) is None})
    values: dict[str, Any] = {}
    if computed:
        whole = session.create(session.with_outputs(model.skeleton(), computed), optimize=False)
        values = session.run(whole, feeds, computed)
    given = {name: value_of(tensor) for name, tensor in names.items()}
    return {name: values[tensor.name] if given[name] is None else given[name] for name, tensor in names.items()}


def sparse(step: Prune, data: dict[str, Array] | None, seed: int = 0) -> tuple[Model, dict[str, Decision]]:
    model = net(seed).model()
    return model, {decision.layer: decision for decision in apply(model, step, data)}


@pytest.mark.parametrize("granularity", FORMS)
@pytest.mark.parametrize("with_data", [True, False])
def test_every_layer_is_sparse_or_left_for_a_reason(granularity: str, with_data: bool) -> None:
    data = net().feeds(64)
    model, decisions = sparse(Prune(granularity=granularity), data if with_data else None)
    assert set(decisions) == set(zeros(model))
    assert all(decision.reason for decision in decisions.values())
    done = [zeros(model)[name] for name, decision in decisions.items() if decision.action == "sparsified"]
    assert len(done) >= 2
    share = sum(int(zero.sum()) for zero in done) / sum(zero.size for zero in done)
    assert 0.45 <= share <= 0.5
    depthwise = next(layer for layer in weighted_layers(model) if layer.groups > 1)
    assert "too few" in decisions[depthwise.name].reason


def test_what_is_left_makes_up_for_the_zeros() -> None:
    """On samples of its own, against the same zeros with weights as they were, and against the smallest weights."""
    data, unseen = net().feeds(128), net().feeds(64, seed=2)
    expected = output(net().model(), unseen)
    errors = {}
    for score in ("obs", "wanda", "magnitude"):
        model, _ = sparse(Prune(granularity="element", score=score), data)
        errors[score] = float(np.square(output(model, unseen) - expected).sum())
    model, _ = sparse(Prune(granularity="element"), None)
    errors["no data"] = float(np.square(output(model, unseen) - expected).sum())
    assert errors["obs"] < 0.5 * errors["no data"]
    assert errors["obs"] <= min(errors["wanda"], errors["magnitude"])


@settings(max_examples=5, deadline=None)
@given(networks(), st.sampled_from(FORMS))
def test_later_passes_keep_the_zeros_where_they_are(drawn: Net, granularity: str) -> None:
    model, data = drawn.model(), drawn.feeds(24)
    for step in (Fold(), Prune(granularity=granularity)):
        apply(model, step, data)
    before = zeros(model)
    for step in (Equalize(), Quant(rounding="gptq")):
        try:
            apply(model, step, data)
        except PassError:  # quant does not enlarge tiny models
            assume(False)
        after = restored(model, data)
        assert all(not after[name][zero].any() for name, zero in before.items() if zero.mean() >= 1 / 8)


@pytest.mark.parametrize("granularity", FORMS)
def test_reordering_and_4_bits_keep_as_many_zeros(granularity: str) -> None:
    data = net().feeds(64)
    model, _ = sparse(Prune(granularity=granularity), data)
    before = {name: int(zero.sum()) for name, zero in zeros(model).items()}
    expected = output(model, data)
    apply(model, Reorder(), data)
    np.testing.assert_allclose(output(model, data), expected, atol=1e-4)
    assert {name: int(zero.sum()) for name, zero in zeros(model).items()} == before
    apply(model, Quant(bits=4, mode="weights", loss=1.0), data)
    after = {name: int((weight == 0).sum()) for name, weight in restored(model, data).items()}
    assert all(after[name] >= count for name, count in before.items())


def test_channels_can_be_pruned_of_a_sparse_model() -> None:
    data = net().feeds(64)
    model, _ = sparse(Prune(granularity="element"), data)
    shares = {layer.name: float(np.mean(layer.array() == 0)) for layer in weighted_layers(model)}
    apply(model, Prune(flops=0.3), data)
    for layer in weighted_layers(model):
        if shares[layer.name] >= 0.3:
            assert np.mean(layer.array() == 0) >= shares[layer.name] / 2
    steps = Pipeline.parse("prune(flops=0.2),prune(granularity='element')").scheduled().passes
    assert [str(step) for step in steps] == ["fold", "prune(flops=0.2)", "prune(granularity='element')"]


def test_a_layer_makes_up_for_what_the_other_branch_has_lost() -> None:
    """Two 1x1 convolutions of one input are added: what one has lost is a change of the other's weight."""
    parts = Net(0, (6, 5, 5))
    parts.add(parts.conv("x", 4, kernel=1), parts.conv("x", 4, kernel=1))
    original, compressed = parts.model(), parts.model()
    first, second = weighted_layers(compressed)
    branch = other_branch(compressed.graph, second)
    assert branch is first.node.outputs[0]
    expected = first.matrix() + second.matrix()
    first.set_matrix(first.matrix() * (np.arange(6) % 2))
    samples = Dataset.from_arrays(parts.feeds(256), model=original)
    reference = {layer.name: layer for layer in weighted_layers(original)}
    ((_, seen),) = observe_stage(
        *(compressed, original, [(0, second)], 0, reference, samples), branches={second.name: branch.name}
    )
    W, shift = solved(second.matrix(), seen.fitting, 1e-9)
    np.testing.assert_allclose(W + first.matrix(), expected, atol=1e-4)
    np.testing.assert_allclose(shift, np.zeros((1, 4)), atol=1e-4)


def test_the_same_samples_give_the_same_bytes() -> None:
    data = net().feeds(64)
    first, second = (sparse(Prune(granularity="element"), data)[0].proto() for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_it_says_what_zeros_buy() -> None:
    model = net().model()
    with pytest.warns(OnnxcompWarning, match="same size and speed"):
        Prune(granularity="element").run(model, Context(target=TARGET, scope="prune"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("granularity='row'", "write channel, element, 2:4"),
        ("granularity='4:2'", "0 < N < M"),
        ("granularity='4:64'", "0 < N < M"),
        ("granularity='block(0,8)'", "empty side"),
        ("granularity='element', flops=0.5", "flops goes with granularity='channel'"),
        ("granularity='element', align=8", "align goes with granularity='channel'"),
        ("granularity='2:4', sparsity=0.5", "50%"),
        ("score='wanda'", "not with channel"),
    ],
)
def test_options_that_contradict_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(f"prune({options})")


def test_a_score_of_inputs_needs_data() -> None:
    with pytest.raises(PassError, match="calibration data"):
        apply(net().model(), Prune(granularity="element", score="wanda"), None)


def test_text_of_options_can_be_read_again() -> None:
    for granularity in (*FORMS, "block(8, 16)"):
        pipeline = Pipeline((Prune(granularity=granularity),))
        assert Pipeline.parse(str(pipeline)) == pipeline
