"""Which tensors of a graph to hold as 8-bit integers so that ONNX Runtime fuses integer kernels around them.

ONNX Runtime replaces an operator by an integer kernel when all its activations come through DequantizeLinear
and its result goes to QuantizeLinear alone. So the inputs of every chosen layer and the results of every
chosen convolution are held as integers, and with them whatever lies between two of them and has an integer
kernel: residual additions, pooling, concatenation, and operators that only move values (those share one
grid).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph import integer_ops as ops
from onnxcomp.graph.bodies import graphs_of_nodes
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import output_ids, sole_consumer
from onnxcomp.graph.given_grids import GivenGrid, given_grid, grid_beside, is_quantized_behind
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.transposed import makes_squares
from onnxcomp.graph.upsampling import Upsampling, upsampling

__all__ = ["IntegerPlan", "Site", "make_plan", "make_plans", "unsuitable"]


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
        moves: by ``id`` of such a tensor, the tensor that its producer takes over integers and grid from.
        upsamplings: by ``id`` of such a tensor that a Resize or DepthToSpace makes, what that copies where.
        given: by ``id`` of such a tensor, the grid that it, or a rounded copy beside it, has in the model already.
        gates: by ``id`` of such a tensor, the HardSigmoid or Sigmoid that computes it; its grid is 0, 1/255 … 1.
        rereads: by ``id`` of such a tensor, what it is of another one, whose integers may serve for it.
        limits: by ``id`` of such a tensor, the range beyond which its values make no difference.
        kernels: by ``id`` of those tensors whose producer runs on integers, that node: everybody reads integers.
        readers: ``id`` of the nodes that read integers.
    """

    graph: gs.Graph
    sites: list[Site]
    tensors: list[gs.Tensor] = field(default_factory=list)
    roots: dict[int, gs.Tensor] = field(default_factory=dict)
    moves: dict[int, gs.Tensor] = field(default_factory=dict)
    upsamplings: dict[int, Upsampling] = field(default_factory=dict)
    given: dict[int, GivenGrid] = field(default_factory=dict)
    gates: dict[int, gs.Node] = field(default_factory=dict)
    rereads: dict[int, ops.ScalarAffine] = field(default_factory=dict)
    limits: dict[int, tuple[float, float]] = field(default_factory=dict)
    kernels: dict[int, gs.Node] = field(default_factory=dict)
    readers: set[int] = field(default_factory=set)

    def distinct_roots(self) -> list[gs.Tensor]:
        """The tensors whose values decide grids."""
        roots = {id(root): root for root in (self.roots[id(tensor)] for tensor in self.tensors)}
        return [root for root in roots.values() if not self.is_known(root)]

    def roots_around(self, site: Site) -> list[gs.Tensor]:
        """The tensors whose values decide the grids of what a layer reads and, of a convolution, gives."""
        held = [site.source, site.result] if site.layer.kind == "Conv" else [site.source]
        roots = [self.roots[id(tensor)] for tensor in held if id(tensor) in self.roots]
        return [root for root in roots if not self.is_known(root)]

    def is_known(self, root: gs.Tensor) -> bool:
        """Whether the grid of a root depends on no values: that of a gate, or one that the model has already."""
        return id(root) in self.gates or id(root) in self.given


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
    if layer.kind == "ConvTranspose" and not makes_squares(layer):
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


def make_plans(
    root: gs.Graph, layers: Iterable[WeightedLayer], barred: Container[int] = frozenset()
) -> list[IntegerPlan]:
    """A plan for each graph, the main one or a body, that holds some of these layers, all suitable ones.

    Args:
        root: the main graph.
        layers: to run on integers.
        barred: ``id`` of other nodes that are to run in float.
    """
    graph_of = graphs_of_nodes(root)
    held: dict[int, list[WeightedLayer]] = {}
    for layer in layers:
        held.setdefault(id(graph_of[id(layer.node)]), []).append(layer)
    return [make_plan(graph, held[id(graph)], barred) for graph in nested_graphs(root) if id(graph) in held]


def make_plan(graph: gs.Graph, layers: Iterable[WeightedLayer], barred: Container[int] = frozenset()) -> IntegerPlan:
    """The plan for these layers, all suitable ones, of one graph: the main graph or a body."""
    outputs = output_ids(graph)
    order = {id(node): index for index, node in enumerate(graph.nodes)}
    sites = [Site(layer, layer.node.inputs[0], ops.behind_rectifier(layer.node, outputs, order)) for layer in layers]
    reach = _reachable(graph, sites, outputs, order, barred)
    needed = _needed(sites, reach, outputs, order)
    plan = IntegerPlan(graph, sites)
    plan.readers = {id(site.layer.node) for site in sites}
    plan.tensors = sorted(needed, key=lambda tensor: _position(tensor, order))
    for tensor in plan.tensors:
        producer = reach.get(id(tensor))
        if producer is not None:
            plan.kernels[id(tensor)] = producer
            plan.readers.add(id(producer))
    for tensor in plan.tensors:
        plan.roots[id(tensor)] = tensor
        if (producer := plan.kernels.get(id(tensor))) is not None:
            _note_producer(plan, tensor, producer, outputs)
        elif (given := grid_beside(tensor, order)) is not None:
            plan.given[id(tensor)] = given
    gates = {id(gate) for gate in plan.gates.values()}
    for tensor in plan.tensors:
        if (limits := ops.limits(tensor, outputs, gates)) is not None:
            plan.limits[id(tensor)] = limits
    return plan


def _note_producer(plan: IntegerPlan, tensor: gs.Tensor, producer: gs.Node, outputs: set[int]) -> None:
    """Where the grid of a result comes from."""
    if (given := given_grid(tensor)) is not None:
        plan.given[id(tensor)] = given
    elif producer.op in ops.GATES:
        plan.gates[id(tensor)] = producer
    elif producer.op in ops.MOVES:
        plan.moves[id(tensor)] = producer.inputs[0]
        plan.roots[id(tensor)] = plan.roots[id(producer.inputs[0])]
        source = plan.given.get(id(producer.inputs[0]))
        if (found := upsampling(producer)) is not None and (source is None or not source.signed):
            plan.upsamplings[id(tensor)] = found
    elif producer.outputs[0] is tensor and (affine := ops.scalar_affine(producer)) is not None:
        # An offset is met to half a level only; the biases of the layers that read it make up for the rest.
        corrected = id(tensor) not in outputs and all(_corrects(plan, node, tensor) for node in tensor.outputs)
        source = plan.given.get(id(affine.source))
        if (affine.offset and not corrected) or (source is not None and source.signed):
            return
        plan.roots[id(tensor)] = plan.roots[id(affine.source)]
        plan.rereads[id(tensor)] = affine


def _corrects(plan: IntegerPlan, node: gs.Node, tensor: gs.Tensor) -> bool:
    """Whether the node is a layer of the plan that has a bias and reads the tensor as its activation alone."""
    reads_once = sum(item is tensor for item in node.inputs) == 1
    return reads_once and any(
        site.layer.node is node and site.source is tensor and site.layer.kind != "MatMul" for site in plan.sites
    )


def _reachable(
    graph: gs.Graph, sites: Collection[Site], outputs: set[int], order: dict[int, int], barred: Container[int]
) -> dict[int, gs.Node]:
    """By ``id`` of each tensor that could be the result of an integer kernel: that kernel's node.

    MatMul gives float32 at no cost (MatMulIntegerToFloat). What is computed from its results stays in float, where
    rounding them would add noise: they are integers only on the way to another layer.
    """
    reach = {id(site.result): site.layer.node for site in sites}
    reach.update((id(node.outputs[0]), node) for node in graph.nodes if node.outputs and given_grid(node.outputs[0]))
    exact = {id(site.result) for site in sites if site.layer.kind == "MatMul"}
    for node in graph.nodes:
        if id(node) in barred or not ops.has_integer_kernel(node):
            continue
        variables = ops.moving_inputs(node)
        if not variables or not all(id(tensor) in reach for tensor in variables):
            continue
        results = node.outputs
        if any(id(tensor) in exact for tensor in variables):
            if node.op not in ops.MOVES:
                continue
            exact.update(id(result) for result in results)
        elif node.op in ops.COMPUTES:
            results = [ops.behind_rectifier(node, outputs, order)]
        for result in results:
            reach.setdefault(id(result), node)
    return reach


def _needed(
    sites: Collection[Site], reach: dict[int, gs.Node], outputs: set[int], order: Container[int]
) -> list[gs.Tensor]:
    """Inputs of the layers, results of the convolutions, and what integer kernels between them read."""
    pending = [site.source for site in sites]
    results = [site.result for site in sites if site.layer.kind == "Conv"]
    for result in results:
        if not is_quantized_behind(result, outputs, order):
            pending.append(result)
            reader = sole_consumer(result, outputs)
            if reader is not None and reader.op == "DepthToSpace" and id(reader.outputs[0]) in reach:
                pending.append(reader.outputs[0])  # bytes are faster to move than float32
    needed: dict[int, gs.Tensor] = {}
    while pending:
        tensor = pending.pop()
        if id(tensor) in needed:
            continue
        needed[id(tensor)] = tensor
        producer = reach.get(id(tensor))
        if producer is not None and ops.has_integer_kernel(producer):
            pending += ops.moving_inputs(producer)
            if producer.op in ops.MOVES:
                pending += producer.outputs  # Split runs on integers when all its results do
    return list(needed.values())


def _position(tensor: gs.Tensor, order: dict[int, int]) -> int:
    return order.get(id(tensor.inputs[0]), -1) if tensor.inputs else -1


def _odd_gemm_bias(layer: WeightedLayer) -> bool:
    bias = value_of(layer.node.inputs[2])
    outs = layer.shape[layer.out_axis]
    return bias is None or layer.node.attrs.get("beta", 1.0) != 1.0 or bias.size != outs
