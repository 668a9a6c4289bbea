"""Small sound models to mutate: each runs in ONNX Runtime, and together they use most parts of the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import models
from tests.generate import Net

__all__ = ["LARGE_SEEDS", "SEEDS", "external_weights"]

_MODELS = Path(__file__).resolve().parents[2] / "models"


def _convolutions() -> onnx.ModelProto:
    net = Net(0, (3, 8, 8))
    x = net.activation(net.batch_norm(net.conv("x", 16)))
    x = net.activation(net.add(x, net.conv(net.activation(net.conv(x, 8)), 16)), "Clip")
    x = net.gate(net.depthwise(x), 4)
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    return net.proto()


def _constant_nodes() -> onnx.ModelProto:
    net = Net(1, (4, 6), constant_nodes=True, opset=13)
    x = net.activation(net.conv("x", 8), "LeakyRelu")
    x = net.concat(x, net.conv_transpose(net.conv(x, 8, kernel=1, stride=2), 8))
    net.matmul(net.node("ReduceMean", x, axes=[2], keepdims=0), 3)
    return net.proto()


def _weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng([len(name), *shape]).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values / np.float32(np.sqrt(shape[0])), name)


def _vector(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _made(name: str, *arguments: Any, **attributes: Any) -> onnx.NodeProto:
    op, inputs, outputs = arguments
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attributes)


def _transformer() -> onnx.ModelProto:
    """One block of BERT as exporters write it: symbolic lengths, shapes that are computed, split heads."""
    width, heads = 16, 2
    nodes = [
        _made("embed", "Gather", "table ids", "e"),
        _made("shape", "Shape", "ids", "s"),
        _made("batch", "Gather", "s zero", "b"),
        _made("length", "Gather", "s one", "l"),
        _made("b1", "Unsqueeze", "b axis", "b1"),
        _made("l1", "Unsqueeze", "l axis", "l1"),
        _made("split", "Concat", "b1 l1 headed", "split", axis=0),
        _made("joined", "Concat", "b1 l1 width", "joined", axis=0),
        _made("ones", "ConstantOfShape", "joined", "ones", value=helper.make_tensor("", 1, [1], [1.0])),
        _made("masked", "Mul", "e ones", "em"),
        _made("norm1", "LayerNormalization", "em gain shift", "h", axis=-1),
    ]
    for part in "qkv":
        order = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        nodes += [
            _made(f"{part}.product", "MatMul", f"h w{part}", f"{part}p"),
            _made(f"{part}.bias", "Add", f"{part}p bias", f"{part}b"),
            _made(f"{part}.split", "Reshape", f"{part}b split", f"{part}r"),
            _made(f"{part}.turn", "Transpose", f"{part}r", f"{part}t", perm=order),
        ]
    nodes += [
        _made("scores", "MatMul", "qt kt", "qk"),
        _made("soft", "Softmax", "qk", "a", axis=-1),
        _made("mixed", "MatMul", "a vt", "av"),
        _made("turn", "Transpose", "av", "avt", perm=[0, 2, 1, 3]),
        _made("join", "Reshape", "avt joined", "aj"),
        _made("out", "MatMul", "aj wo", "ao"),
        _made("skip", "Add", "ao em", "r"),
        _made("up", "MatMul", "r wu", "u"),
        _made("erf", "Erf", "u", "ue"),
        _made("act", "Mul", "u ue", "ua"),
        _made("down", "MatMul", "ua wd", "y"),
    ]
    weights = [_weight("table", 20, width), _weight("gain", width), _weight("shift", width), _weight("bias", width)]
    weights += [_weight(f"w{part}", width, width) for part in "qkvo"]
    weights += [_weight("wu", width, 32), _weight("wd", 32, width)]
    weights += [_vector("axis", 0), _vector("headed", heads, width // heads), _vector("width", width)]
    weights += [numpy_helper.from_array(np.array(index, np.int64), name) for index, name in enumerate(("zero", "one"))]
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", width])
    return models.model_of(helper.make_graph(nodes, "bert", [given], [made], weights))


def _loop() -> onnx.ModelProto:
    """A Loop whose body holds an If whose branches hold weights, and a Scan."""
    value, scalar = models.value, lambda name, kind: helper.make_tensor_value_info(name, kind, [])
    branch = {}
    for name in ("then", "else"):
        product = _made(name, "MatMul", f"state {name}.w", f"{name}.y")
        branch[name] = helper.make_graph(
            [product], name, [], [value(f"{name}.y", "N", 4)], [_weight(f"{name}.w", 4, 4)]
        )
    body = helper.make_graph(
        [
            _made("again", "Identity", "going", "goes"),
            _made("sum", "ReduceSum", "state", "total", keepdims=0),
            _made("sign", "Greater", "total half", "positive"),
            _made("branch", "If", "positive", "next", then_branch=branch["then"], else_branch=branch["else"]),
            _made("row", "ReduceMean", "next", "mean", keepdims=0),
        ],
        "body",
        [scalar("i", TensorProto.INT64), scalar("going", TensorProto.BOOL), value("state", "N", 4)],
        [scalar("goes", TensorProto.BOOL), value("next", "N", 4), scalar("mean", TensorProto.FLOAT)],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    step = helper.make_graph(
        [_made("add", "Add", "carry item", "carried"), _made("keep", "Identity", "carried", "kept")],
        "step",
        [scalar("carry", TensorProto.FLOAT), scalar("item", TensorProto.FLOAT)],
        [scalar("carried", TensorProto.FLOAT), scalar("kept", TensorProto.FLOAT)],
    )
    nodes = [
        _made("loop", "Loop", "trips yes x", "last means", body=body),
        _made("scan", "Scan", "start means", "end sums", body=step, num_scan_inputs=1),
    ]
    weights = [
        numpy_helper.from_array(np.array(3, np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(0, np.float32), "start"),
    ]
    outputs = [value("last", "N", 4), value("sums", None)]
    return models.model_of(helper.make_graph(nodes, "loops", [value("x", "N", 4)], outputs, weights), opset=17)


def _quantized() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array(rng.integers(-127, 128, (8, 3, 3, 3), np.int8), "w8"),
        numpy_helper.from_array(np.full(8, 0.01, np.float32), "ws"),
        numpy_helper.from_array(np.zeros(8, np.int8), "wz"),
        numpy_helper.from_array(np.array(0.05, np.float32), "s"),
        numpy_helper.from_array(np.array(128, np.uint8), "z"),
    ]
    nodes = [
        _made("q", "QuantizeLinear", "x s z", "xq"),
        _made("dq", "DequantizeLinear", "xq s z", "xd"),
        _made("w", "DequantizeLinear", "w8 ws wz", "wd", axis=0),
        _made("conv", "Conv", "xd wd", "c", pads=[1, 1, 1, 1]),
        _made("q2", "QuantizeLinear", "c s z", "cq"),
        _made("dq2", "DequantizeLinear", "cq s z", "y"),
    ]
    given, made = models.value("x", "N", 3, 8, 8), models.value("y", "N", 8, 8, 8)
    graph = helper.make_graph(nodes, "qdq", [given], [made], weights)
    return models.model_of(graph, opset=17)


def _recurrent() -> onnx.ModelProto:
    """An LSTM, and operators whose attributes and constants say how large their results are."""
    nodes = [
        _made("pad", "Pad", "x pads", "p"),
        _made("tile", "Tile", "p repeats", "t"),
        _made("lstm", "LSTM", "t w r", "h1 h2 h3", hidden_size=4),
        _made("squeeze", "Squeeze", "h1 axes", "h"),
        _made("range", "Range", "from to by", "steps"),
        _made("cast", "Cast", "steps", "floats", to=TensorProto.FLOAT),
        _made("expand", "Expand", "floats wide", "rows"),
        _made("resize", "Resize", "h none scales", "large", mode="nearest"),
        _made("split", "Split", "large halves", "left right", axis=2),
        _made("top", "TopK", "left k", "best where", axis=2),
        _made("product", "MatMul", "best rows", "y"),
    ]
    nodes[7].input[1] = ""
    weights = [
        _vector("pads", 0, 0, 0, 1, 0, 0), _vector("repeats", 2, 1, 1), _vector("axes", 1), _vector("wide", 2, 4),
        _vector("halves", 4, 4), _vector("k", 2), _weight("w", 1, 16, 4), _weight("r", 1, 16, 4),
        numpy_helper.from_array(np.array([1, 1, 2], np.float32), "scales"),
    ]  # fmt: skip
    weights += [
        numpy_helper.from_array(np.array(number, np.int64), name)
        for name, number in (("from", 0), ("to", 4), ("by", 1))
    ]
    graph = helper.make_graph(nodes, "rnn", [models.value("x", 3, "N", 4)], [models.value("y", None, None, 4)], weights)
    return models.model_of(graph, opset=17)


def external_weights(proto: onnx.ModelProto, location: str = "weights.bin") -> bytes:
    """Move every initializer of the model to one file; returns its bytes."""
    data = b""
    for tensor in proto.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        kept = (tensor.name, tensor.data_type, list(tensor.dims))
        tensor.Clear()
        tensor.name, tensor.data_type = kept[:2]
        tensor.dims.extend(kept[2])
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", len(data)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(text))
        data += raw
    return data


SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolutions": _convolutions,
    "constant nodes": _constant_nodes,
    "transformer": _transformer,
    "loops and branches": _loop,
    "quantized": _quantized,
    "sizes": _recurrent,
    "functions": models.overloaded_functions,
    "old format": lambda: models.initializers_that_are_inputs(3),
    "outer initializers": models.branches,
    "documented": models.documented,
}
"""Name of each seed, and what makes it."""

LARGE_SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "fashion": lambda: onnx.load(_MODELS / "fashion_resnet.onnx"),
    "fashion, unfused": lambda: onnx.load(_MODELS / "fashion_resnet_bn.onnx"),
}
"""Committed models: real, and slower."""
