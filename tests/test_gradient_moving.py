"""Derivatives of operators that move, choose, pad, resize and quantize values, against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.gradient import Term
from tests.differences import agree, build, derivative, gradients, node, random

Array = np.ndarray[Any, Any]
X = random(2, 3, 4)


def _ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("op", "constants", "attributes"),
    [
        ("Reshape", {"s": _ints(4, -1)}, {}),
        ("Flatten", {}, {"axis": 2}),
        ("Unsqueeze", {"a": _ints(0, -1)}, {}),
        ("Transpose", {}, {"perm": [1, 2, 0]}),
        ("Transpose", {}, {}),
        ("Expand", {"s": _ints(5, 1, 3, 1)}, {}),
        ("Tile", {"r": _ints(2, 1, 3)}, {}),
        ("Gather", {"i": _ints(2, 0)}, {"axis": 1}),
        ("Gather", {"i": _ints(1, 2)}, {"axis": 1}),
        ("Gather", {"i": _ints(2, 0, 1)}, {"axis": 1}),
        ("Gather", {"i": _ints(0, -1, 0)}, {"axis": -1}),
        ("Gather", {"i": np.int64(1)}, {"axis": 0}),
        ("Gather", {"i": np.array([[3, 0], [1, -1]])}, {"axis": 2}),
    ],
)
def test_moves(op: str, constants: dict[str, Array], attributes: dict[str, Any]) -> None:
    agree(node(op, ["x", *constants], ["y"], **attributes), {"x": X}, constants)


def test_expand_and_squeeze() -> None:
    agree(node("Squeeze", ["x"], ["y"]), {"x": random(2, 1, 3)})
    agree(node("Expand", ["x", "s"], ["y"]), {"x": random(2, 1)}, {"s": _ints(3, 1, 4)})


@pytest.mark.parametrize("trained", [["a", "b", "c"], ["b"]])
def test_concat(trained: list[str]) -> None:
    values = {"a": random(2, 1), "b": random(2, 3), "c": random(2, 2)}
    rest = {name: value for name, value in values.items() if name not in trained}
    agree(node("Concat", ["a", "b", "c"], ["y"], axis=-1), {name: values[name] for name in trained}, rest)


@pytest.mark.parametrize("used", [["p", "q"], ["q"]])
def test_split(used: list[str]) -> None:
    parts = [node("Split", ["x", "s"], ["p", "q"], axis=1), node("Concat", [*used, *used], ["y"], axis=1)]
    agree(parts, {"x": X}, {"s": _ints(1, 2)})


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1, 0], [5, 6], [0, 1], None),
        ([0, 1], [7, 8], [0, 1], [2, 3]),
        ([-1], [-(2**31)], [1], [-1]),
        ([6], [0], [0], [-2]),
        ([-3, -2], [100, -5], [-1, 0], [1, -1]),
        ([1], [4], None, None),
        ([7], [1], [1], [-3]),
        ([100], [2], [1], [-2]),
    ],
)
def test_slices(starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> None:
    constants = {"s": _ints(*starts), "e": _ints(*ends)}
    names = ["x", "s", "e", "", ""]
    for place, (name, values) in enumerate((("a", axes), ("t", steps)), start=3):
        if values is not None:
            constants[name] = _ints(*values)
            names[place] = name
    agree(node("Slice", names, ["y"]), {"x": random(7, 8)}, constants)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding(mode: str) -> None:
    agree(
        node("Pad", ["x", "p"], ["y"], mode=mode), {"x": X}, {"p": _ints(0, 1, 2, 1, 0, 3)}, forward="runtime", step=1
    )


def test_padding_of_some_axes_and_cutting() -> None:
    agree(node("Pad", ["x", "p"], ["y"]), {"x": X}, {"p": _ints(0, -1, 2, 1, 0, -1)}, forward="runtime", step=1)
    constants = {"p": _ints(1, 2), "v": np.float32(0.5), "a": _ints(-1)}
    agree(node("Pad", ["x", "p", "v", "a"], ["y"]), {"x": X}, constants, opset=18, forward="runtime", step=1)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str) -> None:
    agree(node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode), {"x": random(2, 8, 3, 2)})
    agree(node("SpaceToDepth", ["x"], ["y"], blocksize=2), {"x": random(2, 3, 4, 2)}, forward="runtime", step=1)


# -- indices that are computed --------------------------------------------------------------------------------


def _computed(indices: Array) -> tuple[list[Any], dict[str, Array]]:
    """A node that makes them look computed, and what it reads."""
    return [node("Add", ["known", "nought"], ["i"])], {"known": indices, "nought": np.zeros_like(indices)}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_by_computed_indices(axis: int, opset: int) -> None:
    nodes, constants = _computed(np.array([[1, 0, -1], [1, 1, 0]]))
    nodes.append(node("Gather", ["x", "i"], ["y"], axis=axis))
    agree(nodes, {"x": random(3, 4, 5)}, constants, opset)


def test_gather_elements_and_tuples() -> None:
    nodes, constants = _computed(np.array([[1, 0, -1], [1, 1, 0]]))
    agree([*nodes, node("GatherElements", ["x", "i"], ["y"], axis=1)], {"x": random(2, 4)}, constants, 17)
    nodes, constants = _computed(np.array([[1, -1], [0, 2], [1, 2]]))
    for opset in (13, 17):
        agree([*nodes, node("GatherND", ["x", "i"], ["y"])], {"x": random(2, 3, 4)}, constants, opset)


def test_scatter() -> None:
    nodes, constants = _computed(np.array([[1, 0, 2], [3, 1, 0]]))
    values = {"x": random(2, 4), "u": random(2, 3, seed=2)}
    agree([*nodes, node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)], values, constants)
    nodes, constants = _computed(np.array([[1], [3]]))
    values = {"x": random(4, 3), "u": random(2, 3, seed=2)}
    agree([*nodes, node("ScatterND", ["x", "i", "u"], ["y"])], values, constants)


# -- resizing -------------------------------------------------------------------------------------------------

RESIZES = [
    ((1, 2, 3, 4), [1, 1, 2, 2], {"mode": "nearest"}),
    ((1, 2, 3, 4), [1, 1, 2, 3], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}),
    ((2, 1, 5, 4), [1, 1, 0.6, 1.5], {"mode": "nearest", "nearest_mode": "floor"}),
    ((1, 2, 3, 4), [1, 1, 2, 2], {"mode": "linear"}),
    ((1, 2, 3, 4), [1, 1, 1.5, 0.7], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ((1, 1, 4, 4), [1, 1, 2, 1.5], {"mode": "cubic"}),
    ((2, 2, 5), [1, 1, 2], {"mode": "nearest"}),
    ((3, 4), [2, 1.5], {"mode": "linear"}),
]


@pytest.mark.parametrize(("shape", "scales", "attributes"), RESIZES)
def test_resize_by_scales(shape: tuple[int, ...], scales: list[float], attributes: dict[str, Any]) -> None:
    factors = np.array(scales, dtype=np.float32)
    resize = node("Resize", ["x", "", "s"], ["y"], **attributes)
    agree(resize, {"x": random(*shape)}, {"s": factors}, forward="runtime", step=1)


@pytest.mark.parametrize("attributes", [{"mode": "linear"}, {"mode": "nearest"}])
def test_resize_to_sizes(attributes: dict[str, Any]) -> None:
    resize = node("Resize", ["x", "", "", "s"], ["y"], **attributes)
    agree(resize, {"x": random(1, 2, 3, 5)}, {"s": _ints(1, 2, 6, 4)}, forward="runtime", step=1)


def test_resize_of_some_axes() -> None:
    resize = node("Resize", ["x", "", "s"], ["y"], mode="linear", axes=[3, 2])
    agree(resize, {"x": random(1, 2, 3, 5)}, {"s": np.array([2, 1.5], np.float32)}, opset=18, forward="runtime", step=1)


# -- codes ----------------------------------------------------------------------------------------------------


def _fake_quantized(x: Array, scale: Array, low: int, high: int, grad: Array, axis: int | None) -> tuple[Array, Array]:
    """The gradients of learned step sizes, as their paper writes them (symmetric, zero point 0)."""
    wide = scale if axis is None else scale.reshape([-1 if place == axis else 1 for place in range(x.ndim)])
    v = x / wide
    inside = (v > low) & (v < high)
    by_scale = np.where(inside, np.round(v) - v, np.clip(np.round(v), low, high)) * grad
    others = None if axis is None else tuple(place for place in range(x.ndim) if place != axis)
    return np.where(inside, grad, 0), np.asarray(by_scale.sum(axis=others))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_learned_step_sizes(kind: type, axis: int | None) -> None:
    x, limits = random(3, 4), np.iinfo(kind)
    scale = np.asarray(0.007 + 0.002 * np.abs(random(*(() if axis is None else (x.shape[axis],)))), np.float32)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis or 0),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis or 0),
    ]
    proto = build(nodes, {"x": x, "s": scale, "z": np.zeros(scale.shape, kind)})
    feeds = {"_": random(1)}
    found = derivative(proto, ["x", "s"], feeds)
    target = random(3, 4, seed=5)
    _, grads = gradients(found, {"x": x, "s": scale}, feeds, {"y": target})
    wide = scale if axis != 0 else scale[:, None]
    y = np.clip(np.round(x / wide), limits.min, limits.max) * wide
    by_x, by_scale = _fake_quantized(x, scale, limits.min, limits.max, 2 * (y - target) / y.size, axis)
    assert (by_x == 0).any()
    np.testing.assert_allclose(grads["x"], by_x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["s"], by_scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("block", [0, 2])
def test_scales_of_constant_codes(block: int) -> None:
    """The same whether the codes have one scale per row or per block of it; here differences are the oracle."""
    codes = np.array([[3, -2, 5, 1], [-7, 0, 2, 6]], np.int8)
    scale = np.abs(random(2, 2)) if block else np.abs(random(2))
    points = np.ones(scale.shape, np.int8)
    quantized = node(
        "DequantizeLinear", ["q", "s", "z"], ["y"], **({"axis": 1, "block_size": 2} if block else {"axis": 0})
    )
    wide = (lambda s: np.repeat(s, 2, axis=1)) if block else (lambda s: s[:, None])

    def forward(values: dict[str, Array]) -> Array:
        return np.asarray((codes.astype(float) - 1) * wide(values["s"]))

    opset = 21 if block else 13
    agree(quantized, {"s": scale.astype(np.float32)}, {"q": codes, "z": points}, opset, forward)


def test_zero_points_shift_the_range() -> None:
    x = np.array([-1.0, -0.2, 0.3, 5.0], np.float32)
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    proto = build(nodes, {"x": x, "s": np.float32(0.01), "z": np.uint8(50)})
    found = derivative(proto, ["x"], {"_": random(1)}, [Term("y", "mse")])
    _, grads = gradients(found, {"x": x}, {"_": random(1)}, {"y": np.full(4, 9, np.float32)})
    assert (grads["x"] != 0).tolist() == [False, True, True, False]  # the range is from -0.5 to 2.05
