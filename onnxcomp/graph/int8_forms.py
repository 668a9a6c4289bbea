"""Layers rewritten to weights of few bits without Q/DQ pairs: quantized at run time, restored at load, or looked up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec import all_graphs
from onnxcomp.graph.bodies import common_graph, graphs_of_nodes
from onnxcomp.graph.edit import Names, detach, output_ids, replace_uses
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.packed import Restorer
from onnxcomp.graph.rows import RowLayout
from onnxcomp.linalg.codebooks import Codebooks
from onnxcomp.linalg.int8 import quantize_weights
from onnxcomp.linalg.weights import QuantizedWeights

__all__ = ["FormWriter", "is_table", "obstacle_to_storing", "opset_of"]

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
        self._restorers: dict[int, Restorer] = {}

    def dynamic(self, layer: WeightedLayer, weights: QuantizedWeights, bias: Array | None) -> str:
        """MatMul or Gemm as y = scale · (DynamicQuantizeLinear(x) · codes) + bias; returns the codes' name.

        The range of x is found in every run. Layers of one x share it. ONNX Runtime fuses this to
        DynamicQuantizeMatMul or MatMulIntegerToFloat.
        """
        node, result = layer.node, layer.node.outputs[0]
        nodes: list[gs.Node] = []
        codes, scale, zero = self._quantized_input(node, nodes)
        layout = RowLayout(weights.codes.shape[::-1], (1,))
        restorer = self._restorer(self._graph_of[id(node)], int(self._graph.opset))
        matrix, restoring = restorer.integers(weights, layout, layer.weight.name)
        nodes += restoring
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
            offset = gs.Constant(self._names.new(matrix.name + "_bias"), bias.astype(np.float32))
            nodes.append(self._node("Add", [last, offset], result))
        self._replaced[id(node)] = nodes
        return str(matrix.name)

    def stored(self, layer: WeightedLayer, weights: QuantizedWeights) -> None:
        """The weight in codes that are restored at load, for all its readers, in the innermost graph around them."""
        restorer, first = self._place(layer)
        self._restore(layer, first, *restorer.floats(weights, RowLayout.of(layer), layer.weight.name))

    def shared(self, layer: WeightedLayer, books: Codebooks, codes: Array) -> None:
        """The weight in codes, (channels, inputs), that count values of codebooks, in the same way."""
        restorer, first = self._place(layer)
        self._restore(layer, first, *restorer.shared(books, codes, RowLayout.of(layer), layer.weight.name))

    def halved(self, layer: WeightedLayer) -> None:
        """The weight in float16, in the same way."""
        restorer, first = self._place(layer)
        self._restore(layer, first, *restorer.halves(layer.array(), layer.weight.name))

    def _place(self, layer: WeightedLayer) -> tuple[Restorer, gs.Node]:
        found = _first_reader(self._graph, layer.weight)
        assert found is not None
        root, graph, first = found
        return self._restorer(graph, int(root.opset)), first

    def _restore(self, layer: WeightedLayer, first: gs.Node, restored: gs.Tensor, nodes: list[gs.Node]) -> None:
        replace_uses(layer.weight, restored)
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

    def _restorer(self, graph: gs.Graph, opset: int) -> Restorer:
        """That of this graph: its constants stay in it."""
        if id(graph) not in self._restorers:
            self._restorers[id(graph)] = Restorer(self._names, opset)
        return self._restorers[id(graph)]

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


def opset_of(graph: gs.Graph, layer: WeightedLayer) -> int:
    """The operator set that the nodes which restore a layer's weight have: that of the model, or of a function."""
    found = _first_reader(graph, layer.weight)
    return int((graph if found is None else found[0]).opset or 0)


def _first_reader(graph: gs.Graph, tensor: gs.Tensor) -> tuple[gs.Graph, gs.Graph, gs.Node] | None:
    """The model or function, the innermost graph in it around all readers, and its first node that is or holds one."""
    readers = {id(node) for node in tensor.outputs}
    for root in (graph, *graph.functions):
        if (place := common_graph(root, readers)) is not None:
            return root, *place
    return None


def is_table(layer: WeightedLayer) -> bool:
    """Whether the layer picks rows of its weight, as an embedding does."""
    node = layer.node
    gathers = node.op == "Gather" and node.domain in (None, "", "ai.onnx") and layer.weight_index == 0
    rows = gathers and node.attrs.get("axis", 0) == 0 and len(layer.shape) >= 2
    return rows and not layer.shared and not layer.quantized and not layer.function
