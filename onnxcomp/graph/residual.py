"""What is added to a layer's output: the other branch of a residual connection."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.edit import output_ids, sole_consumer
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["other_branch"]


def other_branch(graph: gs.Graph, layer: WeightedLayer) -> gs.Tensor | None:
    """The tensor that an Add joins to the layer's output, behind constants that are added; None without one.

    It may be of another shape that is broadcast.
    """
    if layer.kind == "Gemm" and float(layer.node.attrs.get("alpha", 1.0)) != 1.0:
        return None
    outputs, tensor = output_ids(graph), layer.node.outputs[0]
    while True:
        reader = sole_consumer(tensor, outputs)
        if reader is None or reader.op != "Add" or reader.domain not in (None, "", "ai.onnx"):
            return None
        other: gs.Tensor = reader.inputs[1 if reader.inputs[0] is tensor else 0]
        if not is_constant(other):
            return None if other is tensor else other
        tensor = reader.outputs[0]
