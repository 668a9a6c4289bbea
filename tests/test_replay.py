"""The error that rounding one tensor makes in the outputs, against whole runs of a model that rounds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.data import Dataset
from onnxcomp.linalg.ranges import Grid, grid
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.replay import best_grids, rounded
from onnxcomp.runtime.simulate import Simulation, simulated
from tests.quantizing import build

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)


def network() -> Model:
    weights = {f"w{i}": 0.3 * rng.standard_normal((8, 8)).astype(np.float32) for i in range(3)}
    return build(
        """
        g (float[N, 8] x) => (float[N, 8] y, float[N, 8] side) {
            a = MatMul(x, w0)
            r = Relu(a)
            b = MatMul(r, w1)
            s = Add(b, x)
            side = Tanh(s)
            c = MatMul(s, w2)
            y = Add(c, r)
        }""",
        weights,
    )


def data() -> Dataset:
    return Dataset.from_arrays({"x": np.random.default_rng(1).standard_normal((12, 8)).astype(np.float32)})


def noise_of(model: Model, tensor: str, each: Grid) -> float:
    """By a whole run."""
    exact, changed = session.create(model), session.create(simulated(model.skeleton(), {tensor: each}))
    signal, noise = dict.fromkeys(("y", "side"), 0.0), dict.fromkeys(("y", "side"), 0.0)
    for feeds in data().feeds():
        wanted, found = session.run(exact, feeds), session.run(changed, feeds)
        for name in signal:
            signal[name] += float(np.square(wanted[name].astype(float)).sum())
            noise[name] += float(np.square(found[name].astype(float) - wanted[name]).sum())
    return sum(noise[name] / signal[name] for name in signal)


@pytest.mark.parametrize("tensor", ["x", "r", "s", "c", "y"])
def test_the_best_grid_of_a_tensor_is_that_of_whole_runs(tensor: str) -> None:
    model = network()
    grids = [grid(-high, high) for high in (64.0, 16.0, 6.0, 3.0, 1.5, 0.5)]
    found = best_grids(model, data(), {tensor: grids})[tensor]
    expected = [noise_of(model, tensor, each) for each in grids]
    assert found.grid == grids[int(np.argmin(expected))]
    assert found.noise == pytest.approx(min(expected), rel=1e-3)


def test_rounding_is_that_of_quantize_linear() -> None:
    values = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    each = grid(-1.7, 2.3)
    model = build("g (float[N, 8] x) => (float[N, 8] y) { y = Identity(x) }", {})
    changed = session.create(simulated(model.skeleton(), {"x": each}), optimize=False)
    np.testing.assert_allclose(session.run(changed, {"x": values})["y"], rounded(values, each), atol=1e-6)


def test_a_simulation_with_fine_grids_is_close_and_with_coarse_ones_is_not() -> None:
    simulation = Simulation(network(), data())
    assert simulation.sqnr({}) > 100
    fine = simulation.sqnr(dict.fromkeys(("x", "r", "s"), grid(-6.0, 6.0)))
    assert simulation.sqnr(dict.fromkeys(("x", "r", "s"), grid(-600.0, 600.0))) < 15 < fine


def test_a_tensor_that_goes_into_a_sequence_is_left_out() -> None:
    model = build(
        """
        g (float[N, 8] x) => (float[N, 8] y) {
            s = SequenceConstruct(x, x)
            a = MatMul(x, w)
            r = Relu(a)
            t = SequenceInsert(s, r)
            y = SequenceAt(t, i)
        }""",
        {"w": np.eye(8, dtype=np.float32), "i": np.array(2)},
    )
    grids = [grid(-6.0, 6.0)]
    assert set(best_grids(model, data(), {"x": grids, "r": grids})) == {"x"}
