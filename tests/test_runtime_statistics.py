from __future__ import annotations

import math
import weakref

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcomp.data import Dataset
from onnxcomp.model import Model
from onnxcomp.runtime.statistics import Histogram, Means, observe

rng = np.random.default_rng(0)


def network() -> Model:
    """Conv, BatchNormalization, Relu, pooling: what ONNX Runtime fuses into one node."""
    weights = {
        "w": rng.standard_normal((4, 2, 3, 3)),
        "scale": rng.uniform(0.5, 2, 4),
        "bias": rng.standard_normal(4),
        "mean": rng.standard_normal(4),
        "var": rng.uniform(0.5, 2, 4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("BatchNormalization", ["conv", "scale", "bias", "mean", "var"], ["norm"]),
        helper.make_node("Relu", ["norm"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4, 1, 1])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    opset = [helper.make_opsetid("", 15)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


class Collected:
    """Keeps everything: the oracle."""

    def __init__(self) -> None:
        self.expected = 0
        self.arrays: list[np.ndarray] = []

    def expect(self, updates: int) -> None:
        self.expected = updates

    def update(self, array: np.ndarray) -> None:
        self.arrays.append(array)


def test_observed_values_are_those_of_the_graph_as_written() -> None:
    model = network()
    x = rng.standard_normal((70, 2, 8, 8)).astype(np.float32)
    seen = {name: Collected() for name in ("x", "conv", "norm", "relu", "y")}
    observe(model, Dataset.from_arrays({"x": x}, model=model), {name: [c] for name, c in seen.items()})
    values = {name: np.concatenate(collected.arrays) for name, collected in seen.items()}
    np.testing.assert_array_equal(values["x"], x)
    constants = {t.name: t.values for t in model.graph.tensors().values() if t.name in ("scale", "bias", "mean", "var")}
    scale, bias, mean, var = (constants[name][:, None, None] for name in ("scale", "bias", "mean", "var"))
    norm = (values["conv"] - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(values["norm"], norm, atol=1e-5)
    np.testing.assert_allclose(values["relu"], np.maximum(norm, 0), atol=1e-5)
    assert all(collected.expected == len(collected.arrays) == 3 for collected in seen.values())


def test_tensors_over_the_memory_limit_are_observed_in_several_passes() -> None:
    model = network()
    x = rng.standard_normal((40, 2, 8, 8)).astype(np.float32)
    data = Dataset.from_arrays({"x": x}, model=model)
    passes: list[tuple[str, ...]] = []

    def progress(items, description, total=None):
        passes.append((description, total))
        return items

    def run(limit: int) -> dict[str, np.ndarray]:
        seen = {name: Collected() for name in ("conv", "norm", "relu")}
        observe(model, data, {name: [c] for name, c in seen.items()}, progress, max_memory=limit)
        return {name: np.concatenate(collected.arrays) for name, collected in seen.items()}

    at_once, one_by_one = run(10**9), run(1)
    # Batches are as small as they may be before there are several passes.
    assert passes == [("calibrating", 2), *((f"calibrating ({part} of 3)", 40) for part in (1, 2, 3))]
    for name, values in at_once.items():
        np.testing.assert_allclose(values, one_by_one[name], atol=1e-4)  # fused or not


class Forgetful:
    """Fails when the values of the batch before are still alive."""

    def __init__(self) -> None:
        self.last: weakref.ref[np.ndarray] | None = None
        self.updates = 0

    def expect(self, updates: int) -> None:
        pass

    def update(self, array: np.ndarray) -> None:
        assert self.last is None or self.last() is None
        self.last = weakref.ref(array)
        self.updates += 1


def test_values_are_dropped_batch_by_batch() -> None:
    model = network()
    data = Dataset.from_arrays({"x": np.zeros((160, 2, 8, 8), np.float32)}, model=model)
    seen = {name: Forgetful() for name in ("conv", "norm", "relu")}
    observe(model, data, {name: [accumulator] for name, accumulator in seen.items()})
    assert [accumulator.updates for accumulator in seen.values()] == [5, 5, 5]


def test_nothing_wanted_runs_nothing() -> None:
    model = network()
    data = Dataset.from_arrays({"x": np.zeros((1, 2, 8, 8), np.float32)}, model=model)
    model.graph.nodes[0].op = "NoSuchOperator"  # would fail
    observe(model, data, {})


# -- means ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(-1e4, 1e4), st.sampled_from([1, -1]))
def test_means_of_batches_are_those_of_all_values(sizes: list[int], offset: float, axis: int) -> None:
    values = np.random.default_rng(sum(sizes)).standard_normal((sum(sizes), 3, 3)) + offset
    means = Means(axis)
    for batch in np.split(values, np.cumsum(sizes)[:-1]):
        means.update(batch.astype(np.float32))
    others = (0, 2) if axis == 1 else (0, 1)
    assert means.count == sum(sizes) * 3
    np.testing.assert_allclose(means.mean, values.mean(axis=others), rtol=1e-5, atol=1e-5)


# -- histograms ----------------------------------------------------------------------------------------------


def histogram_of(batches: list[np.ndarray], bins: int = 64) -> Histogram:
    histogram = Histogram(bins)
    for batch in batches:
        histogram.update(batch)
    return histogram


# Smaller magnitudes than 1e-30 may vanish when float32 values are scaled to the grid: they count as zero.
floats = st.floats(-1e6, 1e6, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(floats, max_size=20), min_size=1, max_size=6))
def test_a_histogram_counts_every_value_in_its_bin_whatever_the_batches(batches: list[list[float]]) -> None:
    values = np.array([value for batch in batches for value in batch], dtype=np.float32)
    if not values.size:
        return
    histogram = histogram_of([np.array(batch, dtype=np.float32) for batch in batches])
    whole = histogram_of([values[::-1]])
    np.testing.assert_array_equal(histogram.counts, whole.counts)
    np.testing.assert_array_equal(histogram.edges, whole.edges)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    assert histogram.count == values.size
    edges = histogram.edges
    if values.min() == values.max():
        assert histogram.counts.tolist() == [values.size]
        return
    assert len(histogram.counts) <= 64
    for count, low, high in zip(histogram.counts, edges[:-1], edges[1:], strict=True):
        assert count == np.count_nonzero((values >= low) & (values < high))


@settings(max_examples=50, deadline=None)
@given(st.floats(-100, 100), st.floats(0.01, 1000), st.integers(2, 300))
def test_a_histogram_uses_about_half_of_its_bins_at_least(low: float, span: float, bins: int) -> None:
    histogram = histogram_of([np.linspace(low, low + span, 500)], bins)
    assert (bins - 1) // 2 <= len(histogram.counts) <= bins


def test_a_histogram_of_one_value_is_one_bin_until_another_comes() -> None:
    histogram = histogram_of([np.zeros(5), np.zeros(3)])
    assert (histogram.counts.tolist(), histogram.edges.tolist()) == ([8], [0.0, 0.0])
    histogram.update(np.array([1.0]))
    assert histogram.counts[0] == 8
    assert histogram.counts[-1] == 1


def test_values_that_are_not_finite_are_counted_apart() -> None:
    histogram = histogram_of([np.array([1.0, math.nan, 2.0, -math.inf, math.inf]), np.array([math.nan])])
    assert histogram.nonfinite == 4
    assert histogram.count == 2
    assert (histogram.minimum, histogram.maximum) == (1.0, 2.0)


def test_extreme_ranges_do_not_overflow_the_grid() -> None:
    huge = np.array([-3.4e38, 1e-30, 3.4e38], dtype=np.float32)
    assert histogram_of([huge]).count == 3
    close = np.array([1e300, np.nextafter(1e300, np.inf)])
    assert histogram_of([close]).count == 2
    small_then_huge = histogram_of([np.array([0, 1e-40], np.float32), huge])
    assert small_then_huge.count == 5


def test_a_histogram_that_counts_a_part_keeps_the_extremes_and_the_shape() -> None:
    values = np.random.default_rng(0).standard_normal((4, 30, 40, 50)).astype(np.float32)
    every, some = Histogram(256), Histogram(256, most=2**14)
    every.update(values)
    some.update(values)
    assert (some.minimum, some.maximum) == (every.minimum, every.maximum)
    assert some.counts[0] > 0
    assert some.counts[-1] > 0
    assert some.count < 2**14 + 3
    np.testing.assert_array_equal(some.edges, every.edges)
    cumulated = [np.cumsum(histogram.counts) / histogram.count for histogram in (every, some)]
    np.testing.assert_allclose(*cumulated, atol=0.02)
