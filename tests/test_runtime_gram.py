"""H against ONNX Runtime: W · X must be what the layer computes, so X, and with it H, must be right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.gram import Gram
from onnxcomp.runtime.layouts import layout_of


def one_layer(op: str, weight: np.ndarray, attributes: dict[str, Any], rank: int) -> tuple[Model, WeightedLayer]:
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    dims = [None] * rank
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    model = Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
    (layer,) = weighted_layers(model)
    return model, layer


def columns(layer: WeightedLayer, x: np.ndarray) -> np.ndarray:
    """X of every group, (groups, d, columns)."""
    layout = layout_of(layer)
    view, axes = layout.view(x)
    flat = view.reshape(math.prod(view.shape[:axes]), layout.groups, layout.size)
    return flat.transpose(1, 2, 0).astype(np.float64)


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False) -> tuple[np.ndarray, dict[str, Any], tuple[int, ...]]:
    """Weight, attributes and shape of the input of a convolution over 1, 2 or 3 axes."""
    rank = draw(st.integers(1, 3))
    auto_pad = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    extent = st.integers(1, 3)
    kernel, strides, dilations = (tuple(draw(extent) for _ in range(rank)) for _ in range(3))
    if auto_pad.startswith("SAME") and not transposed:
        dilations = (1,) * rank  # ONNX Runtime refuses others
    groups, ins, outs = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        16,
    )  # so that the weight makes a layer
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": groups}
    if auto_pad == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    else:
        attributes["auto_pad"] = auto_pad
    if transposed and auto_pad == "NOTSET":
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    shape = (groups * ins, outs, *kernel) if transposed else (groups * outs, ins, *kernel)
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    spatial = tuple(span + draw(st.integers(0, 4)) for span in spans)
    return weight, attributes, (draw(st.integers(1, 2)), groups * ins, *spatial)


def check_against_runtime(op: str, weight: np.ndarray, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    model, layer = one_layer(op, weight, attributes, len(shape))
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    y = session.run(session.create(model), {"x": x})["y"]
    product = layer.matrix() @ columns(layer, x)  # (groups, outs, n · positions)
    batch, channels, *sizes = y.shape
    expected = y.reshape(batch, layer.groups, channels // layer.groups, math.prod(sizes)).transpose(1, 2, 0, 3)
    np.testing.assert_allclose(product.reshape(expected.shape), expected, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_a_convolution_is_its_matrix_times_its_columns(drawn: Any) -> None:
    check_against_runtime("Conv", *drawn)


@settings(max_examples=60, deadline=None)
@given(convolutions(transposed=True))
def test_a_transposed_convolution_is_its_matrix_times_its_columns(drawn: Any) -> None:
    check_against_runtime("ConvTranspose", *drawn)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_a_transposed_convolution_with_a_given_output_shape(auto_pad: str) -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    attributes = {"strides": [2, 2], "output_shape": [8, 7], "auto_pad": auto_pad}
    check_against_runtime("ConvTranspose", weight, attributes, (2, 2, 4, 4))


@pytest.mark.parametrize(
    ("op", "weight", "attributes", "shape"),
    [
        ("MatMul", (6, 4), {}, (3, 6)),
        ("MatMul", (6, 4), {}, (2, 5, 3, 6)),
        ("Gemm", (6, 4), {}, (3, 6)),
        ("Gemm", (4, 6), {"transB": 1}, (3, 6)),
        ("Gemm", (4, 6), {"transA": 1, "transB": 1}, (6, 3)),
    ],
)
def test_a_matrix_product_is_its_matrix_times_its_columns(
    op: str, weight: tuple[int, ...], attributes: dict[str, int], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    model, layer = one_layer(op, rng.standard_normal(weight).astype(np.float32), attributes, len(shape))
    x = rng.standard_normal(shape).astype(np.float32)
    y = session.run(session.create(model), {"x": x})["y"]
    product = (layer.matrix() @ columns(layer, x))[0]
    np.testing.assert_allclose(product, y.reshape(-1, 4).T, atol=1e-5)


def brute_force_gram(x: np.ndarray, kernel: int, groups: int) -> np.ndarray:
    """H of a stride-1 unpadded convolution by loops over every position."""
    batch, channels, height, width = x.shape
    each = channels // groups
    gram = np.zeros((groups, each * kernel**2, each * kernel**2))
    for n in range(batch):
        for row in range(height - kernel + 1):
            for column in range(width - kernel + 1):
                patch = x[n, :, row : row + kernel, column : column + kernel].astype(np.float64)
                for group in range(groups):
                    vector = patch[group * each : (group + 1) * each].reshape(-1)
                    gram[group] += np.outer(vector, vector)
    return gram


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_gram_sums_the_outer_products_of_all_columns_over_batches(groups: int) -> None:
    weight = np.ones((4, 4 // groups, 3, 3), np.float32)
    _, layer = one_layer("Conv", weight, {"group": groups}, 4)
    x = np.random.default_rng(0).standard_normal((5, 4, 6, 7)).astype(np.float32)
    gram = Gram.for_layer(layer, columns=0)
    for batch in (x[:2], x[2:]):
        gram.update(batch)
    assert gram.count == 5 * 4 * 5
    np.testing.assert_allclose(gram.matrix, brute_force_gram(x, 3, groups), rtol=1e-5, atol=1e-4)


def test_a_large_input_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.runtime.gram.CHUNK_VALUES", 100)
    _, layer = one_layer("Conv", np.ones((4, 2, 3, 3), np.float32), {}, 4)
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)
    gram = Gram.for_layer(layer)
    gram.update(x)
    np.testing.assert_allclose(gram.matrix, brute_force_gram(x, 3, 1), rtol=1e-5, atol=1e-4)


def sampled(columns_wanted: int, x: np.ndarray, updates: int) -> Gram:
    _, layer = one_layer("Conv", np.ones((8, 2, 1, 1), np.float32), {}, 4)
    gram = Gram.for_layer(layer, columns=columns_wanted)
    gram.expect(updates)
    for batch in np.array_split(x, updates):
        gram.update(batch)
    return gram


def test_a_sample_of_the_columns_estimates_the_mean_of_all_and_is_the_same_every_time() -> None:
    x = np.random.default_rng(0).standard_normal((40, 2, 16, 16)).astype(np.float32)
    every, some, again = sampled(0, x, 10), sampled(2000, x, 10), sampled(2000, x, 10)
    assert every.count == 40 * 256
    assert some.count == 2000
    np.testing.assert_allclose(some.matrix / some.count, every.matrix / every.count, atol=0.1)
    np.testing.assert_array_equal(some.matrix, again.matrix)


def test_a_sample_sees_every_row_and_column_of_the_positions() -> None:
    """A fixed stride through the positions would visit a few columns of the image only."""
    rows, places = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    x = np.tile(np.stack([rows, places]).astype(np.float32), (8, 1, 1, 1))
    some = sampled(8 * 16, x, 8)  # 16 of 1024 positions of each image
    mean_squares = np.diag(some.matrix[0]) / some.count
    np.testing.assert_allclose(mean_squares, np.mean(np.arange(32) ** 2), rtol=0.15)


def test_fewer_columns_than_wanted_are_all_taken() -> None:
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 3)).astype(np.float32)
    assert sampled(10**6, x, 2).count == 36


def test_a_layer_without_a_matrix_of_inputs_is_refused() -> None:
    model, _ = one_layer("MatMul", np.ones((6, 4), np.float32), {}, 2)
    node = model.graph.nodes[0]
    node.op = "Einsum"
    node.attrs["equation"] = "ij,jk->ik"
    (layer,) = weighted_layers(model)
    with pytest.raises(ValueError, match="no matrix of inputs is known for Einsum"):
        Gram.for_layer(layer)
