"""Which tensors of a graph to hold as 8-bit integers so that ONNX Runtime fuses integer kernels around them.

ONNX Runtime replaces an operator by an integer kernel when all its activations come through DequantizeLinear
and its result goes to QuantizeLinear alone. So the inputs of every chosen layer and the results of every
chosen convolution are held as integers, and with them whatever lies between two of them and has an integer
kernel: residual additions, pooling, concatenation, and operators that only move values (those share one
grid).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.bodies import graphs_of_nodes
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import output_ids, sole_consumer
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["IntegerPlan", "Site", "make_plan", "make_plans", "unsuitable"]

# Values pass through unchanged, so both sides share one grid and the operator runs on integers.
MOVES = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Resize"}
# Integer kernels with a grid of their own for the result.
COMPUTES = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu"}
# Those that may combine an activation with a constant, which is then held as integers too.
COMBINES = {"Add", "Mul"}
# Affine up to where it saturates: reading its input's integers on another grid is all it takes.
GATE = "HardSigmoid"
GATE_LEVELS = 255
# ONNX Runtime drops these before QuantizeLinear when no level lies outside their limits.
RECTIFIERS = {"Relu", "Clip"}
_STANDARD = (None, "", "ai.onnx")


@dataclass(frozen=True)
class Site:
    """A layer that is to run on integers.

    Attributes:
        layer: it.
        source: its activation.
        result: its output, behind the rectifier that fuses with it.
    """

    layer: WeightedLayer
    source: gs.Tensor
    result: gs.Tensor


@dataclass
class IntegerPlan:
    """What to quantize in one graph.

    Attributes:
        graph: the main graph or a body.
        sites: the layers.
        tensors: to be held as integers, in graph order.
        roots: by ``id`` of such a tensor, the one whose values tell its grid.
        gates: by ``id`` of such a tensor, the HardSigmoid that computes it; its grid is 0, 1/255 … 1.
        fused: ``id`` of those tensors whose producer runs on integers: everybody reads them as such.
        readers: ``id`` of the nodes that read integers.
    """

    graph: gs.Graph
    sites: list[Site]
    tensors: list[gs.Tensor] = field(default_factory=list)
    roots: dict[int, gs.Tensor] = field(default_factory=dict)
    gates: dict[int, gs.Node] = field(default_factory=dict)
    fused: set[int] = field(default_factory=set)
    readers: set[int] = field(default_factory=set)

    def distinct_roots(self) -> list[gs.Tensor]:
        """The tensors whose values decide grids."""
        roots = {id(root): root for root in (self.roots[id(tensor)] for tensor in self.tensors)}
        return [root for key, root in roots.items() if key not in self.gates]

    def roots_around(self, site: Site) -> list[gs.Tensor]:
        """The tensors whose values decide the grids of what a layer reads and, of a convolution, gives."""
        held = [site.source, site.result] if site.layer.kind == "Conv" else [site.source]
        return [root for tensor in held if id(root := self.roots[id(tensor)]) not in self.gates]


def unsuitable(layer: WeightedLayer) -> str:
    """Why a layer cannot run on integers, or nothing."""
    if layer.quantized:
        return "the weight is quantized already"
    if layer.function:
        return f"it lies {layer.place}, whose calls share it (fold can inline functions)"
    if str(layer.array().dtype) != "float32":
        return f"its weights are {layer.array().dtype}, not float32"
    if not layer.finite:
        return "its weights or biases hold NaN or infinite values"
    if layer.kind == "other":
        return f"ONNX Runtime has no integer kernel for {layer.op} with this weight"
    if layer.kind == "ConvTranspose":
        return "ONNX Runtime has no integer kernel for ConvTranspose"
    if layer.shared:
        return "the weight is shared with another node or output"
    if is_constant(layer.node.inputs[0]):
        return "its input is constant"
    attributes = layer.node.attrs
    if layer.kind == "Gemm" and (attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0):
        return "its alpha or transA has no integer kernel"
    bias = layer.node.inputs[2] if layer.kind in ("Conv", "Gemm") and len(layer.node.inputs) > 2 else None
    if bias is not None and bias.name and layer.bias is None:
        return "its bias is computed at run time"
    if layer.kind == "Gemm" and layer.bias is not None and _odd_gemm_bias(layer):
        return "its bias is not one value per output"
    return ""


def make_plans(root: gs.Graph, layers: Iterable[WeightedLayer]) -> list[IntegerPlan]:
    """A plan for each graph, the main one or a body, that holds some of these layers, all suitable ones."""
    graph_of = graphs_of_nodes(root)
    held: dict[int, list[WeightedLayer]] = {}
    for layer in layers:
        held.setdefault(id(graph_of[id(layer.node)]), []).append(layer)
    return [make_plan(graph, held[id(graph)]) for graph in nested_graphs(root) if id(graph) in held]


def make_plan(graph: gs.Graph, layers: Iterable[WeightedLayer]) -> IntegerPlan:
    """The plan for these layers, all suitable ones, of one graph: the main graph or a body."""
    outputs = output_ids(graph)
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    sites = [Site(layer, layer.node.inputs[0], _result(layer.node, outputs, order)) for layer in layers]
    reach = _reachable(graph, sites, outputs, order)
    needed = _needed(sites, reach)
    plan = IntegerPlan(graph, sites)
    plan.readers = {id(site.layer.node) for site in sites}
    for tensor in needed:
        producer = reach.get(id(tensor))
        if producer is not None:
            plan.fused.add(id(tensor))
            plan.readers.add(id(producer))
    plan.tensors = sorted(needed, key=lambda tensor: _position(tensor, order))
    for tensor in plan.tensors:
        plan.roots[id(tensor)] = tensor
        producer = reach.get(id(tensor))
        if producer is not None and producer.op == GATE:
            plan.gates[id(tensor)] = producer
        if producer is not None and producer.op in MOVES:
            plan.roots[id(tensor)] = plan.roots[id(producer.inputs[0])]
    return plan


def _reachable(
    graph: gs.Graph, sites: Collection[Site], outputs: set[int], order: dict[int, int]
) -> dict[int, gs.Node]:
    """By ``id`` of each tensor that could be the result of an integer kernel: that kernel's node."""
    reach = {id(site.result): site.layer.node for site in sites}
    for node in graph.nodes:
        if not _has_integer_kernel(node):
            continue
        variables = _moving_inputs(node)
        if variables and all(id(tensor) in reach for tensor in variables):
            reach.setdefault(id(_result(node, outputs, order) if node.op in COMPUTES else node.outputs[0]), node)
    return reach


def _needed(sites: Collection[Site], reach: dict[int, gs.Node]) -> list[gs.Tensor]:
    """Inputs of the layers, results of the convolutions, and what integer kernels between them read."""
    pending = [site.source for site in sites]
    pending += [site.result for site in sites if site.layer.kind == "Conv"]
    needed: dict[int, gs.Tensor] = {}
    while pending:
        tensor = pending.pop()
        if id(tensor) in needed:
            continue
        needed[id(tensor)] = tensor
        producer = reach.get(id(tensor))
        if producer is not None and producer.op in (MOVES | COMPUTES | {GATE}):
            pending += _moving_inputs(producer)
    return list(needed.values())


def _result(node: gs.Node, outputs: set[int], order: Collection[int]) -> gs.Tensor:
    """The node's output, or that of the rectifier behind it in the same graph (``order`` holds its nodes)."""
    tensor: gs.Tensor = node.outputs[0]
    follower = sole_consumer(tensor, outputs)
    if follower is None or id(follower) not in order:
        return tensor
    if follower.op not in RECTIFIERS or follower.domain not in _STANDARD:
        return tensor
    if follower.op == "Clip" and not _is_rectifying_clip(follower):
        return tensor
    result: gs.Tensor = follower.outputs[0]
    return result


def _is_rectifying_clip(node: gs.Node) -> bool:
    """Its limits are constant and zero is not cut off, so that levels can be laid inside them."""
    if node.inputs[0] is None or "min" in node.attrs or "max" in node.attrs:
        return False
    limits = [value_of(tensor) for tensor in node.inputs[1:] if tensor.name]
    if len(node.inputs) < 2 or not node.inputs[1].name or any(limit is None for limit in limits):
        return False
    low = float(np.ravel(np.asarray(limits[0]))[0])
    return low == 0.0


def _has_integer_kernel(node: gs.Node) -> bool:
    if node.domain not in _STANDARD or not node.inputs or not node.outputs:
        return False
    if node.op == GATE:
        return float(node.attrs.get("alpha", 0.2)) > 0 and 0 <= float(node.attrs.get("beta", 0.5)) <= 1
    if node.op in COMPUTES:
        return True
    if node.op not in MOVES or len(node.outputs) > 1:
        return False
    if node.op == "Resize":
        return str(node.attrs.get("mode", "nearest")) == "nearest"
    return not is_constant(node.inputs[0])


def _moving_inputs(node: gs.Node) -> list[gs.Tensor]:
    """The inputs that carry activations."""
    if node.op in MOVES:
        return [node.inputs[0]]
    if node.op in COMBINES:
        return [tensor for tensor in node.inputs if not is_constant(tensor)]
    return list(node.inputs)


def _position(tensor: gs.Tensor, order: dict[int, int]) -> int:
    return order.get(id(tensor.inputs[0]), -1) if tensor.inputs else -1


def _odd_gemm_bias(layer: WeightedLayer) -> bool:
    bias = value_of(layer.node.inputs[2])
    outs = layer.shape[layer.out_axis]
    return bias is None or layer.node.attrs.get("beta", 1.0) != 1.0 or bias.size != outs
