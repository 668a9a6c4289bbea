"""Derivatives of arithmetic, activations, reductions and products against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

from tests.differences import agree, node, random

Array = np.ndarray[Any, Any]

X = 2 * random(2, 3, 4)
POSITIVE = np.abs(random(2, 3, 4)) + 0.3
SHAPES = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((3, 1), (2, 1, 4)), ((2, 3), ()), ((1,), (2, 3)), ((1, 1), (1,))]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu"])
def test_arithmetic_with_broadcasting(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = random(*shapes[0], seed=1), random(*shapes[1], seed=2)
    if op == "PRelu" and np.broadcast_shapes(*shapes) != shapes[0]:
        pytest.skip("the slope is broadcast in one direction only")
    if op == "Div":
        b = np.sign(b) * (np.abs(b) + 0.5)
    if op == "Pow":
        a = np.abs(a) + 0.3
    # the evaluator adds in place, and so cannot broadcast in Mean
    forward: Any = (lambda values: (values["a"] + values["b"]) / 2) if op == "Mean" else "reference"
    values = {"a": np.asarray(a, dtype=np.float32), "b": np.asarray(b, dtype=np.float32)}
    agree(node(op, ["a", "b"], ["y"]), values, forward=forward)


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_several_operands(op: str) -> None:
    agree(node(op, ["a", "b", "c"], ["y"]), {"a": random(2, 3), "b": random(3, seed=4), "c": random(2, 1, seed=5)})


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_power_of_a_constant(exponent: float) -> None:
    agree(node("Pow", ["x", "p"], ["y"]), {"x": POSITIVE}, {"p": np.float32(exponent)})


def test_power_of_an_integer_type() -> None:
    agree(node("Pow", ["x", "p"], ["y"]), {"x": X}, {"p": np.int64(3)}, forward=lambda v: v["x"] ** 3)


FUNCTIONS = [
    *(("Neg", {}), ("Abs", {}), ("Exp", {}), ("Sin", {}), ("Cos", {}), ("Atan", {}), ("Identity", {})),
    *(("Relu", {}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.3}), ("LeakyRelu", {"alpha": -0.3})),
    *(("Elu", {}), ("Elu", {"alpha": 1.7}), ("Selu", {}), ("Celu", {}), ("Celu", {"alpha": 0.6})),
    *(("ThresholdedRelu", {}), ("ThresholdedRelu", {"alpha": 0.2}), ("Sigmoid", {}), ("Tanh", {})),
    *(("HardSigmoid", {}), ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}), ("Softplus", {}), ("Softsign", {})),
    *(("Softmax", {}), ("Softmax", {"axis": 1}), ("LogSoftmax", {}), ("LogSoftmax", {"axis": 0})),
    ("LpNormalization", {}),
]


@pytest.mark.parametrize(("op", "attributes"), FUNCTIONS)
def test_functions(op: str, attributes: dict[str, Any]) -> None:
    agree(node(op, ["x"], ["y"], **attributes), {"x": X})


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Reciprocal"])
def test_functions_of_positive_numbers(op: str) -> None:
    agree(node(op, ["x"], ["y"]), {"x": POSITIVE})


def _gelu(values: dict[str, Array]) -> Array:
    x = values["x"] + values.get("b", 0)
    return np.asarray(x * special.ndtr(x))


def _tanh_gelu(values: dict[str, Array]) -> Array:
    x = values["x"] + values.get("b", 0)
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _mish(values: dict[str, Array]) -> Array:
    return np.asarray(values["x"] * np.tanh(np.logaddexp(0, values["x"])))


def _hard_swish(values: dict[str, Array]) -> Array:
    return np.asarray(values["x"] * np.clip(values["x"] / 6 + 0.5, 0, 1))


def _quick_gelu(values: dict[str, Array]) -> Array:
    return np.asarray(values["x"] * special.expit(1.702 * values["x"]))


@pytest.mark.parametrize(
    ("op", "opset", "domain", "attributes", "oracle"),
    [
        ("Gelu", 20, "", {}, _gelu),
        ("Gelu", 20, "", {"approximate": "tanh"}, _tanh_gelu),
        ("Mish", 18, "", {}, _mish),
        ("HardSwish", 14, "", {}, _hard_swish),
        ("Gelu", 13, "com.microsoft", {}, _gelu),
        ("FastGelu", 13, "com.microsoft", {}, _tanh_gelu),
        ("QuickGelu", 13, "com.microsoft", {}, _quick_gelu),
    ],
)
def test_functions_of_later_sets(op: str, opset: int, domain: str, attributes: dict[str, Any], oracle: Any) -> None:
    agree(node(op, ["x"], ["y"], domain=domain, **attributes), {"x": 2 * X}, opset=opset, forward=oracle)


def test_functions_that_the_evaluator_computes_otherwise() -> None:
    agree(node("Erf", ["x"], ["y"]), {"x": X}, forward=lambda values: special.erf(values["x"]))
    share = node("LpNormalization", ["x"], ["y"], p=1, axis=1)
    agree(share, {"x": X}, forward=lambda values: values["x"] / np.abs(values["x"]).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_functions_of_a_sum(op: str) -> None:
    oracle = _gelu if op == "BiasGelu" else _tanh_gelu
    agree(node(op, ["x", "b"], ["y"], domain="com.microsoft"), {"x": X, "b": random(4)}, forward=oracle)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.5), (0.0, None), (0.0, 1.0), (None, 1.0), (-0.5, None), (None, None)]
)
def test_clip(low: float | None, high: float | None) -> None:
    bounds = {name: np.float32(value) for name, value in (("low", low), ("high", high)) if value is not None}
    names = ["x", "low" if low is not None else "", "high" if high is not None else ""]
    agree(node("Clip", names, ["y"]), {"x": X}, bounds)


def test_where_and_casts() -> None:
    nodes = [
        node("Where", ["c", "a", "b"], ["w"]),
        node("Cast", ["w"], ["y"], to=1),
    ]
    agree(nodes, {"a": random(2, 3), "b": random(3, seed=2)}, {"c": random(2, 1) > 0})


def test_steps_have_no_gradient_and_rounding_passes_it() -> None:
    for op in ("Floor", "Ceil", "Sign"):
        nodes = [node(op, ["x"], ["s"]), node("Mul", ["s", "x"], ["y"])]
        agree(nodes, {"x": X})
    agree(node("Round", ["x"], ["y"]), {"x": np.round(X * 2)}, forward=lambda values: values["x"])


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp", "LogSum", "Prod"]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [0, -1]])
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions(kind: str, axes: list[int] | None, keep: int) -> None:
    x = POSITIVE if kind in ("LogSum", "Prod") else X
    if kind == "Sum":
        inputs, constants = ["x", *(["axes"] if axes else [])], {"axes": np.array(axes)} if axes else {}
        agree(node("ReduceSum", inputs, ["y"], keepdims=keep), {"x": x}, constants)
        return
    attributes = {"axes": axes} if axes else {}
    agree(node(f"Reduce{kind}", ["x"], ["y"], keepdims=keep, **attributes), {"x": x})
    constants = {"axes": np.array(axes)} if axes else {}
    agree(node(f"Reduce{kind}", ["x", *constants], ["y"], keepdims=keep), {"x": x}, constants, opset=18)


def test_reduction_over_no_axes() -> None:
    agree(node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1), {"x": X}, forward=lambda values: values["x"])


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_sums(exclusive: int, reverse: int) -> None:
    attributes = {"exclusive": exclusive, "reverse": reverse}
    agree(
        node("CumSum", ["x", "axis"], ["y"], **attributes), {"x": X}, {"axis": np.int64(1)}, forward="runtime", step=1
    )


MATRICES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
    ((3, 4), (2, 4, 5)),
]


@pytest.mark.parametrize(("a", "b"), MATRICES)
def test_matrix_products(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agree(node("MatMul", ["a", "b"], ["y"]), {"a": random(*a), "b": random(*b, seed=2)})


@pytest.mark.parametrize("bias", [None, (5,), (3, 1), (), (3, 5)])
@pytest.mark.parametrize("flips", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_gemm(flips: tuple[int, int], bias: tuple[int, ...] | None) -> None:
    a, b = random(*((4, 3) if flips[0] else (3, 4))), random(*((5, 4) if flips[1] else (4, 5)), seed=2)
    values = {"a": a, "b": b} | ({} if bias is None else {"c": np.asarray(random(*bias, seed=3), dtype=np.float32)})
    attributes = {"transA": flips[0], "transB": flips[1], "alpha": 0.7, "beta": 1.3}
    agree(node("Gemm", list(values), ["y"], **attributes), values)


@pytest.mark.parametrize(
    ("equation", "a", "b"),
    [
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
        ("bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
        ("ij,j->i", (3, 4), (4,)),
        ("i,j->ji", (3,), (4,)),
    ],
)
def test_einsum(equation: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agree(node("Einsum", ["a", "b"], ["y"], equation=equation), {"a": random(*a), "b": random(*b, seed=2)})
