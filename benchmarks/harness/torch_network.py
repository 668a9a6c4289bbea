"""An ONNX file as a torch module of the same operators and the same parameters, to train beside onnxcomp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

__all__ = ["TorchNetwork"]

Attributes = Mapping[str, Any]
Tensors = list[torch.Tensor | None]


class TorchNetwork(torch.nn.Module):
    """A network of convolutions, one input and one output, as image classifiers are.

    What is applied to values that nothing else reads is applied in place, as torchvision does. BatchNormalization goes
    by its stored moments.

    Args:
        proto: of an operator set of 13 or later.
        trained: names of the initializers that become parameters; the others are constants.

    Raises:
        ValueError: an operator, or a setting of one, is none of those that are known here.
    """

    def __init__(self, proto: onnx.ModelProto, trained: set[str]) -> None:
        super().__init__()
        graph = proto.graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.names = {name: f"p{index}" for index, name in enumerate(sorted(trained))}
        for name, key in self.names.items():
            self.register_parameter(key, torch.nn.Parameter(torch.tensor(arrays[name])))
        for name, array in arrays.items():
            if name not in trained and array.dtype == np.float32:
                self.register_buffer(f"c{len(self.names)}", torch.tensor(array))
                self.names[name] = f"c{len(self.names)}"
        self._integers = {name: array for name, array in arrays.items() if array.dtype != np.float32}
        (self._input,) = [value.name for value in graph.input if value.name not in arrays]
        (self._output,) = [value.name for value in graph.output]
        self._nodes = [
            (node, {item.name: helper.get_attribute_value(item) for item in node.attribute}) for node in graph.node
        ]
        if unknown := {node.op_type for node in graph.node} - set(_OPERATORS):
            raise ValueError(f"no torch form of {', '.join(sorted(unknown))} is known here")
        read = [name for node in graph.node for name in node.input]
        self._read_once = {name for name in read if read.count(name) == 1} - {self._input, self._output}
        self._last = _last_reads(graph)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The output for a batch."""
        values: dict[str, torch.Tensor] = {self._input: images}
        for index, (node, attributes) in enumerate(self._nodes):
            inputs: Tensors = [self._value(name, values) for name in node.input]
            alone = node.input[0] in self._read_once and node.input[0] in values
            values[node.output[0]] = _OPERATORS[node.op_type](inputs, attributes, alone)
            for name in self._last[index]:
                values.pop(name, None)
        return values[self._output]

    def gradients(self) -> dict[str, np.ndarray[Any, Any]]:
        """Of the parameters, by name of the initializer, after a backward pass."""
        found = {name: getattr(self, key) for name, key in self.names.items() if key.startswith("p")}
        return {name: tensor.grad.numpy() for name, tensor in found.items() if tensor.grad is not None}

    def _value(self, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        if name in values:
            return values[name]
        if name in self._integers:
            return torch.tensor(self._integers[name])
        return getattr(self, self.names[name]) if name else None


def _last_reads(graph: onnx.GraphProto) -> list[list[str]]:
    """What each node is the last to read, so that only the backward pass keeps it."""
    last = {name: index for index, node in enumerate(graph.node) for name in node.input}
    return [[name for name in set(node.input) if last[name] == index] for index, node in enumerate(graph.node)]


def _convolution(inputs: Tensors, attributes: Attributes, _alone: bool) -> torch.Tensor:
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or pads[:2] != pads[2:]:
        raise ValueError("only equal padding on both sides is known here")
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    x, weight, bias = [*inputs, None][:3]
    return functional.conv2d(x, weight, bias, strides, pads[:2], dilations, attributes.get("group", 1))


def _batch_normalization(inputs: Tensors, attributes: Attributes, _alone: bool) -> torch.Tensor:
    x, scale, bias, mean, variance = inputs
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _clip(inputs: Tensors, _attributes: Attributes, alone: bool) -> torch.Tensor:
    x, low, high = [*inputs, None, None][:3]
    assert x is not None
    if low is None or high is None:
        raise ValueError("Clip without a limit is not known here")
    return functional.hardtanh(x, float(low), float(high), inplace=alone)


def _add(inputs: Tensors, _attributes: Attributes, _alone: bool) -> torch.Tensor:
    x, y = inputs
    assert x is not None
    assert y is not None
    return x + y


def _flatten(inputs: Tensors, attributes: Attributes, _alone: bool) -> torch.Tensor:
    (x,) = inputs
    assert x is not None
    if attributes.get("axis", 1) != 1:
        raise ValueError("Flatten is known for axis 1 alone")
    return torch.flatten(x, 1)


def _reshape(inputs: Tensors, _attributes: Attributes, _alone: bool) -> torch.Tensor:
    x, shape = inputs
    assert x is not None
    assert shape is not None
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _gemm(inputs: Tensors, attributes: Attributes, _alone: bool) -> torch.Tensor:
    x, weight, bias = [*inputs, None][:3]
    assert weight is not None
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise ValueError("only a plain Gemm is known here")
    return functional.linear(x, weight if attributes.get("transB", 0) else weight.t(), bias)


_OPERATORS: dict[str, Callable[[Tensors, Attributes, bool], torch.Tensor]] = {
    "Add": _add,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda inputs, _attributes, _alone: functional.adaptive_avg_pool2d(inputs[0], 1),
    "Relu": lambda inputs, _attributes, alone: functional.relu(inputs[0], inplace=alone),
    "Reshape": _reshape,
}
