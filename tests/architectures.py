"""Small models of the shapes that exporters give real networks, one feature each, written as text."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["ARCHITECTURES", "build"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


def build(
    body: str,
    weights: Mapping[str, Shape | Array] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    dtype: Any = np.float32,
) -> onnx.ModelProto:
    """A model from ONNX text: its graph's inputs, outputs and nodes.

    Args:
        body: ``(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }``.
        weights: initializers; of a shape, random values that keep activations near 1.
        opset, ir_version: of the model; ``com.microsoft`` is always imported.
        dtype: of the random ones.
    """
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{header} net {body}")
    for name, value in (weights or {}).items():
        array = value if isinstance(value, np.ndarray) else _random(name, value).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    if ir_version < 4:  # every initializer is an input too
        for tensor in proto.graph.initializer:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for index, node in enumerate(proto.graph.node):
        node.name = f"/{node.op_type}{index}"
    return proto


def _random(name: str, shape: Shape) -> Array:
    rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
    fan_in = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 4
    return rng.standard_normal(shape) / np.sqrt(fan_in)


def _conv(attributes: str, x: str, weight: Shape, outputs: int, op: str = "Conv") -> onnx.ModelProto:
    """The operator in a network: between activations, with a projection of its channels behind it."""
    axes = ",".join("?" * (len(weight) - 2))
    body = f"""(float[{x}] x) => (float[N,16,{axes}] y) {{
        h = Relu(x)
        c = {op} <{attributes}> (h, w, b)
        r = Relu(c)
        y = Conv(r, v)
    }}"""
    return build(body, {"w": weight, "b": (outputs,), "v": (16, outputs, *[1] * (len(weight) - 2))})


def _gemm(attributes: str, x: str, weight: Shape, bias: Shape | None = (32,)) -> onnx.ModelProto:
    body = f"""(float[{x}] x) => (float[?,?] y) {{
        h = Gemm <{attributes}> (x, w{", b" if bias is not None else ""})
        r = Relu(h)
        y = MatMul(r, v)
    }}"""
    weights: dict[str, Shape] = {"w": weight, "v": (32, 48)}
    return build(body, weights if bias is None else {**weights, "b": bias})


def _recurrent(op: str, gates: int, directions: int, more: str = "", inputs: str = "") -> onnx.ModelProto:
    """Sequence first, 12 features in and 24 hidden, with a projection behind it."""
    direction = "bidirectional" if directions == 2 else "forward"
    states = f", float[{directions},2,24] h0" if "h0" in inputs else ""
    states += f", float[{directions},2,24] c0" if "c0" in inputs else ""
    body = f"""(float[T,2,12] x{states}) => (float[?,?,?] y, float[{directions},2,24] last) {{
        s, last = {op} <hidden_size = 24, direction = "{direction}"{more}> (x, w, r, b{inputs})
        t = Transpose <perm = [0, 2, 1, 3]> (s)
        f = Reshape(t, shape)
        y = MatMul(f, p)
    }}"""
    weights: dict[str, Shape | Array] = {
        "w": (directions, gates * 24, 12),
        "r": (directions, gates * 24, 24),
        "b": (directions, 2 * gates * 24),
        "p": (directions * 24, 32),
        "shape": np.array([0, 0, -1], np.int64),
    }
    return build(body, weights)


_MLP = """(float[N,32] x) => (float[N,16] y) {
    h = MatMul(x, w1)
    a = Relu(h)
    y = MatMul(a, w2)
}"""
_MLP_WEIGHTS: dict[str, Shape] = {"w1": (32, 64), "w2": (64, 16)}


def _mlp_of(text: str, dtype: Any, opset: int = 17) -> onnx.ModelProto:
    return build(_MLP.replace("float[", f"{text}["), _MLP_WEIGHTS, opset, dtype=dtype)


def _with(value: float) -> onnx.ModelProto:
    """A weight with one value that is no number, or infinite."""
    weight = _random("w1", (32, 64)).astype(np.float32)
    weight[3, 5] = value
    return build(_MLP, {"w1": weight, "w2": (64, 16)})


def _shared_block() -> onnx.ModelProto:
    return build(
        """(float[N,16,8,8] x) => (float[N,16,8,8] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            c = Relu(a)
            d = Conv <pads = [1, 1, 1, 1]> (c, w, b)
            e = Relu(d)
            f = Conv <pads = [1, 1, 1, 1]> (e, w2, b)
            y = Add(f, x)
        }""",
        {"w": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "b": (16,)},
    )


def _function_block() -> onnx.ModelProto:
    """One model-local function that two nodes call with weights of their own."""
    return onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "org.example" : 1]>
        net (float[N,4] x) => (float[N,4] y)
        <float[4,4] w1 = {1,0,0,1, 0,1,0,0, 0.5,0,1,0, 0,0,0.25,1},
         float[4,4] w2 = {1,2,0,1, 0,1,0,0, 0,0,1,0, 0,3,0,1}>
        {
            h = org.example.layer(x, w1)
            y = org.example.layer(h, w2)
        }
        <domain: "org.example", opset_import: ["" : 17]>
        layer (a, w) => (r) { p = MatMul(a, w)  r = Relu(p) }"""
    )


def _custom(reachable: bool) -> onnx.ModelProto:
    """An operator that ONNX Runtime does not know, read by an output or by nothing."""
    proto = build(_MLP, _MLP_WEIGHTS)
    proto.opset_import.append(onnx.helper.make_opsetid("org.example", 1))
    last = proto.graph.node[-1]
    odd = onnx.helper.make_node("Odd", ["a"], ["odd"], name="/odd", domain="org.example")
    proto.graph.node.insert(2, odd)
    if reachable:
        last.input[0] = "odd"
    return proto


_VARIANCE = np.linspace(0.5, 2, 32, dtype=np.float32)


def _batch_norm(opset: int, attributes: str, ir_version: int = 3) -> onnx.ModelProto:
    return build(
        f"""(float[N,3,8,8] x) => (float[N,16,8,8] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            n = BatchNormalization <epsilon = 0.001{attributes}> (c, scale, shift, mean, var)
            r = Relu(n)
            y = Conv <pads = [1, 1, 1, 1]> (r, v)
        }}""",
        {"w": (32, 3, 3, 3), "v": (16, 32, 3, 3), "scale": (32,), "shift": (32,), "mean": (32,), "var": _VARIANCE},
        opset,
        ir_version,
    )


def _between_convs(
    line: str, opset: int, more: Mapping[str, Array] | None = None, y: str = "N,8,8,8"
) -> onnx.ModelProto:
    """One line that makes ``m`` of ``r``, between two convolutions."""
    return build(
        f"""(float[N,3,8,8] x) => (float[{y}] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu(c)
            {line}
            y = Conv <pads = [1, 1, 1, 1]> (m, v)
        }}""",
        {"w": (32, 3, 3, 3), "b": (32,), "v": (8, 32, 3, 3), **(more or {})},
        opset,
        ir_version=3 if opset < 9 else 4,
    )


def _attention(line: str, weights: Mapping[str, Shape | Array], opset: int = 17) -> onnx.ModelProto:
    """One line that makes ``a`` of ``q``, ``k`` and ``v``, with projections around it."""
    body = f"""(float[N,S,32] x) => (float[N,S,32] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        {line}
        o = MatMul(a, wo)
        y = Add(o, x)
    }}"""
    projections: dict[str, Shape | Array] = dict.fromkeys(("wq", "wk", "wv", "wo"), (32, 32))
    return build(body, {**projections, **weights}, opset, ir_version=10 if opset > 21 else 8)


_LAYERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "shared weights between layers": _shared_block,
    "a function called twice": _function_block,
    "one matrix in two layers": lambda: build(
        "(float[N,32] x) => (float[N,32] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w) }", {"w": (32, 32)}
    ),
    "tied embeddings": lambda: build(
        """(int64[N,T] ids) => (float[N,T,40] y) {
            e = Gather(w, ids)
            h = MatMul(e, v)
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul(h, t)
        }""",
        {"w": (40, 32), "v": (32, 32)},
    ),
    "3-D weight": lambda: build("(float[4,N,16] x) => (float[4,N,24] y) { y = MatMul(x, w) }", {"w": (4, 16, 24)}),
    "4-D batched weight": lambda: build(
        "(float[N,4,S,16] x) => (float[N,4,S,24] y) { y = MatMul(x, w) }", {"w": (1, 4, 16, 24)}
    ),
    "weight on the left": lambda: build(
        "(float[32,N] x) => (float[16,N] y) { h = MatMul(w1, x)  r = Relu(h)  y = MatMul(w2, r) }",
        {"w1": (48, 32), "w2": (16, 48)},
    ),
    "vector times matrix": lambda: build("(float[32] x) => (float[48] y) { y = MatMul(x, w) }", {"w": (32, 48)}),
    "Gemm": lambda: _gemm("alpha = 1.0", "N,24", (24, 32)),
    "Gemm transB": lambda: _gemm("transB = 1", "N,24", (32, 24)),
    "Gemm transA": lambda: _gemm("transA = 1", "24,N", (24, 32)),
    "Gemm transA transB": lambda: _gemm("transA = 1, transB = 1", "24,N", (32, 24)),
    "Gemm alpha beta": lambda: _gemm("alpha = 0.5, beta = 2.0", "N,24", (24, 32)),
    "Gemm without C": lambda: _gemm("transB = 1", "N,24", (32, 24), None),
    "Gemm with a C of one row": lambda: _gemm("beta = 0.5", "N,24", (24, 32), (1, 32)),
    "Gemm with a scalar C": lambda: _gemm("beta = 0.5", "N,24", (24, 32), (1,)),
    "Gemm with the weight as A": lambda: build(
        "(float[24,N] x) => (float[48,N] y) { y = Gemm(w, x) }", {"w": (48, 24)}
    ),
    "Einsum": lambda: build(
        '(float[N,S,32] x) => (float[N,S,4,12] y) { y = Einsum <equation = "nsd,dhk->nshk"> (x, w) }',
        {"w": (32, 4, 12)},
    ),
    "Conv 1-D": lambda: _conv("pads = [1, 1]", "N,16,L", (48, 16, 3), 48),
    "Conv 3-D": lambda: _conv("pads = [1, 1, 1, 1, 1, 1]", "N,8,4,4,4", (32, 8, 3, 3, 3), 32),
    "Conv grouped": lambda: _conv("group = 4, pads = [1, 1, 1, 1]", "N,32,8,8", (64, 8, 3, 3), 64),
    "Conv depthwise": lambda: _conv("group = 64, pads = [1, 1, 1, 1]", "N,64,8,8", (64, 1, 3, 3), 64),
    "Conv depthwise multiplied": lambda: _conv("group = 32, pads = [1, 1, 1, 1]", "N,32,8,8", (64, 1, 3, 3), 64),
    "Conv SAME_UPPER": lambda: _conv('auto_pad = "SAME_UPPER", strides = [2, 2]', "N,16,9,9", (32, 16, 3, 3), 32),
    "Conv SAME_LOWER": lambda: _conv('auto_pad = "SAME_LOWER"', "N,16,9,9", (32, 16, 4, 4), 32),
    "Conv VALID": lambda: _conv('auto_pad = "VALID"', "N,16,8,8", (32, 16, 3, 3), 32),
    "Conv dilated": lambda: _conv("dilations = [2, 3], pads = [2, 3, 2, 3]", "N,16,H,W", (32, 16, 3, 3), 32),
    "Conv of uneven pads": lambda: _conv("pads = [0, 1, 2, 1]", "N,16,8,8", (32, 16, 3, 3), 32),
    "ConvTranspose": lambda: _conv("strides = [2, 2]", "N,32,4,4", (32, 48, 2, 2), 48, "ConvTranspose"),
    "ConvTranspose grouped": lambda: _conv(
        "group = 4, strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        "N,32,4,4",
        (32, 12, 3, 3),
        48,
        "ConvTranspose",
    ),
    "ConvTranspose to a shape": lambda: _conv(
        "strides = [2, 2], output_shape = [9, 9]", "N,32,4,4", (32, 48, 3, 3), 48, "ConvTranspose"
    ),
    "LSTM": lambda: _recurrent("LSTM", 4, 1),
    "LSTM bidirectional with states": lambda: _recurrent("LSTM", 4, 2, inputs=", , h0, c0"),
    "GRU": lambda: _recurrent("GRU", 3, 1, ", linear_before_reset = 1"),
    "GRU bidirectional with a state": lambda: _recurrent("GRU", 3, 2, inputs=", , h0"),
    "RNN": lambda: _recurrent("RNN", 1, 1, inputs=", , h0"),
    "RNN bidirectional": lambda: _recurrent("RNN", 1, 2),
}

_OPERATORS: dict[str, Callable[[], onnx.ModelProto]] = {
    "com.microsoft.Attention": lambda: build(
        """(float[N,S,32] x) => (float[N,S,32] y) {
            a = com.microsoft.Attention <num_heads = 4> (x, w, b)
            y = MatMul(a, v)
        }""",
        {"w": (32, 96), "b": (96,), "v": (32, 32)},
    ),
    "com.microsoft.MultiHeadAttention": lambda: _attention(
        "a = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)", {}
    ),
    "com.microsoft.GroupQueryAttention": lambda: build(
        """(float[1,4,32] x) => (float[1,4,32] y) {
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            a, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
                (q, k, v, , , length, total)
            y = MatMul(a, wo)
        }""",
        {
            "wq": (32, 32),
            "wk": (32, 16),
            "wv": (32, 16),
            "wo": (32, 32),
            "length": np.array([3], np.int32),
            "total": np.array(4, np.int32),
        },
    ),
    "com.microsoft.FusedMatMul": lambda: build(
        """(float[N,32] x) => (float[N,16] y) {
            h = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w)
            r = Relu(h)
            y = MatMul(r, v)
        }""",
        {"w": (48, 32), "v": (48, 16)},
    ),
    "com.microsoft.SkipLayerNormalization": lambda: build(
        """(float[N,S,32] x) => (float[N,S,32] y) {
            h = MatMul(x, w)
            y = com.microsoft.SkipLayerNormalization <epsilon = 0.00001> (h, x, gamma, beta, bias)
        }""",
        {"w": (32, 32), "gamma": (32,), "beta": (32,), "bias": (32,)},
    ),
    "com.microsoft.EmbedLayerNormalization": lambda: build(
        """(int32[N,8] ids, int32[N,8] segments) => (float[N,8,32] y) {
            e, mask = com.microsoft.EmbedLayerNormalization (ids, segments, words, places, kinds, gamma, beta)
            y = MatMul(e, w)
        }""",
        {"words": (60, 32), "places": (16, 32), "kinds": (2, 32), "gamma": (32,), "beta": (32,), "w": (32, 32)},
    ),
    "Attention": lambda: _attention("a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)", {}, opset=23),
    "LayerNormalization": lambda: build(
        """(float[N,S,32] x) => (float[N,S,32] y) {
            n = LayerNormalization <axis = -1> (x, scale, shift)
            h = MatMul(n, w)
            y = Add(h, x)
        }""",
        {"w": (32, 32), "scale": (32,), "shift": (32,)},
    ),
}

_OLD: dict[str, Callable[[], onnx.ModelProto]] = {
    "BatchNormalization of opset 7": lambda: _batch_norm(7, ", momentum = 0.9, spatial = 1"),
    "BatchNormalization of opset 9": lambda: _batch_norm(9, ", momentum = 0.9", 4),
    "BatchNormalization of opset 15": lambda: _batch_norm(15, ", training_mode = 0", 8),
    "Upsample of opset 7": lambda: _between_convs(
        'm = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (r)', 7, y="N,8,16,16"
    ),
    "Upsample of opset 9": lambda: _between_convs(
        'm = Upsample <mode = "nearest"> (r, s)', 9, {"s": np.array([1, 1, 2, 2], np.float32)}, "N,8,16,16"
    ),
    "Resize of opset 10": lambda: _between_convs(
        'm = Resize <mode = "nearest"> (r, s)', 10, {"s": np.array([1, 1, 2, 2], np.float32)}, "N,8,16,16"
    ),
    "Clip of opset 7": lambda: _between_convs("m = Clip <min = 0.0, max = 6.0> (r)", 7),
    "Clip of opset 11": lambda: _between_convs(
        "m = Clip(r, lo, hi)", 11, {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}
    ),
    "Dropout of opset 7": lambda: _between_convs("m = Dropout <ratio = 0.5> (r)", 7),
    "Dropout of opset 12": lambda: _between_convs("m = Dropout(r, p)", 12, {"p": np.array(0.5, np.float32)}),
    "Pad of opset 8": lambda: _between_convs(
        'm = Pad <mode = "constant", pads = [0, 0, 1, 1, 0, 0, 1, 1], value = 0.0> (r)', 8, y="N,8,10,10"
    ),
    "Pad of opset 11": lambda: _between_convs(
        "m = Pad(r, p)", 11, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}, "N,8,10,10"
    ),
    "Slice of opset 8": lambda: _between_convs(
        "m = Slice <axes = [2, 3], starts = [1, 1], ends = [7, 7]> (r)", 8, y="N,8,6,6"
    ),
    "Slice of opset 10": lambda: _between_convs(
        "m = Slice(r, from, to, axes)",
        10,
        {"from": np.array([1, 1], np.int64), "to": np.array([7, 7], np.int64), "axes": np.array([2, 3], np.int64)},
        "N,8,6,6",
    ),
    "Softmax of opset 11": lambda: _between_convs("m = Softmax <axis = 1> (r)", 11),
    "MatMul of opset 7": lambda: build(_MLP, _MLP_WEIGHTS, 7, 3),
}

_ODD: dict[str, Callable[[], onnx.ModelProto]] = {
    "an operator that nothing reads and nobody knows": lambda: _custom(reachable=False),
    "an operator that nobody knows": lambda: _custom(reachable=True),
    "no weighted layers": lambda: build("(float[N,C,H,W] x) => (float[N,C,H,W] y) { h = Relu(x)  y = Tanh(h) }"),
    "no nodes": lambda: build("(float[N,4] x) => (float[N,4] x) { }"),
    "nothing but a constant": lambda: build("() => (float[4,4] y) { y = Identity(w) }", {"w": (4, 4)}),
    "dynamic everything": lambda: build(
        """(float[batch,16,height,width] x) => (float[batch,8,h2,w2] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            r = Relu(c)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
            y = Conv(p, v)
        }""",
        {"w": (32, 16, 3, 3), "b": (32,), "v": (8, 32, 1, 1)},
    ),
    "a weight with NaN": lambda: _with(np.nan),
    "a weight with Inf": lambda: _with(np.inf),
    "a weight of zeros": lambda: build(_MLP, {"w1": np.zeros((32, 64), np.float32), "w2": (64, 16)}),
    "float16": lambda: _mlp_of("float16", np.float16),
    "bfloat16": lambda: _mlp_of("bfloat16", ml_dtypes.bfloat16),
    "double": lambda: _mlp_of("double", np.float64),
    "a weight without elements": lambda: build(
        "(float[N,0] x) => (float[N,16] y) { y = MatMul(x, w) }", {"w": np.zeros((0, 16), np.float32)}
    ),
}

ARCHITECTURES = {**_LAYERS, **_OPERATORS, **_OLD, **_ODD}
"""Makers of models by the feature that they have."""
