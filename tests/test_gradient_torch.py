"""Gradients of layers and of a small network against torch, where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from tests.differences import build, derivative, gradients, node, random

torch = pytest.importorskip("torch")
functional = torch.nn.functional

Array = np.ndarray[Any, Any]
Values = dict[str, Array]


def _same(nodes: list[onnx.NodeProto], values: Values, forward: Callable[..., Any], opset: int = 13) -> None:
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    result = forward(**tensors)
    target = random(*result.shape, seed=11)
    functional.mse_loss(result, torch.tensor(target)).backward()
    feeds = {"_": random(1)}
    found = derivative(build(nodes, values, opset=opset), list(values), feeds)
    _, grads = gradients(found, values, feeds, {"y": target})
    for name, tensor in tensors.items():
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(grads[name], expected, rtol=1e-3, atol=1e-5 * max(1, float(np.abs(expected).max())))


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (2, 0, 2), (1, 3, 2)])
def test_convolution(stride: int, padding: int, dilation: int, groups: int) -> None:
    values = {"x": random(3, 8, 11, 10), "w": random(8, 8 // groups, 3, 3, seed=1), "b": random(8, seed=2)}
    attributes = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2, "group": groups}
    _same(
        [node("Conv", ["x", "w", "b"], ["y"], **attributes)],
        values,
        lambda x, w, b: functional.conv2d(x, w, b, stride, padding, dilation, groups),
    )


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("stride", "padding", "extra"), [(1, 0, 0), (2, 1, 1), (2, 0, 0), (3, 1, 2)])
def test_transposed_convolution(stride: int, padding: int, extra: int, groups: int) -> None:
    values = {"x": random(2, 4, 5, 6), "w": random(4, 8 // groups, 3, 3, seed=1), "b": random(8, seed=2)}
    attributes = {"strides": [stride] * 2, "pads": [padding] * 4, "output_padding": [extra] * 2, "group": groups}
    _same(
        [node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)],
        values,
        lambda x, w, b: functional.conv_transpose2d(x, w, b, stride, padding, extra, groups),
    )


def test_layer_normalization() -> None:
    values = {"x": random(2, 5, 16), "s": random(16, seed=1), "b": random(16, seed=2)}
    layer = node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)
    _same([layer], values, lambda x, s, b: functional.layer_norm(x, (16,), s, b), opset=17)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax(op: str, axis: int) -> None:
    function = functional.softmax if op == "Softmax" else functional.log_softmax
    _same([node(op, ["x"], ["y"], axis=axis)], {"x": 3 * random(3, 4, 5)}, lambda x: function(x, axis))


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_gelu(kind: str) -> None:
    layer = node("Gelu", ["x"], ["y"], approximate=kind)
    _same([layer], {"x": 3 * random(5, 7)}, lambda x: functional.gelu(x, approximate=kind), opset=20)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"), [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 1, 0, 3)]
)
def test_pooling(kernel: int, stride: int, padding: int, dilation: int, ceil: int) -> None:
    attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "ceil_mode": ceil}
    # many equal values: which of them has the gradient is part of the agreement
    values = {"x": np.round(random(2, 3, 9, 10))}
    _same(
        [node("MaxPool", ["x"], ["y"], dilations=[dilation] * 2, **attributes)],
        values,
        lambda x: functional.max_pool2d(x, kernel, stride, padding, dilation, bool(ceil)),
    )
    if dilation > 1:
        return
    for counted in (0, 1):
        _same(
            [node("AveragePool", ["x"], ["y"], count_include_pad=counted, **attributes)],
            values,
            lambda x, c=bool(counted): functional.avg_pool2d(x, kernel, stride, padding, bool(ceil), c),
            opset=19,
        )


def test_a_small_network() -> None:
    """Convolution, normalization, pooling, a residual, attention and a classifier."""
    shapes = {
        "c": (8, 3, 3, 3),
        "d": (8, 1, 3, 3),
        "s": (8,),
        "o": (8,),
        "q": (8, 8),
        "k": (8, 8),
        "v": (8, 8),
        "f": (5, 8),
    }
    values = {"x": random(2, 3, 12, 12)} | {
        name: 0.4 * random(*shape, seed=place) for place, (name, shape) in enumerate(shapes.items())
    }
    constants = [
        node("Constant", [], ["mean"], value=onnx.numpy_helper.from_array(np.zeros(8, np.float32))),
        node("Constant", [], ["variance"], value=onnx.numpy_helper.from_array(np.ones(8, np.float32))),
        node("Constant", [], ["flat"], value=onnx.numpy_helper.from_array(np.array([2, 8, 36]))),
        node("Constant", [], ["middle"], value=onnx.numpy_helper.from_array(np.array([1]))),
    ]
    nodes = [
        *constants,
        node("Conv", ["x", "c"], ["h1"], pads=[1] * 4),
        node("BatchNormalization", ["h1", "s", "o", "mean", "variance"], ["h2"]),
        node("Relu", ["h2"], ["h3"]),
        node("Conv", ["h3", "d"], ["h4"], pads=[1] * 4, group=8),
        node("Add", ["h3", "h4"], ["h5"]),
        node("MaxPool", ["h5"], ["h6"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Reshape", ["h6", "flat"], ["h7"]),
        node("Transpose", ["h7"], ["t"], perm=[0, 2, 1]),
        *(node("MatMul", ["t", name], [name * 2]) for name in "qkv"),
        node("Transpose", ["kk"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["qq", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["shares"]),
        node("MatMul", ["shares", "vv"], ["mixed"]),
        node("ReduceSum", ["mixed", "middle"], ["pooled"], keepdims=0),
        node("Gemm", ["pooled", "f"], ["y"], transB=1),
    ]

    def forward(x: Any, c: Any, d: Any, s: Any, o: Any, q: Any, k: Any, v: Any, f: Any) -> Any:
        mean, variance = torch.zeros(8), torch.ones(8)
        h = functional.relu(functional.batch_norm(functional.conv2d(x, c, padding=1), mean, variance, s, o))
        h = functional.max_pool2d(h + functional.conv2d(h, d, padding=1, groups=8), 3, 2, 1)
        t = h.flatten(2).transpose(1, 2)
        shares = functional.softmax((t @ q) @ (t @ k).transpose(1, 2), -1)
        return (shares @ (t @ v)).sum(1) @ f.T

    _same(nodes, values, forward)
