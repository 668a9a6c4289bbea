"""Layers rewritten to 8-bit weights without Q/DQ pairs: quantized at run time, restored at load, or looked up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec import all_graphs
from onnxcomp.graph.bodies import common_graph, graphs_of_nodes
from onnxcomp.graph.edit import Names, detach, output_ids, replace_uses
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.int8 import Int8Weights, quantize_weights

__all__ = ["FormWriter", "is_table", "obstacle_to_storing", "stored_rows"]

Array = np.ndarray[Any, Any]
_STORED_OPSET = 7  # since then Mul broadcasts as NumPy does
_Codes = tuple[gs.Tensor, gs.Tensor, gs.Tensor]


class FormWriter:
    """Rewrites layers of a graph and of its bodies, each in place."""

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)
        self._graph_of = graphs_of_nodes(graph)
        self._dynamic: dict[tuple[int, int], _Codes] = {}
        self._replaced: dict[int, list[gs.Node]] = {}

    def dynamic(self, layer: WeightedLayer, weights: Int8Weights, bias: Array | None) -> str:
        """MatMul or Gemm as y = scale · (DynamicQuantizeLinear(x) · codes) + bias; returns the codes' name.

        The range of x is found in every run. Layers of one x share it. ONNX Runtime fuses this to
        DynamicQuantizeMatMul or MatMulIntegerToFloat.
        """
        node, result = layer.node, layer.node.outputs[0]
        nodes: list[gs.Node] = []
        codes, scale, zero = self._quantized_input(node, nodes)
        name = self._names.new(layer.weight.name + "_int8")
        matrix = gs.Constant(name, np.ascontiguousarray(weights.codes.T))
        steps = gs.Constant(self._names.new(layer.weight.name + "_scales"), weights.scales)
        detach(node)
        product, real, factor = (self._variable(result.name + suffix) for suffix in ("_int32", "_sum", "_scale"))
        last = result if bias is None else self._variable(result.name + "_product")
        nodes += [
            self._node("MatMulInteger", [codes, matrix, zero], product, name=str(node.name)),
            self._node("Cast", [product], real, to=onnx.TensorProto.FLOAT),
            self._node("Mul", [scale, steps], factor),
            self._node("Mul", [real, factor], last),
        ]
        if bias is not None:
            offset = gs.Constant(self._names.new(name + "_bias"), bias.astype(np.float32))
            nodes.append(self._node("Add", [last, offset], result))
        self._replaced[id(node)] = nodes
        return name

    def stored(self, layer: WeightedLayer) -> None:
        """The weight as Cast(codes) · scales, for all its readers, in the innermost graph around them.

        ONNX Runtime computes that once, at load; DequantizeLinear it would compute in every run.
        """
        codes, scales = stored_rows(layer)
        source = layer.weight
        stored = gs.Constant(self._names.new(source.name + "_int8"), codes)
        steps = gs.Constant(self._names.new(source.name + "_scales"), scales)
        real, restored = (self._variable(source.name + suffix) for suffix in ("_codes", "_restored"))
        nodes = [
            self._node("Cast", [stored], real, to=onnx.TensorProto.FLOAT),
            self._node("Mul", [real, steps], restored),
        ]
        first = _first_reader(self._graph, source)
        assert first is not None
        replace_uses(source, restored)
        self._replaced.setdefault(id(first), [first])[:0] = nodes

    def table(self, layer: WeightedLayer) -> None:
        """A Gather of rows as a Gather of 8-bit rows, dequantized behind it with a scale for each column."""
        node, result = layer.node, layer.node.outputs[0]
        columns = quantize_weights(np.asarray(layer.array(), np.float64).reshape(-1, layer.shape[-1]).T)
        codes = np.ascontiguousarray(columns.codes.T).reshape(layer.shape)
        picked = gs.Variable(self._names.new(result.name + "_int8"), np.dtype(np.int8))
        steps = gs.Constant(self._names.new(layer.weight.name + "_scales"), columns.scales)
        node.inputs[0] = gs.Constant(self._names.new(layer.weight.name + "_int8"), codes)
        node.outputs[0] = picked
        dequantize = self._node("DequantizeLinear", [picked, steps], result, axis=-1)
        self._replaced[id(node)] = [*self._replaced.get(id(node), [node]), dequantize]

    def finish(self) -> None:
        """Put the new nodes in the places of the old ones and drop what nobody reads any more."""
        for graph in all_graphs(self._graph):
            graph.nodes = [new for node in graph.nodes for new in self._replaced.get(id(node), [node])]
        self._graph.cleanup()

    def _quantized_input(self, node: gs.Node, nodes: list[gs.Node]) -> _Codes:
        """Codes, scale and zero point of the activation; their node goes before the first use in its graph."""
        source = node.inputs[0]
        key = id(self._graph_of[id(node)]), id(source)
        if key not in self._dynamic:
            codes, scale, zero = (self._variable(source.name + suffix) for suffix in ("_uint8", "_step", "_zero"))
            self._dynamic[key] = codes, scale, zero
            name = self._names.new(source.name + "_quantize")
            nodes.append(gs.Node("DynamicQuantizeLinear", name, inputs=[source], outputs=[codes, scale, zero]))
        return self._dynamic[key]

    def _node(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor, name: str = "", **attrs: Any) -> gs.Node:
        return gs.Node(op, name or self._names.new(f"{output.name}_{op}"), attrs, inputs=inputs, outputs=[output])

    def _variable(self, name: str) -> gs.Variable:
        return gs.Variable(self._names.new(name))


def obstacle_to_storing(graph: gs.Graph, layer: WeightedLayer) -> str:
    """Why the weight cannot be kept in 8 bits and restored by nodes beside the layer, or nothing."""
    if layer.quantized:
        return "the weight is quantized already"
    if str(layer.array().dtype) != "float32":
        return f"its weights are {layer.array().dtype}, not float32"
    if not layer.finite:
        return "its weights or biases hold NaN or infinite values"
    root = graph
    if layer.function:
        root = next(function for function in graph.functions if common_graph(function, {id(layer.node)}))
        if all(entry.domain not in ("", "ai.onnx") for entry in root.import_domains or ()):
            return "the function imports no standard operators to restore it"
    if root.opset is None or root.opset < _STORED_OPSET:
        return f"the Mul of operator set {root.opset} cannot restore it"
    if id(layer.weight) in output_ids(root):
        return "its weight is also an output, which stays in float"
    return "" if _first_reader(graph, layer.weight) is not None else "its readers stand in no common graph"


def _first_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    """In the innermost graph around all readers, the first node that is one or holds one."""
    readers = {id(node) for node in tensor.outputs}
    for root in (graph, *graph.functions):
        if (place := common_graph(root, readers)) is not None:
            return place[1]
    return None


def stored_rows(layer: WeightedLayer) -> tuple[Array, Array]:
    """Codes of the weight's shape, and scales that broadcast over it.

    One scale for each output channel where the layout is known, else for each row of the last axis.
    """
    array = np.asarray(layer.array(), np.float64)
    kept = list(range(array.ndim - 1)) if layer.kind == "other" else [layer.out_axis]
    rest = [axis for axis in range(array.ndim) if axis not in kept]
    order = [*kept, *rest]
    moved = array.transpose(order)
    shape = [array.shape[axis] for axis in kept]
    weights = quantize_weights(moved.reshape(int(np.prod(shape)), -1))
    codes = weights.codes.reshape(moved.shape).transpose(np.argsort(order))
    scales = weights.scales.reshape([size if axis in kept else 1 for axis, size in enumerate(array.shape)])
    return np.ascontiguousarray(codes), scales


def is_table(layer: WeightedLayer) -> bool:
    """Whether the layer picks rows of its weight, as an embedding does."""
    node = layer.node
    gathers = node.op == "Gather" and node.domain in (None, "", "ai.onnx") and layer.weight_index == 0
    rows = gathers and node.attrs.get("axis", 0) == 0 and len(layer.shape) >= 2
    return rows and not layer.shared and not layer.quantized and not layer.function
