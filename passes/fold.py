"""fold: compute once what the model computes from constants alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import onnx_graphsurgeon as gs
from pydantic import Field

from onnxcomp.codec import nested_graphs
from onnxcomp.codec.origins import drop_unused
from onnxcomp.context import Context
from onnxcomp.errors import SessionError
from onnxcomp.graph.absorb import Absorbed, absorb_affine
from onnxcomp.graph.absorb_input import absorb_input_affine
from onnxcomp.graph.activations import recognize_hard_sigmoids
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.folding import evaluate_constants, fold_static_shapes, lift_constants
from onnxcomp.graph.inferred import infer_types
from onnxcomp.graph.inlining import inline_functions
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.noops import remove_noops
from onnxcomp.graph.products import merge_biases
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage
from onnxcomp.runtime.session import create
from onnxcomp.runtime.target import Target

__all__ = ["Fold"]

# Each round can expose a constant to the next; real exports settle in two or three.
_ROUNDS = 8


class Fold(Pass):
    """Fold constants, batch normalizations and no-ops; every output stays the same to float rounding.

    Most of the other passes see only weights that stand in initializers, next to the layer that uses them.
    Rules:

    1. A ``Constant`` node becomes an initializer of the graph it stands in (If, Loop and Scan bodies
       included). Not when it is a graph output, or when only nested graphs read it (each would get a copy).
    2. A deterministic standard operator whose inputs are all constant is computed by ONNX Runtime, in bodies
       too. Not when the file would grow by more than 4 KiB (Expand, a second layout of a shared weight), and
       never ``DequantizeLinear``, or Cast and Mul of 8-bit integers, which is how quantized weights are stored.
    3. ``Shape`` of a tensor whose dimensions follow from the declared graph inputs becomes a constant, and
       so does a Gather or Slice of the known part of a partly dynamic shape. Dimensions that were only seen
       in a run, or only claimed by the file for an inner tensor, are never folded: dynamic axes stay dynamic.
       This is done for tensors of the main graph, also where a body reads their shapes.
       Not when ONNX Runtime refuses a branch of an If whose condition follows from such dimensions.
    4. ``BatchNormalization``, and Mul, Div, Add or Sub by one constant per channel, move into the weight and
       bias of the Conv, ConvTranspose or Gemm before them, in bodies too. Not when that layer's output is read
       elsewhere or is a graph output, when its weight is shared or in half precision, or after a MatMul.
       Mul by one constant, or one per channel, moves into the layers behind it in the same way, and so does
       Add into a Conv without padding; between a Mul and a padded Conv the Add stays and is divided.
    5. ``Identity``, ``Dropout`` at inference, a ``Cast`` to the same type, an identity ``Transpose`` and a
       ``Reshape`` to the same static shape go; consecutive Transposes and Reshapes become one. Names of graph
       outputs survive. Rules that need a type (Cast, Reshape to the same shape) serve the main graph only.
    6. clip(x + 3, 0, 6) / 6 becomes HardSigmoid.
    7. Nodes that no output depends on go, and initializers that nothing reads; graph inputs stay.
    8. Model-local functions stay as they are. With ``inline_functions``, their calls are replaced by what they
       do before all this: then every pass sees their layers. A function that is called n times leaves n copies
       of its weights; one that imports another version of the operators than the model stays, with a warning.
    """

    name: ClassVar[str] = "fold"
    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[bool] = True

    inline_functions: bool = Field(False, description="replace calls of model-local functions by what these do")

    def run(self, model: Model, ctx: Context) -> None:
        state, logged, conditions = model.checkpoint(), len(ctx.decisions), _computed_conditions(model.graph)
        self._fold(model, ctx, shapes=True)
        # ONNX Runtime puts the body of an If in its place once the condition is known, and may refuse what it finds.
        if any(is_constant(condition) for condition in conditions) and not _loads(model):
            state.restore()
            del ctx.decisions[logged:]
            self._fold(model, ctx, shapes=False)

    def _fold(self, model: Model, ctx: Context, shapes: bool) -> None:
        """Apply the rules until nothing changes; rule 3 only where ``shapes`` says so."""
        graph = model.graph
        if self.inline_functions:
            _inline(model, ctx)
        lifted: set[int] = set()
        computed: set[int] = set()
        absorbed: list[Absorbed] = []
        found_before = weighted_layers(model)
        drop_unused(graph)
        for _ in ctx.progress(range(_ROUNDS), "folding"):
            new = lift_constants(graph)
            lifted.update(map(id, new))
            graph.cleanup()
            types = infer_types(model)
            changes = remove_noops(graph, types) + (fold_static_shapes(graph, types) if shapes else 0)
            changes += recognize_hard_sigmoids(graph) + merge_biases(graph, types)
            results = evaluate_constants(graph, model.opset)
            computed.update(map(id, results))
            found = absorb_affine(model) + absorb_input_affine(model)
            absorbed = [*(item for item in absorbed if not item.obstacle), *found]
            graph.cleanup()
            if not (changes or results or any(not item.obstacle for item in found)):
                break
        left = {id(layer.node): layer for layer in weighted_layers(model)}
        for layer in found_before:
            if id(layer.node) not in left:
                ctx.act(layer, "folded", "it is computed from constants, or nothing needs it")
        names = {id(layer.node): layer.name for layer in found_before}  # two that shared a name are told apart by it
        for node, layer in left.items():
            _decide(layer, names.get(node, layer.name), lifted, computed, absorbed, ctx)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class; it is quick enough to be done for that, on a copy."""
        work, ctx = model.copy(), Context(target=target)
        self.run(work, ctx)
        before, after = len(model.graph.nodes), len(work.graph.nodes)
        changed = sum(decision.action == "folded" for decision in ctx.decisions)
        if before == after and not changed:
            return "nothing to fold"
        layers = len(weighted_layers(model))
        weights = f"; weights of {changed} of {layers} layers are lifted or rescaled" if changed else ""
        return f"{before} nodes become {after}{weights}"


def _inline(model: Model, ctx: Context) -> None:
    """Inline functions; their layers go, and so do the calls that have weights as inputs."""
    layers, functions = weighted_layers(model), {(item.domain, item.name) for item in model.graph.functions}
    for reason in inline_functions(model):
        ctx.warn(reason)
    inlined = functions - {(item.domain, item.name) for item in model.graph.functions}
    names = {f"{domain}.{name}" for domain, name in inlined}
    for layer in layers:
        if layer.function in names:
            ctx.act(layer, "inlined", f"{layer.function} stands where it was called")
        elif not layer.function and (layer.node.domain, layer.node.op) in inlined:
            ctx.act(layer, "inlined", f"what {layer.op} does stands in its place")


def _computed_conditions(graph: gs.Graph) -> list[gs.Tensor]:
    """The conditions of If nodes that a run computes."""
    nodes = (node for nested in nested_graphs(graph) for node in nested.nodes if node.op == "If")
    return [node.inputs[0] for node in nodes if not is_constant(node.inputs[0])]


def _loads(model: Model) -> bool:
    try:
        create(model)
    except SessionError:
        return False
    return True


def _decide(
    layer: WeightedLayer, name: str, lifted: set[int], computed: set[int], absorbed: Iterable[Absorbed], ctx: Context
) -> None:
    """Log what happened to the layer."""
    own = [item for item in absorbed if item.layer_node is layer.node]
    notes = []
    weight: gs.Tensor = layer.weight
    if id(weight) in lifted:
        notes.append("weight lifted from a Constant node")
    if id(weight) in computed:
        notes.append("weight computed from constants")
    notes += [f"{item.description} folded in" for item in own if not item.obstacle]
    obstacles = [f"{item.description} follows, but {item.obstacle}" for item in own if item.obstacle]
    if notes:
        ctx.act(name, "folded", "; ".join(notes + obstacles))
    else:
        ctx.skip(name, "; ".join(obstacles) or "nothing to fold")
