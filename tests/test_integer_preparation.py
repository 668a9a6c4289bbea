"""What a graph is prepared with before layers of it are put on integers, and what becomes of it when they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.evaluate import compare
from onnxcomp.graph.integer_preparation import give_up
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime import session
from tests.generate import Net
from tests.quantizing import build, kernels, quantize


def sqnr(original: Any, model: Model, data: Dataset) -> float:
    return compare(original, session.create(model), data).fidelity.sqnr_db


def resize_of_some_axes(sizes: bool, **attributes: Any) -> Net:
    net = Net(shape=(3, 8, 8), opset=18)
    hidden = net.activation(net.conv("x", 32))
    by = ["", "", net.constant([16, 24], np.int64)] if sizes else ["", net.constant([2, 2])]
    net.conv(net.node("Resize", hidden, *by, axes=[2, 3], **attributes), 32)
    return net


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("batch", [1, None])
def test_a_resize_of_some_axes_between_convolutions_runs(batch: int | None, sizes: bool) -> None:
    """ONNX Runtime 1.32 alone would fail on it, as it moves the channels to the end."""
    net = resize_of_some_axes(sizes, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    proto = net.proto()
    if batch is not None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    model = Model.from_proto(proto)
    data = Dataset.from_feeds([net.feeds(1, seed) for seed in range(8)])
    original = session.create(model)
    quantize(model, data)
    assert kernels(model)["QLinearConv"] == 2
    assert sqnr(original, model, data) > 30


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_beside_a_resize_that_keeps_the_ratio_of_some_axes_layers_are_stored(policy: str) -> None:
    net = resize_of_some_axes(True, keep_aspect_ratio_policy=policy)
    data = Dataset.from_feeds([net.feeds(1, seed) for seed in range(8)])
    model = Model.from_proto(net.proto())
    original = session.create(model)
    decisions = quantize(model, data)
    assert {decision.action for decision in decisions.values()} == {"stored"}
    assert all("keeps the aspect ratio on some axes" in decision.reason for decision in decisions.values())
    assert sqnr(original, model, data) > 30
    with pytest.raises(PassError, match="aspect ratio"):
        quantize(Model.from_proto(net.proto()), data, mode="static")


@pytest.mark.parametrize("rectified", [True, False])
def test_what_is_given_up_declares_the_shapes_that_it_has(rectified: bool) -> None:
    rng = np.random.default_rng(0)
    follows = "r = Relu(c)" if rectified else ""
    model = build(
        f"""
        g (float[2, 4, 5, 5] x) => (float[2, 8, 10, 10] y) <float[2, 32, 5, 5] c> {{
            c = Conv(x, w)
            {follows}
            y = DepthToSpace<blocksize = 2>({"r" if rectified else "c"})
        }}""",
        {"w": rng.standard_normal((32, 4, 1, 1)).astype(np.float32)},
    )
    feeds = {"x": rng.standard_normal((2, 4, 5, 5)).astype(np.float32)}
    (expected,) = session.create(model).run(None, feeds)
    give_up(model, weighted_layers(model))
    model.graph.cleanup()
    assert "ConvTranspose" in {node.op for node in model.graph.nodes}
    onnx.checker.check_model(model.proto(), full_check=True)
    (found,) = session.create(model).run(None, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
