"""A transformer of any size with random weights, written without ever being in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

__all__ = ["write_transformer"]

VOCABULARY = 32_000
HIDDEN = 2048


def write_transformer(path: Path, gigabytes: float, inline: bool = False) -> int:
    """Write a decoder-like model of about so many gigabytes (1e9 bytes) of float32 weights; returns their bytes.

    Args:
        path: of the model; its weights go into ``<path>.data`` beside it.
        gigabytes: of weights.
        inline: put the weights into the model's file instead (2 GB at most).
    """
    table = VOCABULARY * HIDDEN * 4
    block = 12 * HIDDEN * HIDDEN * 4
    blocks = max(1, round((gigabytes * 1e9 - table) / block))
    graph, shapes = _graph(blocks)
    rng = np.random.default_rng(0)
    position = 0
    with Path(f"{path}.data").open("wb") as stream:
        for name, shape in shapes:
            scale = np.float32(1 / np.sqrt(shape[0] if len(shape) > 1 else 1))
            value = rng.standard_normal(shape, np.float32) * scale
            tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shape)
            if inline:
                tensor.raw_data = value.tobytes()
            else:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, entry in ("location", f"{path.name}.data"), ("offset", position), ("length", value.nbytes):
                    tensor.external_data.add(key=key, value=str(entry))
                stream.write(value.tobytes())
                position += value.nbytes + -value.nbytes % 4096
                stream.seek(position)
            graph.initializer.append(tensor)
        stream.truncate(position)
    if inline:
        Path(f"{path}.data").unlink()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return sum(4 * int(np.prod(shape)) for _, shape in shapes)


def _graph(blocks: int) -> tuple[onnx.GraphProto, list[tuple[str, tuple[int, ...]]]]:
    """The graph without its weights, and their names and shapes."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("embedding", (VOCABULARY, HIDDEN))]
    nodes = [helper.make_node("Gather", ["embedding", "ids"], ["h0"], name="embedding")]
    for index in range(blocks):
        nodes += _block(index, shapes)
    nodes.append(helper.make_node("ReduceMean", [f"h{blocks}"], ["y"], name="pool", axes=[1], keepdims=0))
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "length"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", HIDDEN])
    return helper.make_graph(nodes, "transformer", [ids], [y]), shapes


def _block(index: int, shapes: list[tuple[str, tuple[int, ...]]]) -> Iterator[onnx.NodeProto]:
    name = f"block{index}"

    def weight(part: str, *shape: int) -> str:
        shapes.append((f"{name}.{part}", shape))
        return f"{name}.{part}"

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    x = f"h{index}"
    yield node("LayerNormalization", [x, weight("norm1", HIDDEN)], f"{name}/n1", axis=-1)
    for part in ("q", "k", "v"):
        yield node("MatMul", [f"{name}/n1", weight(part, HIDDEN, HIDDEN)], f"{name}/{part}")
    yield node("Transpose", [f"{name}/k"], f"{name}/kt", perm=[0, 2, 1])
    yield node("MatMul", [f"{name}/q", f"{name}/kt"], f"{name}/scores")
    yield node("Softmax", [f"{name}/scores"], f"{name}/attention", axis=-1)
    yield node("MatMul", [f"{name}/attention", f"{name}/v"], f"{name}/context")
    yield node("MatMul", [f"{name}/context", weight("o", HIDDEN, HIDDEN)], f"{name}/mixed")
    yield node("Add", [x, f"{name}/mixed"], f"{name}/h")
    yield node("LayerNormalization", [f"{name}/h", weight("norm2", HIDDEN)], f"{name}/n2", axis=-1)
    yield node("MatMul", [f"{name}/n2", weight("up", HIDDEN, 4 * HIDDEN)], f"{name}/up")
    yield node("Relu", [f"{name}/up"], f"{name}/relu")
    yield node("MatMul", [f"{name}/relu", weight("down", 4 * HIDDEN, HIDDEN)], f"{name}/down")
    yield node("Add", [f"{name}/h", f"{name}/down"], f"h{index + 1}")
