"""Small models to time: layers between narrow neighbours, with weights of ordinary size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.panels import channel_axis
from onnxcomp.model import Model
from onnxcomp.runtime.layer_times import ordinary_values

__all__ = ["ATTRIBUTES", "NARROW", "Builder", "Neighbours"]

Array = np.ndarray[Any, Any]

NARROW = 16  # channels of what stands before and behind
ATTRIBUTES = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "transA", "transB", "alpha")


class Builder:
    """Builds a model node by node; weights are ``ordinary_values``."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Array) -> str:
        """The name of a constant of this value."""
        self._constants.append(numpy_helper.from_array(value, f"c{len(self._constants)}"))
        return str(self._constants[-1].name)

    def values(self, *shape: int) -> str:
        """The name of a constant of this shape."""
        return self.constant(ordinary_values(shape, np.float32))

    def node(self, op: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        """Appends a node; returns the name of its output."""
        self._nodes.append(helper.make_node(op, inputs, [f"v{len(self._nodes)}"], name, **attributes))
        return str(self._nodes[-1].output[0])

    def model(self, outputs: Sequence[str], fed: Sequence[int]) -> Model:
        """With an input x of the shape ``fed``."""
        kind = onnx.TensorProto.FLOAT
        given = [helper.make_tensor_value_info("x", kind, fed)]
        made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "piece", given, made, self._constants)
        opset = helper.make_opsetid("", 17)
        return Model.from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=8))


class Neighbours:
    """What stands before and behind a layer: convolutions of 1x1, or, for matrix products, additions.

    ONNX Runtime keeps convolutions in a layout of its own from one to the next.

    Attributes:
        inputs: channels that the layer reads.
        axis: of these.
        fed: shape of what the whole is fed.
    """

    def __init__(self, layer: WeightedLayer, shape: Sequence[int]) -> None:
        self._convolution = layer.kind == "Conv"
        self._ones = [1] * (len(shape) - 2)
        self.axis = channel_axis(layer, len(shape))
        self.inputs = shape[self.axis]
        self.fed = (shape[0], NARROW, *shape[2:]) if self._convolution else tuple(shape)

    def before(self, build: Builder) -> str:
        """Appends what gives the layer's input; returns its name."""
        if self._convolution:
            return build.node("Relu", [build.node("Conv", ["x", build.values(self.inputs, NARROW, *self._ones)])])
        return build.node("Add", ["x", build.values(1)])

    def after(self, build: Builder, value: str, outputs: int) -> str:
        """Appends what reads the layer's output of so many channels; returns the name of what that gives."""
        if self._convolution:
            return build.node("Conv", [value, build.values(NARROW, outputs, *self._ones)])
        return build.node("Add", [value, build.values(1)])
