"""Derivatives of convolutions, pooling and normalizations against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.differences import agree, build, derivative, gradients, node, random

Array = np.ndarray[Any, Any]

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 6, 5), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 3, 7, 6), (4, 3, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}),
    ((2, 3, 8, 8), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    ((1, 3, 9, 9), (2, 3, 3, 3), {"dilations": [2, 1], "strides": [2, 2]}),
    ((2, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((2, 4, 7, 7), (6, 2, 3, 3), {"group": 2, "strides": [2, 2]}),
    ((2, 4, 7, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    ((2, 4, 7, 6), (4, 1, 5, 3), {"group": 4, "pads": [2, 1, 2, 1], "strides": [2, 1]}),
    ((2, 3, 7, 6), (6, 1, 3, 3), {"group": 3}),
    ((2, 5, 4, 4), (3, 5, 1, 1), {}),
    ((1, 5, 17, 16), (3, 5, 1, 1), {}),
    ((2, 5, 5, 4), (3, 5, 1, 1), {"strides": [2, 2]}),
    ((2, 5, 5, 4), (3, 5, 1, 1), {"pads": [1, 0, 0, 1]}),
    ((2, 4, 4, 4), (4, 1, 1, 1), {"group": 4}),
    ((2, 3, 9), (4, 3, 4), {"strides": [2], "pads": [1, 2]}),
    ((2, 4, 9), (4, 1, 3), {"group": 4, "dilations": [2]}),
    ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"strides": [1, 2, 1], "pads": [0, 1, 0, 1, 1, 1]}),
    ((1, 2, 3, 4, 5), (2, 1, 2, 2, 2), {"group": 2}),
    ((2, 3, 7, 8), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 3, 7, 8), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER"}),
    ((2, 3, 7, 8), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 1]}),
    ((1, 2, 5, 5), (2, 2, 2, 2), {"pads": [3, 0, 0, 3]}),  # wider than the kernel
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS)
def test_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    values = {"x": random(*x), "w": random(*w, seed=1), "b": random(w[0], seed=2)}
    # it is linear in each of its operands, so that a large step is exact
    agree(node("Conv", ["x", "w", "b"], ["y"], **attributes), values, forward="runtime", step=0.5)


TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 4, 5), (3, 4, 3, 3), {}),
    ((2, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    ((2, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 0, 1]}),
    ((2, 3, 4, 4), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ((1, 3, 4, 4), (3, 2, 2, 2), {"strides": [3, 2], "output_padding": [1, 1]}),
    ((2, 4, 4, 3), (4, 3, 3, 2), {"group": 2, "dilations": [1, 2]}),
    ((2, 4, 4, 3), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    ((2, 3, 4, 4), (3, 4, 3, 3), {"strides": [2, 2], "output_shape": [8, 8]}),
    ((2, 3, 4, 4), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((2, 3, 4, 4), (3, 4, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((2, 3, 5), (3, 2, 4), {"strides": [2]}),
    ((1, 2, 3, 3, 2), (2, 3, 2, 2, 2), {"strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED)
def test_transposed_convolutions(x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, Any]) -> None:
    outs = w[1] * attributes.get("group", 1)
    values = {"x": random(*x), "w": random(*w, seed=1), "b": random(outs, seed=2)}
    agree(node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes), values, forward="runtime", step=0.5)


axis_geometry = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(0, 3), st.integers(0, 3), st.integers(1, 8)
)


@settings(max_examples=60, deadline=None)
@given(
    axes=st.lists(axis_geometry, min_size=1, max_size=3),
    groups=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_convolutions_of_any_geometry(axes: list[tuple[int, ...]], groups: int, sizes: tuple[int, int, int]) -> None:
    kernel, strides, dilations, before, after, extent = zip(*axes, strict=True)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    assume(all(e + b + a >= s for e, b, a, s in zip(extent, before, after, spans, strict=True)))
    batch, ins, outs = sizes
    attributes = {"strides": strides, "dilations": dilations, "pads": [*before, *after], "group": groups}
    values = {"x": random(batch, groups * ins, *extent), "w": random(groups * outs, ins, *kernel, seed=1)}
    agree(node("Conv", ["x", "w"], ["y"], **attributes), values, forward="runtime", step=0.5)


# -- pooling --------------------------------------------------------------------------------------------------

POOLS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 6, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((2, 3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 7, 8), {"kernel_shape": [3, 2]}),
    ((2, 3, 7, 8), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 9, 9), {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1, "pads": [1, 0, 1, 0]}),
    ((1, 2, 9, 8), {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 9, 8), {"kernel_shape": [2, 3], "strides": [2, 1], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 9, 8), {"kernel_shape": [2, 2], "strides": [3, 4]}),
    ((2, 2, 9), {"kernel_shape": [3], "strides": [2]}),
    ((1, 2, 4, 5, 4), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2]}),
]


@pytest.mark.parametrize(("x", "attributes"), [*POOLS, ((2, 2, 9, 9), {"kernel_shape": [3, 2], "dilations": [2, 3]})])
def test_maximum_pooling(x: tuple[int, ...], attributes: dict[str, Any]) -> None:
    agree(
        node("MaxPool", ["x"], ["y"], **attributes), {"x": 4 * random(*x)}, forward="runtime", step=2e-3, tolerance=1e-3
    )


def test_of_equal_maxima_the_first_has_the_gradient() -> None:
    found = derivative(
        build([node("MaxPool", ["x"], ["y"], kernel_shape=[2])], {"x": np.ones((1, 1, 4), "f")}),
        ["x"],
        {"_": random(1)},
    )
    _, grads = gradients(found, {"x": np.ones((1, 1, 4), "f")}, {"_": random(1)}, {"y": np.zeros((1, 1, 3), "f")})
    assert grads["x"].reshape(-1).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 0])


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize(("x", "attributes"), POOLS)
def test_average_pooling(x: tuple[int, ...], attributes: dict[str, Any], counted: int) -> None:
    average = node("AveragePool", ["x"], ["y"], count_include_pad=counted, **attributes)
    for opset in (13, 19):
        agree(average, {"x": random(*x)}, opset=opset, forward="runtime", step=1)


def test_dilated_average_pooling() -> None:
    average = node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 1, 1])
    agree(average, {"x": random(2, 2, 9, 9)}, opset=19, forward="runtime", step=1)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 6)])
def test_global_pooling(op: str, shape: tuple[int, ...]) -> None:
    axes = tuple(range(2, len(shape)))
    reduced = np.max if op == "GlobalMaxPool" else np.mean
    agree(node(op, ["x"], ["y"]), {"x": random(*shape)}, forward=lambda v: reduced(v["x"], axis=axes, keepdims=True))


# -- normalizations -------------------------------------------------------------------------------------------


def _standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    return np.asarray((x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (2, 3, 6)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    channels = {name: random(3, seed=seed) for seed, name in enumerate("sbm")}
    values = {"x": random(*shape), **channels, "v": np.abs(random(3, seed=9)) + 0.3}
    agree(node("BatchNormalization", list(values), ["y"], epsilon=1e-3), values, opset=15)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_layer_normalization(axis: int, biased: bool) -> None:
    shape = (2, 3, 4)
    values = {"x": random(*shape), "s": random(*shape[axis:], seed=1)}
    if biased:
        values["b"] = random(*shape[axis:], seed=2)
    axes = tuple(range(axis % 3, 3))

    def forward(given: dict[str, Array]) -> Array:
        return np.asarray(_standard(given["x"], axes, 1e-3) * given["s"] + given.get("b", 0))

    layer = node("LayerNormalization", list(values), ["y"], axis=axis, epsilon=1e-3)
    agree(layer, values, opset=17, forward=forward)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 4, 6)])
@pytest.mark.parametrize(
    ("op", "opset", "groups"), [("Instance", 13, 4), ("Group", 18, 2), ("Group", 21, 2), ("Group", 21, 1)]
)
def test_normalization_of_channels(op: str, opset: int, groups: int, shape: tuple[int, ...]) -> None:
    count = groups if opset == 18 else shape[1]
    values = {"x": random(*shape), "s": random(count, seed=1), "b": random(count, seed=2)}
    spatial = [1] * (len(shape) - 2)

    def forward(given: dict[str, Array]) -> Array:
        normal = _standard(given["x"].reshape(shape[0], groups, -1), (2,), 1e-3).reshape(shape)
        scale, bias = (np.repeat(given[name], shape[1] // count).reshape(-1, *spatial) for name in "sb")
        return np.asarray(normal * scale + bias)

    attributes = {"num_groups": groups} if op == "Group" else {}
    layer = node(f"{op}Normalization", list(values), ["y"], epsilon=1e-3, **attributes)
    agree(layer, values, opset=opset, forward=forward)


def test_root_mean_square_normalization() -> None:
    def forward(given: dict[str, Array]) -> Array:
        x = given["x"]
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * given["s"])

    values = {"x": random(2, 3, 4), "s": random(4, seed=1)}
    agree(node("SimplifiedLayerNormalization", ["x", "s"], ["y"], axis=-1, epsilon=1e-3), values, forward=forward)
