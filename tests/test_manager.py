"""The pass manager: whatever a pass does wrong, the model is as it was, the failure is told, the rest is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from onnxcomp import Context, Dataset, Model, Pass, PassManager, Pipeline, Target
from onnxcomp.context import Rejected
from onnxcomp.errors import InputError
from onnxcomp.evaluate import Evaluator
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.hooks import Measure, Timing, Verify
from onnxcomp.manager import Hook, PassRecord, Step
from tests import breaking
from tests.generate import Net


@pytest.fixture
def model() -> Model:
    net = Net(shape=(3, 6, 6))
    x = net.activation(net.conv("x", 8))
    net.matmul(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5, bias=False)
    return net.model()


def data_for(model: Model) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_arrays({"x": rng.standard_normal((6, 3, 6, 6)).astype(np.float32)}, model=model)


def context(model: Model, seed: int = 0) -> Context:
    return Context(target=Target.parse("x86-avx2"), data=data_for(model), seed=seed)


def hooks_for(model: Model, max_drop: float | None = None) -> list[Hook]:
    original, data = Model.from_proto(model.proto()), data_for(model)
    evaluator = Evaluator(original, data)
    return [Measure(evaluator, evaluator.evaluate(original), max_drop), Verify(original, [data.sample()]), Timing()]


def run(model: Model, *passes: Pass, hooks: list[Hook] | None = None, seed: int = 0) -> list[PassRecord]:
    hooks = hooks_for(model) if hooks is None else hooks
    return PassManager(Pipeline(passes), hooks).run(model, context(model, seed))


@pytest.mark.parametrize(("broken", "message"), breaking.BREAKING.items(), ids=lambda item: getattr(item, "name", ""))
def test_a_pass_that_breaks_the_model_is_undone(model: Model, broken: type[Pass], message: str) -> None:
    before = model.serialize()
    (record,) = run(model, broken())
    assert model.serialize() == before
    assert record.status == "rolled back"
    assert record.error is not None
    assert message in record.error
    assert "\n" not in record.error
    assert not record.over_budget
    names = [layer.name for layer in weighted_layers(model)]
    assert sorted({decision.layer for decision in record.decisions}) == sorted(names)
    assert all((d.action, d.reason) == ("skipped", f"undone: {record.error}") for d in record.decisions)


def test_later_passes_run_all_the_same(model: Model) -> None:
    alone = Model.from_proto(model.proto())
    run(alone, breaking.Scale())
    records = run(model, *(broken() for broken in breaking.BREAKING), breaking.Scale())
    assert [record.status for record in records] == ["rolled back"] * len(breaking.BREAKING) + ["applied"]
    assert model.serialize() == alone.serialize()


@pytest.mark.parametrize("broken", [breaking.BadInput, breaking.Interrupted])
def test_what_is_no_pass_s_fault_ends_the_run_and_leaves_the_model(model: Model, broken: type[Pass]) -> None:
    before = model.serialize()
    with pytest.raises((InputError, KeyboardInterrupt)):
        run(model, broken(), breaking.Scale())
    assert model.serialize() == before


def test_a_pass_over_the_budget_is_undone(model: Model) -> None:
    before = model.serialize()
    passes = breaking.Scale(factor=1.2), breaking.Scale(factor=1.0001)
    over, within = run(model, *passes, hooks=hooks_for(model, max_drop=1e-6))
    assert over.over_budget
    assert over.error is not None
    assert "the metric cosine has dropped by" in over.error
    assert model.serialize() != before
    assert within.status == "applied"
    assert not within.over_budget


def test_a_record_tells_of_the_model_that_stands(model: Model) -> None:
    first, undone, last = run(model, breaking.Scale(), breaking.Negates(), breaking.Idle())
    assert first.fidelity is not None
    assert 20 < first.fidelity.sqnr_db < 60
    assert undone.fidelity == first.fidelity == last.fidelity
    assert undone.metric == first.metric == last.metric


def test_layers_that_a_pass_forgets_get_a_reason(model: Model) -> None:
    (record,) = run(model, breaking.Forgets())
    assert record.status == "applied"
    names = {layer.name for layer in weighted_layers(model)}
    assert {(d.layer, d.action, d.reason) for d in record.decisions} == {
        (name, "skipped", "the pass gave no reason") for name in names
    }


def test_a_pass_that_changes_nothing_is_unchanged(model: Model) -> None:
    before = model.serialize()
    (record,) = run(model, breaking.Idle())
    assert record.status == "unchanged"
    assert model.serialize() == before
    assert {decision.reason for decision in record.decisions} == {"not today"}


def test_seconds_are_of_the_pass_failed_or_not(model: Model) -> None:
    assert all(record.seconds > 0 for record in run(model, breaking.Scale(), breaking.Raises()))


def test_hooks_are_entered_in_order_and_left_in_reverse(model: Model) -> None:
    events: list[str] = []

    class Note:
        def __init__(self, name: str) -> None:
            self.name = name

        @contextmanager
        def around(self, step: Step) -> Iterator[None]:
            events.append(f"{self.name} before {step.passed.name}")
            yield
            events.append(f"{self.name} after, changed: {step.changed}")

    run(model, breaking.Scale(), hooks=[Note("outer"), Note("inner")])
    assert events == [
        "outer before scale",
        "inner before scale",
        "inner after, changed: True",
        "outer after, changed: True",
    ]


def test_a_hook_that_fails_undoes_the_pass(model: Model) -> None:
    class Fails:
        @contextmanager
        def around(self, step: Step) -> Iterator[None]:
            yield
            raise ValueError(f"no {step.passed.name} here")

    before = model.serialize()
    (record,) = run(model, breaking.Scale(), hooks=[Fails()])
    assert (record.status, record.error, record.cause) == ("rolled back", "no scale here", ValueError)
    assert model.serialize() == before


# -- the context ---------------------------------------------------------------------------------------------


def drawn(records: list[PassRecord]) -> list[str]:
    return [decision.reason for record in records if record.passed.name == "draws" for decision in record.decisions]


def test_random_draws_depend_on_the_seed_and_not_on_other_passes(model: Model) -> None:
    models = [Model.from_proto(model.proto()) for _ in range(4)]
    alone = drawn(run(models[0], breaking.Draws()))
    among_others = drawn(run(models[1], breaking.Scale(), breaking.Raises(), breaking.Draws()))
    assert alone == among_others
    assert drawn(run(models[2], breaking.Draws(), seed=1)) != alone
    ctx = context(model)
    ctx.scope = "other"
    other = ctx.rng().random()
    ctx.scope = "draws"
    assert ctx.rng().random() != other


class Counting:
    """An analysis that counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: Model, axis: int = 0) -> tuple[int, int]:
        self.calls += 1
        return weighted_layers(model)[0].shape[axis], self.calls


def test_analyses_are_computed_once_until_the_model_changes(model: Model) -> None:
    ctx, analysis = context(model), Counting()
    assert ctx.analysis(analysis, model) == ctx.analysis(analysis, model) == (8, 1)
    assert ctx.analysis(analysis, model, 1) == (3, 2)
    other = Model.from_proto(model.proto())
    assert ctx.analysis(analysis, other) == (8, 3)
    PassManager(Pipeline([breaking.Idle()])).run(model, ctx)
    assert ctx.analysis(analysis, model) == (8, 1)
    PassManager(Pipeline([breaking.Scale()])).run(model, ctx)
    assert ctx.analysis(analysis, model) == (8, 4)
    assert ctx.analysis(analysis, other) == (8, 3), "another model's analyses stay"


def test_what_was_found_of_an_undone_model_is_forgotten(model: Model) -> None:
    ctx, analysis = context(model), Counting()

    class LooksAndFails(breaking.Scale):
        name = "looks"

        def run(self, model: Model, ctx: Context) -> None:
            layer = weighted_layers(model)[0]
            layer.set_array(layer.array()[:4])
            ctx.invalidate(model)
            assert ctx.analysis(analysis, model)[0] == 4
            raise RuntimeError("after a look")

    PassManager(Pipeline([LooksAndFails()])).run(model, ctx)
    assert ctx.analysis(analysis, model)[0] == 8


def test_an_attempt_that_is_rejected_is_undone_with_all_it_logged_and_learned(model: Model) -> None:
    ctx, analysis = context(model), Counting()
    before = model.serialize()
    layer = weighted_layers(model)[0]
    with ctx.attempt(model, layer):
        layer.set_array(layer.array()[:4])
        ctx.invalidate(model)
        assert ctx.analysis(analysis, model)[0] == 4
        ctx.act(layer, "cut")
        raise Rejected("it does not pay")
    assert model.serialize() == before
    assert ctx.analysis(analysis, model)[0] == 8
    assert [(d.layer, d.action, d.reason) for d in ctx.decisions] == [(layer.name, "skipped", "it does not pay")]


def test_an_attempt_that_works_stays(model: Model) -> None:
    ctx, layer = context(model), weighted_layers(model)[0]
    before = model.serialize()
    with ctx.attempt(model, layer):
        layer.set_array(layer.array() * 2)
        ctx.act(layer, "doubled")
    assert model.serialize() != before
    assert [d.action for d in ctx.decisions] == ["doubled"]


def test_an_error_in_an_attempt_is_no_rejection(model: Model) -> None:
    ctx = context(model)
    with pytest.raises(ZeroDivisionError), ctx.attempt(model, "layer"):
        1 / 0  # noqa: B018
    assert not ctx.decisions


def test_a_pass_that_must_have_data_says_so(model: Model) -> None:
    ctx = Context(target=Target.parse("x86-avx2"), scope="quant")
    with pytest.raises(Exception, match="quant needs calibration data; give it with --data"):
        ctx.require_data()
    assert len(context(model).require_data()) == 6


def test_decisions_of_one_pass_do_not_mix_with_another_s(model: Model) -> None:
    scaled, idle = run(model, breaking.Scale(), breaking.Idle())
    expected: list[Any] = [layer.name for layer in weighted_layers(model)]
    assert [(d.layer, d.action) for d in scaled.decisions] == [(name, "scaled") for name in expected]
    assert [(d.layer, d.action) for d in idle.decisions] == [(name, "skipped") for name in expected]
