"""Intermediate tensors that training matches, found by itself."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp import Context, Dataset, Model, Target
from onnxcomp.graph.cuts import cuts, spread
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime.lessons import Curriculum
from tests.quantizing import build
from tests.recovering import error_of, hidden_error_of, network, recovered


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, ""), (1, "h"), (2, "dh"), (3, "beh"), (4, "bdfh"), (8, "abcdefgh"), (100, "abcdefgh")]
)
def test_places_are_spread(count: int, chosen: str) -> None:
    assert "".join(spread("abcdefgh", count)) == chosen


def test_there_may_be_no_place() -> None:
    assert spread([], 3) == []
    student = build("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul(x, a) }", {"a": np.ones((8, 4), np.float32)})
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    model = Model.from_proto(student.proto())
    ctx = Context(Target.host(), Dataset.from_arrays({"x": x}, model=model), original=student)
    Recover(epochs=1, batch=8, hints=2).run(model, ctx)
    assert [decision.layer for decision in ctx.decisions] != []


def test_places_that_hold_no_real_numbers_are_none() -> None:
    """Truth values between two layers, which two operators read."""
    text = """g (float[N, 8] x) => (float[N, 4] y) {
        h = MatMul(x, a) zero = Constant<value_float = 0.0>() t = Greater(h, zero)
        p = Cast<to = 1>(t) q = Cast<to = 1>(t) u = MatMul(p, b) v = MatMul(q, c) y = Add(u, v) }"""
    arrays = {"a": np.ones((8, 6), np.float32), "b": np.ones((6, 4), np.float32), "c": np.ones((6, 4), np.float32)}
    student = build(text, arrays)
    assert cuts(student, list(arrays)) == ["t"]
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    ctx = Context(Target.host(), Dataset.from_arrays({"x": x}, model=student), original=build(text, arrays))
    Recover(epochs=1, batch=8, hints=4).run(student, ctx)
    assert len(ctx.decisions) == 3


def test_worse_outputs_are_not_kept_for_better_features(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.1, 0.2])
    monkeypatch.setattr(Curriculum, "judge", lambda *_: next(losses))
    model, ctx = recovered(network(noise=0.3), Recover(epochs=4, batch=16, hints=1))
    assert {decision.action for decision in ctx.decisions} == {"skipped"}
    assert "but not the outputs: their loss rose to 0.2 from 0.1" in ctx.decisions[0].reason
    assert error_of(model) == error_of(Model.from_proto(network(noise=0.3)))


def test_hidden_values_come_closer_with_hints() -> None:
    student = network(noise=0.3)
    errors = []
    for hints in (0, 2):
        model, ctx = recovered(student, Recover(epochs=30, batch=16, lr=3e-3, loss="mse", hints=hints))
        errors.append(hidden_error_of(model))
        assert ("mse of r1" in ctx.decisions[0].reason) == bool(hints)
    assert errors[1] < 0.5 * errors[0]


def test_tensors_whose_channels_were_moved_are_no_hints() -> None:
    student = network(noise=0.1)
    order = np.roll(np.arange(16), 5)
    for weight in student.graph.initializer:
        if weight.name in ("w1", "b1", "w2", "w3"):
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[order], weight.name))
    _, ctx = recovered(student, Recover(epochs=4, batch=16, loss="mse", hints=2))
    assert {decision.action for decision in ctx.decisions} == {"trained"}
    assert "(mse of y)" in ctx.decisions[0].reason


def test_parts_have_no_hints() -> None:
    with pytest.raises(ValueError, match="parts are trained without checkpoint, match and hints"):
        Recover(parts=2, hints=1)
