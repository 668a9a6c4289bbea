"""Which layers of a file ONNX Runtime runs on integers, and which in float."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxcomp.model import Model
from onnxcomp.runtime.kernels import Kernel, optimized_kernels

__all__ = ["Kernels", "count", "kernels_of"]

INTEGER = {
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
}
FLOAT = {
    "Conv",
    "FusedConv",
    "ConvTranspose",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "Attention",
    "LSTM",
    "GRU",
}


@dataclass(frozen=True)
class Kernels:
    """Of the optimized graph.

    Attributes:
        integer: integer kernels of weighted layers, and of products of two activations.
        float_layers: layers with constant weights in a float kernel.
    """

    integer: int
    float_layers: int


def kernels_of(path: Path) -> Kernels:
    """Count in the graph that ONNX Runtime makes of a file on this machine."""
    model = Model.load(path)
    inputs = {tensor.name for tensor in model.graph.inputs}
    return count(optimized_kernels(model), inputs)


def count(nodes: list[Kernel], inputs: set[str]) -> Kernels:
    """Count among nodes in order; what depends on no input of the graph is constant."""
    varying = set(inputs)
    integer = float_layers = 0
    for node in nodes:
        if not node.inputs or any(name in varying for name in node.inputs):
            varying.update(node.outputs)
        integer += node.op in INTEGER
        float_layers += node.op in FLOAT and len(node.inputs) > 1 and node.inputs[1] not in varying
    return Kernels(integer, float_layers)
