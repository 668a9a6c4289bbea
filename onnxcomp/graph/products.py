"""Matrix products with a bias behind them, in the one operator that has both."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, shape_of
from onnxcomp.graph.edit import detach, output_ids, sole_consumer
from onnxcomp.graph.inferred import TensorType
from onnxcomp.graph.layers import layer_name

__all__ = ["merge_biases"]

_STANDARD = (None, "", "ai.onnx")


def merge_biases(graph: gs.Graph, types: Mapping[str, TensorType]) -> int:
    """MatMul of a matrix and constant weights, and Add of one constant for each output, become Gemm.

    ONNX Runtime does so itself when it loads a model, but too late to give the Gemm an integer kernel.

    Args:
        graph: the main graph; bodies are left alone, as ``types`` does not tell their tensors.
        types: of its tensors.

    Returns:
        how many were found.
    """
    outputs, members = output_ids(graph), {id(node) for node in graph.nodes}
    found = 0
    for node in list(graph.nodes):
        if node.op != "MatMul" or node.domain not in _STANDARD or not _multiplies_matrix(node, types):
            continue
        add = sole_consumer(node.outputs[0], outputs)
        if add is None or id(add) not in members or add.op != "Add" or add.domain not in _STANDARD:
            continue
        bias = next((tensor for tensor in add.inputs if tensor is not node.outputs[0]), None)
        if bias is None or not is_constant(bias) or not _is_bias(bias, node.inputs[1]):
            continue
        node.name = layer_name(node)  # the reports' name for it, which else changes with its output
        result = add.outputs[0]
        detach(add)
        node.op = "Gemm"
        node.inputs.append(bias)
        node.outputs[0] = result
        found += 1
    return found


def _multiplies_matrix(node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    known = types.get(node.inputs[0].name)
    rank = None if known is None or known.shape is None else len(known.shape)
    return rank == 2 and is_constant(node.inputs[1]) and len(shape_of(node.inputs[1]) or ()) == 2


def _is_bias(bias: gs.Tensor, weight: gs.Tensor) -> bool:
    """One value for each column of the weight, in a vector or a row."""
    shape, columns = shape_of(bias), (shape_of(weight) or (0, 0))[1]
    return shape in ((columns,), (1, columns))
