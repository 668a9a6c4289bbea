"""First runs of models that ask for more than there is."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing.growth import looping, made_from
from onnx import helper, numpy_helper

from onnxcomp.data import Dataset
from onnxcomp.errors import InputError, SessionError
from onnxcomp.graph import folding
from onnxcomp.model import Model
from onnxcomp.runtime import shapes
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.trial import Trial
from tests.generate import Net

FEEDS = {"x": np.ones((1, 4), np.float32)}


def endless() -> Model:
    return Model.from_proto(looping([helper.make_node("Relu", ["state"], ["next"])], 2**62))


def filled(elements: int) -> Model:
    """x, plus the largest of so many zeros."""
    nodes = [
        helper.make_node("ConstantOfShape", ["dims"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    return Model.from_proto(made_from(nodes, [numpy_helper.from_array(np.array([elements]), "dims")]))


def test_a_sound_model_runs() -> None:
    net = Net(0, (3, 4, 4))
    net.conv("x", 8)
    trial = Trial(net.model(), seconds=30)
    assert next(iter(trial.run(net.feeds(2)).values())).shape == (2, 8, 4, 4)
    assert not trial.over


def test_an_endless_loop_is_stopped() -> None:
    trial = Trial(endless(), seconds=0.2)
    start = time.perf_counter()
    with pytest.raises(SessionError, match="it does not end within the 0 s allowed"):
        trial.run(FEEDS)
    assert trial.over
    assert time.perf_counter() - start < 5


def test_a_trial_gets_no_more_than_its_memory() -> None:
    with pytest.raises(SessionError, match=r"it needs more than the 512 MB of memory allowed"):
        Trial(filled(2**29), seconds=30).run(FEEDS)
    assert Trial(filled(2**20), seconds=30).run(FEEDS)["y"].shape == (1, 4)  # the next one has it all again


def test_large_models_get_more_time() -> None:
    net = Net(0, (256,))
    net.matmul(net.matmul("x", 2048), 2048)
    assert Trial(net.model(), seconds=1.0).seconds == pytest.approx(1 + 4 * 2048 * (256 + 2048 + 2) / 2e6)


@pytest.mark.parametrize("dims", [[2**40], [2**62, 2**62], [2**62, 0], [1] * 70])
def test_inputs_that_are_too_large_are_not_made_up(dims: list[int]) -> None:
    proto = made_from([helper.make_node("Relu", ["x"], ["y"])])
    proto.graph.input[0].type.tensor_type.shape.Clear()
    for dim in dims:
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=dim)
    with pytest.raises(InputError, match="its input 'x' is too large to make up; give data with --data"):
        synthetic(Model.from_proto(proto))


def test_outputs_that_are_too_large_to_compare_call_for_data() -> None:
    proto = made_from(
        [helper.make_node("Tile", ["x", "times"], ["y"])],
        [numpy_helper.from_array(np.array([2**23 + 2**22, 1]), "times")],
    )
    with pytest.raises(InputError, match="its outputs hold 201 MB"):
        synthetic(Model.from_proto(proto))


def test_samples_of_the_user_are_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.data._SECONDS", 0.2)
    with pytest.raises(InputError, match=r"does not run on a sample of arrays \(.*does not end within"):
        Dataset.from_arrays({"x": np.ones((3, 4), np.float32)}, model=endless())


def test_folding_keeps_nodes_with_large_results_and_never_computes_them() -> None:
    model = filled(2**40)
    assert folding.evaluate_constants(model.graph, model.opset) == []


def test_shapes_are_found_without_keeping_every_tensor(tmp_path: Path) -> None:
    """Of 60 tensors of 8 MB, few are in memory at once."""
    names = ["large", *(f"t{index}" for index in range(60))]
    nodes = [helper.make_node("Tile", ["x", "times"], ["large"])]
    nodes += [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    nodes.append(helper.make_node("ReduceMax", [names[-1]], ["y"], keepdims=0))
    onnx.save(made_from(nodes, [numpy_helper.from_array(np.array([2**19, 1]), "times")]), tmp_path / "net.onnx")
    model = Model.load(tmp_path / "net.onnx")
    before = peak()
    assert shapes.observed(model, FEEDS)["t59"] == (2**19, 4)
    assert peak() - before < 200e6


def peak() -> int:
    """Bytes that this process held at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
