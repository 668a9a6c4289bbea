"""A training step of a whole network by onnxsim's ``compile_training_loop``: distillation of class scores.

onnxsim differentiates a graph whose shapes are fixed and that computes the loss itself; mini-batches and rates are the
caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["LOSS", "TARGET", "trainable", "training_loop", "with_loss"]

LOSS, TARGET = "distillation_loss", "distillation_target"
_TINY = 1e-12


def training_loop(
    proto: onnx.ModelProto,
    trained: Sequence[str],
    batch: int,
    optimizer: str = "adam",
    masks: Mapping[str, Any] | None = None,
) -> Any:
    """onnxsim's loop: call it with the feeds, the teacher's probabilities as ``TARGET``, and a rate.

    Args:
        proto: of a classifier with one output, [batch, classes].
        trained: initializers.
        batch: rows of a mini-batch.
        optimizer: as onnxsim names it.
        masks: where weights stay, by name; those where it is 0 are 0.
    """
    import onnxsim

    return onnxsim.compile_training_loop(with_loss(proto, batch, masks or {}), LOSS, list(trained), optimizer=optimizer)


def with_loss(proto: onnx.ModelProto, batch: int, masks: Mapping[str, Any]) -> onnx.ModelProto:
    """The network with the cross entropy of its class scores with probabilities for its only output."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    (output,) = graph.output
    classes = output.type.tensor_type.shape.dim[1].dim_value
    _replace_flatten(graph, batch)
    for name, mask in masks.items():
        _mask(graph, name, np.asarray(mask, dtype=np.float32))
    nodes = [
        helper.make_node("Softmax", [output.name], ["distillation_q"], axis=-1),
        helper.make_node("Add", ["distillation_q", "distillation_tiny"], ["distillation_safe"]),
        helper.make_node("Log", ["distillation_safe"], ["distillation_log"]),
        helper.make_node("Mul", ["distillation_log", TARGET], ["distillation_terms"]),
        helper.make_node("ReduceSum", ["distillation_terms", "distillation_axes"], ["distillation_sum"], keepdims=0),
        helper.make_node("Mul", ["distillation_sum", "distillation_share"], [LOSS]),
    ]
    graph.node.extend(nodes)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(_TINY, np.float32), "distillation_tiny"),
            numpy_helper.from_array(np.array([0, 1], np.int64), "distillation_axes"),
            numpy_helper.from_array(np.array(-1 / batch, np.float32), "distillation_share"),
        ]
    )
    graph.input.append(helper.make_tensor_value_info(TARGET, TensorProto.FLOAT, [batch, classes]))
    del graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
    return made


def trainable(proto: onnx.ModelProto) -> list[str]:
    """Float initializers that layers read."""
    names = {name for node in proto.graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input[1:]}
    return [tensor.name for tensor in proto.graph.initializer if tensor.name in names]


def _replace_flatten(graph: onnx.GraphProto, batch: int) -> None:
    """By Reshape, which onnxsim has a rule for."""
    for index, node in enumerate(list(graph.node)):
        if node.op_type == "Flatten":
            shape = f"{node.output[0]}_shape"
            graph.initializer.append(numpy_helper.from_array(np.array([batch, -1], np.int64), shape))
            graph.node[index].CopyFrom(helper.make_node("Reshape", [node.input[0], shape], [node.output[0]]))


def _mask(graph: onnx.GraphProto, name: str, mask: Any) -> None:
    """Multiply a weight by a constant wherever it is read."""
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = f"{name}_masked"
    graph.initializer.append(numpy_helper.from_array(mask, f"{name}_mask"))
    graph.node.insert(0, helper.make_node("Mul", [name, f"{name}_mask"], [f"{name}_masked"]))
