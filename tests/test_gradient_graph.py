"""What becomes of a whole graph: sums over paths, frozen parameters and their reasons, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.gradient import Term
from tests.differences import agree, build, derivative, gradients, node, random

Array = np.ndarray[Any, Any]
FEEDS = {"x": random(2, 4)}


def test_gradients_of_a_tensor_used_twice_add_up() -> None:
    nodes = [
        node("Mul", ["w", "w"], ["square"]),
        node("Add", ["square", "w"], ["sum"]),
        node("Exp", ["w"], ["e"]),
        node("Sub", ["sum", "e"], ["y"]),
    ]
    agree(nodes, {"w": random(3, 4)})


def _frozen(
    nodes: list[onnx.NodeProto], names: list[str], opset: int = 13, **more: Array
) -> tuple[Any, dict[str, str]]:
    values = {name: random(4, 4, seed=place) for place, name in enumerate(names)}
    found = derivative(build(nodes, {**values, **more}, feeds=FEEDS, opset=opset), names, FEEDS)
    onnx.checker.check_model(found.model)
    return found, found.frozen


def test_behind_an_operator_without_a_rule_parameters_are_frozen() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("MatMul", ["b", "b"], ["square"]),
        node("Det", ["square"], ["d"], name="det"),
        node("Mul", ["p", "d"], ["y"]),
    ]
    found, frozen = _frozen(nodes, ["a", "b"])
    assert list(found.gradients) == ["a"]
    assert frozen == {"b": "there is no derivative of Det det"}


def test_one_blocked_path_of_two_freezes() -> None:
    """The other path alone would point in a wrong direction."""
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("Shrink", ["p"], ["s"], name="shrink"),
        node("Add", ["p", "s"], ["sum"]),
        node("MatMul", ["sum", "b"], ["y"]),
    ]
    found, frozen = _frozen(nodes, ["a", "b"])
    assert list(found.gradients) == ["b"]
    assert frozen == {"a": "there is no derivative of Shrink shrink"}


def test_a_rule_that_does_not_cover_a_form_freezes_with_its_reason() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("Cast", ["n"], ["i"], to=onnx.TensorProto.INT64),
        node("Mul", ["i", "i"], ["j"]),
        node("Slice", ["p", "j", "far"], ["s"], name="cut"),
        node("MatMul", ["s", "b"], ["y"]),
    ]
    found, frozen = _frozen(nodes, ["a", "b"], n=np.zeros(1, np.int32), far=np.array([2]))
    assert list(found.gradients) == ["b"]
    assert frozen == {"a": "there is no derivative of Slice cut: where it starts is not constant"}


def test_an_input_that_a_rule_gives_no_gradient_freezes_only_what_is_behind_it() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["p"]),
        node("ReduceMean", ["b"], ["low"], keepdims=0),
        node("Clip", ["p", "low"], ["y"], name="clip"),
    ]
    found, frozen = _frozen(nodes, ["a", "b"])
    assert list(found.gradients) == ["a"]
    assert frozen == {"b": "there is no derivative of Clip clip by its input 1"}


def test_other_types_freeze() -> None:
    half = onnx.TensorProto.FLOAT16
    nodes = [
        node("Cast", ["a"], ["h"], to=half),
        node("Mul", ["h", "h"], ["s"], name="half"),
        node("Cast", ["s"], ["f"], to=onnx.TensorProto.FLOAT),
        node("MatMul", ["x", "b"], ["p"]),
        node("MatMul", ["p", "f"], ["y"]),
    ]
    _, frozen = _frozen(nodes, ["a", "b"])
    assert list(frozen) == ["a"]
    assert "another type than float32" in frozen["a"]


def test_what_the_loss_does_not_depend_on_is_told() -> None:
    nodes = [
        node("MatMul", ["x", "a"], ["y"]),
        node("MatMul", ["x", "b"], ["aside"]),
        node("Shape", ["c"], ["size"]),
    ]
    found, frozen = _frozen(nodes, ["a", "b", "c"])
    assert list(found.gradients) == ["a"]
    assert frozen == dict.fromkeys("bc", "the loss does not depend on it")


def test_nothing_to_train_leaves_the_loss() -> None:
    nodes = [node("MatMul", ["x", "a"], ["p"]), node("Shrink", ["p"], ["y"])]
    found, frozen = _frozen(nodes, ["a"])
    assert not found.gradients
    assert list(frozen) == ["a"]
    loss, _ = gradients(found, {"a": random(4, 4)}, FEEDS, {"y": np.zeros((2, 4), np.float32)})
    assert loss > 0


LOSSES = ["kl", "bernoulli", "mse", "ce"]


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses(kind: Any, axis: int) -> None:
    """Their values as the definitions say, and their gradients as differences do."""
    values = {"w": random(2, 3, 4)}
    proto = build([node("Identity", ["w"], ["y"])], values)
    feeds = {"_": random(1)}
    found = derivative(proto, ["w"], feeds, [Term("y", kind, axis=axis, weight=1.5)])
    rng = np.random.default_rng(0)
    probable = _softmax(rng.standard_normal((2, 3, 4)), axis)
    classes = rng.integers(0, (2, 3, 4)[axis], (2, 3) if axis == -1 else (2, 4))
    target = {"kl": probable, "bernoulli": probable, "mse": random(2, 3, 4, seed=9).astype(float), "ce": classes}[kind]
    fed = target if kind == "ce" else target.astype(np.float32)
    loss, grads = gradients(found, values, feeds, {"y": fed})
    exact = values["w"].astype(float)
    assert loss == pytest.approx(1.5 * _defined(kind, exact, target, axis), rel=1e-5)
    for place in range(3):
        direction = np.random.default_rng(place).standard_normal(exact.shape)
        ahead, back = (_defined(kind, exact + sign * 1e-5 * direction, target, axis) for sign in (1, -1))
        assert (grads["w"] * direction).sum() == pytest.approx(1.5 * (ahead - back) / 2e-5, rel=1e-4, abs=1e-6)


def _softmax(z: Array, axis: int) -> Array:
    shares = np.exp(z - z.max(axis=axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis=axis, keepdims=True))


def _defined(kind: str, z: Array, target: Array, axis: int) -> float:
    if kind == "mse":
        return float(np.mean((z - target) ** 2))
    if kind == "bernoulli":
        q = 1 / (1 + np.exp(-z))
        return float(np.mean(target * np.log(target / q) + (1 - target) * np.log((1 - target) / (1 - q))))
    q = _softmax(z, axis)
    if kind == "ce":
        return float(-np.mean(np.log(np.take_along_axis(q, np.expand_dims(target, axis), axis))))
    return float((target * np.log(target / q)).sum(axis=axis).mean())
