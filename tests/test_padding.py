"""Samples cut to their own lengths: where a mask says so, and the model ignores the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.data import Dataset
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.padding import without_padding

Array = np.ndarray[Any, Any]

IDS = np.array([[3, 1, 4, 1], [2, 7, 0, 0], [5, 0, 0, 0]], dtype=np.int64)
MASK = (np.arange(4) < np.array([[4], [2], [1]])).astype(np.int64)


def pooled(masked: bool = True, length: int | str = "length") -> Model:
    """The mean of a table's rows over the positions of a mask, or over all of them."""
    table = numpy_helper.from_array(np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32), "table")
    axes = numpy_helper.from_array(np.array([2]), "axes")
    over = numpy_helper.from_array(np.array([1]), "over")
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ones", "axes"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"])
        if masked
        else helper.make_node("Identity", ["rows"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "over"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["ones", "over"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", length]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 5])]
    outputs.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", length, 5]))
    graph = helper.make_graph(nodes, "pooled", inputs, outputs, [table, axes, over])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def shapes(dataset: Dataset) -> list[tuple[int, ...]]:
    return [feeds["ids"].shape for feeds in dataset.in_batches(1).feeds()]


def test_samples_become_as_long_as_their_masks_and_the_outputs_stay() -> None:
    model = pooled()
    padded = Dataset.from_arrays({"ids": IDS, "mask": MASK}, model=model)
    cut = without_padding(model, padded)
    assert shapes(cut) == [(1, 4), (1, 2), (1, 1)]
    running = session.create(model)
    for short, whole in zip(cut.feeds(), padded.in_batches(1).feeds(), strict=True):
        np.testing.assert_allclose(session.run(running, short)["mean"], session.run(running, whole)["mean"], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "mask"),
    [
        (pooled(masked=False), MASK),  # padding counts
        (pooled(length=4), MASK),  # the model takes no other length
        (pooled(), np.ones_like(MASK)),  # no padding
        (pooled(), MASK[:, ::-1].copy()),  # padding comes first
        (pooled(), 2 * MASK),  # no mask
    ],
)
def test_samples_stay_where_that_would_not_do(model: Model, mask: Array) -> None:
    padded = Dataset.from_arrays({"ids": IDS, "mask": mask}, model=model)
    assert without_padding(model, padded) is padded


def test_samples_of_images_stay() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [x],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    data = Dataset.from_arrays({"x": np.ones((2, 3, 4, 4), np.float32)}, model=model)
    assert without_padding(model, data) is data
