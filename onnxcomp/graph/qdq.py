"""QuantizeLinear and DequantizeLinear written into a graph."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import Names, detach
from onnxcomp.graph.given_grids import GivenGrid
from onnxcomp.graph.layers import WeightedLayer, layer_name
from onnxcomp.graph.upsampling import Upsampling
from onnxcomp.linalg.int8 import Int8Weights
from onnxcomp.linalg.ranges import grid

__all__ = ["QdqWriter"]

Array = np.ndarray[Any, Any]


class QdqWriter:
    """Adds pairs of QuantizeLinear and DequantizeLinear; ``finish`` puts the new nodes in order.

    Scales and zero points of the same value are stored once. Weights carry no zero point unless a fusion
    asks for one: it is zero where DequantizeLinear reads signed integers.
    """

    def __init__(self, graph: gs.Graph, names: Names) -> None:
        self._graph = graph
        self._names = names
        self._own = {id(node) for node in graph.nodes}
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], gs.Constant] = {}
        self._before: dict[int, list[gs.Node]] = defaultdict(list)
        self._after: dict[int, list[gs.Node]] = defaultdict(list)
        self._first: list[gs.Node] = []
        self._codes: dict[int, gs.Tensor] = {}
        self._moved: set[int] = set()

    def result(self, tensor: gs.Tensor, scale: float, zero_point: int) -> None:
        """Quantize what a node writes to ``tensor``: its readers, and the graph's, get the rounded values."""
        producer = tensor.inputs[0]
        producer.name = layer_name(producer)  # the reports' name for it, which else changes with its output
        raw = self._variable(tensor.name + "_float")
        position = next(index for index, item in enumerate(producer.outputs) if item is tensor)
        producer.outputs[position] = raw
        self._after[id(producer)] += self._pair(raw, tensor, scale, zero_point)

    def reading(self, tensor: gs.Tensor, scale: float, zero_point: int, readers: set[int]) -> None:
        """Quantize ``tensor`` for some of its readers (``id`` of nodes); the others see it as it is."""
        rounded = self._variable(tensor.name + "_rounded")
        self._redirect(tensor, rounded, readers)
        self._behind(tensor, self._pair(tensor, rounded, scale, zero_point))

    def given(self, tensor: gs.Tensor, grid: GivenGrid, readers: set[int]) -> None:
        """Let readers (``id`` of nodes) have ``tensor`` on the grid that it, or a copy beside it, has already."""
        self._codes[id(tensor)] = grid.codes
        rounded = grid.dequantize.outputs[0]
        if rounded is not tensor:
            self._redirect(tensor, rounded, readers)
            pair = [grid.codes.inputs[0], grid.dequantize]
            self._behind(tensor, pair)
            self._moved.update(map(id, pair))

    def reread(self, tensor: gs.Tensor, source: gs.Tensor, scale: float, zero_point: int) -> None:
        """Let the integers of ``source``, which have been written, serve for ``tensor``; its node goes."""
        node = tensor.inputs[0]
        detach(node)
        codes = self._codes[id(tensor)] = self._codes[id(source)]
        inputs = [codes, *self._grid(scale, zero_point)]
        self._after[id(node)].append(self._node("DequantizeLinear", inputs, tensor))

    def hard_sigmoid(self, node: gs.Node, scale: float, zero_point: int) -> None:
        """Replace a HardSigmoid: clip(a · x + b, 0, 1) is what adding b / a and rounding to 0 … 1 / a gives.

        An addition is the fastest integer kernel there is, several times as fast as converting and rounding.
        """
        source, target = node.inputs[0], node.outputs[0]
        slope, offset = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
        detach(node)
        add = gs.Node("Add", str(node.name), inputs=[source, gs.Constant("", np.array(offset / slope, np.float32))])
        raw = self._variable(target.name + "_float")
        add.outputs.append(raw)
        self.operand(add, 1)
        codes = gs.Variable(self._names.new(target.name + "_uint8"), np.dtype(np.uint8), _shape(target))
        self._codes[id(target)] = codes
        self._after[id(node)] += [
            *self._before.pop(id(add)),
            add,
            self._node("QuantizeLinear", [raw, *self._grid(scale / slope, zero_point)], codes),
            self._node("DequantizeLinear", [codes, *self._grid(scale, zero_point)], target),
        ]

    def upsample(self, tensor: gs.Tensor, source: gs.Tensor, how: Upsampling, scale: float, zero_point: int) -> None:
        """Copy the integers of ``source``, which have been written, instead of a Resize or DepthToSpace.

        With the channels last, the rows of channels of all pixels in a square follow each other by rows of it.
        """
        node, side, channels = tensor.inputs[0], how.factor, how.channels
        codes = self._codes[id(source)]
        detach(node)
        last = self._added(node, "Transpose", [codes], tensor, perm=[0, 2, 3, 1])
        if how.shuffled:  # (N, H, W, f, f·C)
            split = self._added(node, "Reshape", [last, self._sizes(0, 0, 0, side, side * channels)], tensor)
            rows = self._added(node, "Transpose", [split], tensor, perm=[0, 1, 3, 2, 4])
            sizes = self._upsampled_sizes(node, codes, tensor, how)
        else:
            rows = self._added(node, "Tile", [last, self._sizes(1, 1, side, side)], tensor)
            sizes = self._sizes(0, -1, 0, channels)
        whole = self._added(node, "Reshape", [rows, sizes], tensor)
        result = self._added(node, "Transpose", [whole], tensor, perm=[0, 3, 1, 2])
        result.shape = _shape(tensor)
        self._codes[id(tensor)] = result
        dequantize = self._node("DequantizeLinear", [result, *self._grid(scale, zero_point)], tensor)
        self._after[id(node)].append(dequantize)

    def _upsampled_sizes(self, node: gs.Node, codes: gs.Tensor, tensor: gs.Tensor, how: Upsampling) -> gs.Tensor:
        """N, H·f, W·f and C, as a run tells them."""
        sizes = self._added(node, "Shape", [codes], tensor, np.int64)
        sizes = self._added(node, "Gather", [sizes, self._sizes(0, 2, 3)], tensor, np.int64)
        sizes = self._added(node, "Mul", [sizes, self._sizes(1, how.factor, how.factor)], tensor, np.int64)
        return self._added(node, "Concat", [sizes, self._sizes(how.channels)], tensor, np.int64, axis=0)

    def _added(
        self, node: gs.Node, op: str, inputs: list[gs.Tensor], tensor: gs.Tensor, kind: Any = np.uint8, **attrs: Any
    ) -> gs.Tensor:
        """The output of a new operator that follows a node, named after a tensor."""
        output = gs.Variable(self._names.new(f"{tensor.name}_{np.dtype(kind)}"), np.dtype(kind))
        name = self._names.new(f"{output.name}_{op}")
        self._after[id(node)].append(gs.Node(op, name, attrs, inputs=inputs, outputs=[output]))
        return output

    def _sizes(self, *sizes: int) -> gs.Constant:
        return self._constant("sizes", np.array(sizes, np.int64))

    def operand(self, node: gs.Node, index: int) -> None:
        """Hold a constant operand as integers."""
        value = np.asarray(value_of(node.inputs[index]), np.float32)
        scale, zero_point = grid(float(value.min(initial=0)), float(value.max(initial=0)))
        codes = np.clip(np.rint(value / np.float32(scale)) + zero_point, 0, 255).astype(np.uint8)
        constant = gs.Constant(self._names.new((node.inputs[index].name or "constant") + "_uint8"), np.asarray(codes))
        real = self._variable(constant.name + "_float")
        node.inputs[index] = real
        inputs = [constant, *self._grid(scale, zero_point)]
        self._before[id(node)].append(self._node("DequantizeLinear", inputs, real))

    def weight(self, layer: WeightedLayer, weights: Int8Weights) -> str:
        """Let the layer read these weights; returns the name of their constant."""
        shape = layer.shape
        codes = weights.codes.reshape(shape[layer.out_axis], -1)
        if layer.kind == "Conv":
            array = codes.reshape(shape)
        else:
            array = np.ascontiguousarray(np.moveaxis(codes, 0, layer.out_axis))
        name = self._names.new(layer.weight.name + "_int8")
        output = self._dequantized(layer, gs.Constant(name, array), weights.scales, layer.out_axis)
        if layer.kind == "Gemm":  # the one operator whose fusion asks for it
            output.inputs[0].inputs.append(self._constant("zeros", np.zeros(len(weights.scales), np.int8)))
        layer.node.inputs[layer.weight_index] = output
        return name

    def bias(self, layer: WeightedLayer, codes: Array, scales: Array) -> None:
        """Let the layer read this bias, int32, shape (channels,)."""
        name = self._names.new(layer.weight.name + "_bias_int32")
        output = self._dequantized(layer, gs.Constant(name, codes), scales, 0)
        if len(layer.node.inputs) > 2:
            layer.node.inputs[2] = output
        else:
            layer.node.inputs.append(output)

    def finish(self) -> None:
        """Put the new nodes where the graph's order wants them."""
        nodes = list(self._first)
        for node in self._graph.nodes:
            stays = [] if id(node) in self._moved else [node]
            nodes += [*self._before[id(node)], *stays, *self._after[id(node)]]
        self._graph.nodes = nodes

    def _redirect(self, tensor: gs.Tensor, rounded: gs.Tensor, readers: set[int]) -> None:
        for node in list(tensor.outputs):
            if id(node) in readers:
                for index, item in enumerate(node.inputs):
                    if item is tensor and self._reads_activation(node, index):
                        node.inputs[index] = rounded

    def _behind(self, tensor: gs.Tensor, nodes: list[gs.Node]) -> None:
        """Let nodes follow what computes the tensor."""
        if tensor.inputs and id(tensor.inputs[0]) in self._own:
            self._after[id(tensor.inputs[0])] += nodes
        else:  # an input of the graph, or what a body reads of the graphs around it
            self._first += nodes

    def _reads_activation(self, node: gs.Node, index: int) -> bool:
        """Operators that take shapes or indices beside the activation read those as they are."""
        return index == 0 or node.op in ("Add", "Mul", "Concat")

    def _pair(self, source: gs.Tensor, target: gs.Tensor, scale: float, zero_point: int) -> list[gs.Node]:
        step, zero = self._grid(scale, zero_point)
        codes = gs.Variable(self._names.new(target.name + "_uint8"), np.dtype(np.uint8), _shape(target))
        self._codes[id(target)] = codes
        return [
            self._node("QuantizeLinear", [source, step, zero], codes),
            self._node("DequantizeLinear", [codes, step, zero], target),
        ]

    def _grid(self, scale: float, zero_point: int) -> tuple[gs.Constant, gs.Constant]:
        return self._constant("scale", np.float32(scale)), self._constant("zero", np.uint8(zero_point))

    def _dequantized(self, layer: WeightedLayer, codes: gs.Constant, scales: Array, axis: int) -> gs.Tensor:
        output = self._variable(codes.name + "_float")
        step = self._constant("scales", scales)
        node = self._node("DequantizeLinear", [codes, step], output)
        node.attrs["axis"] = axis
        self._before[id(layer.node)].append(node)
        return output

    def _node(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor) -> gs.Node:
        return gs.Node(op, self._names.new(output.name + "_" + op[0]), inputs=inputs, outputs=[output])

    def _variable(self, name: str) -> gs.Variable:
        return gs.Variable(self._names.new(name), np.dtype(np.float32))

    def _constant(self, prefix: str, value: Any) -> gs.Constant:
        array = np.asarray(value)
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self._constants:
            name = self._names.new(f"{prefix}_{len(self._constants)}")
            self._constants[key] = gs.Constant(name, array)
        return self._constants[key]


def _shape(tensor: gs.Tensor) -> Any:
    return None if isinstance(tensor, gs.Constant) else tensor.shape
