"""Intermediate tensors that training matches, found by itself."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp import Model
from onnxcomp.graph.cuts import late
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime.session import create, run, with_outputs
from tests.recovering import network, recovered, samples


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, ""), (1, "h"), (2, "fh"), (3, "efh"), (4, "efgh"), (6, "cdefgh"), (8, "abcdefgh"), (100, "abcdefgh")],
)
def test_late_places_are_spread_over_the_second_half(count: int, chosen: str) -> None:
    assert "".join(late("abcdefgh", count)) == chosen


def test_there_may_be_no_place() -> None:
    assert late([], 3) == []


def test_hidden_values_come_closer_with_hints() -> None:
    student = network(noise=0.3)
    x = next(samples(64).feeds())["x"]
    errors = []
    for hints in (0, 2):
        model, ctx = recovered(student, Recover(epochs=30, batch=16, lr=3e-3, loss="mse", hints=hints))
        ours, theirs = (
            run(create(with_outputs(each.skeleton(), ["r1"])), {"x": x})["r1"]
            for each in (model, Model.from_proto(network()))
        )
        errors.append(np.square(ours - theirs).mean() / np.square(theirs).mean())
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
