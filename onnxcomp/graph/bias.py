"""The constant that is added to a layer's output, wherever it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import assign, value_of
from onnxcomp.graph.edit import output_ids, sole_consumer
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["added_bias", "shift_added_bias", "takes_constants"]

Array = np.ndarray[Any, Any]


def added_bias(layer: WeightedLayer, outputs: set[int]) -> gs.Tensor | None:
    """For a MatMul: the constant of the Add behind it, one value per output, when nothing else uses it.

    Args:
        outputs: what ``edit.output_ids`` gave.
    """
    follower = sole_consumer(layer.node.outputs[0], outputs)
    if follower is None or follower.op != "Add" or follower.domain not in (None, "", "ai.onnx"):
        return None
    for tensor in follower.inputs:
        value = value_of(tensor)
        private = len(tensor.outputs) == 1 and id(tensor) not in outputs
        if value is not None and private and value.size == layer.shape[layer.out_axis]:
            return tensor if value.shape[-1:] == (value.size,) else None
    return None


def shift_added_bias(layer: WeightedLayer, shift: Array, outputs: set[int]) -> bool:
    """Add ``shift``, shape (out,), to that constant; returns whether there is one."""
    tensor = added_bias(layer, outputs)
    if tensor is None:
        return False
    value = value_of(tensor)
    assert value is not None
    assign(tensor, (value + shift.reshape(value.shape)).astype(value.dtype))
    return True


def takes_constants(graph: gs.Graph, layer: WeightedLayer) -> bool:
    """Whether there is a bias, or room for one, so that a constant in the outputs can be made up for."""
    return layer.kind != "MatMul" or added_bias(layer, output_ids(graph)) is not None
