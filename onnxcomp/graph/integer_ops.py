"""Which operators ONNX Runtime runs on 8-bit integers, and what they do to the grid of their input.

Every one of these has been seen in the optimized graph and timed; docs/runtime.md gives the times, and those of the
operators that are left out because their integer kernels are slower than float with conversions around (Softmax,
Where) or do not exist (ReduceMean, Pad, linear Resize).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import sole_consumer

__all__ = [
    "COMBINES",
    "COMPUTES",
    "GATES",
    "GATE_GRID",
    "MOVES",
    "RECTIFIERS",
    "ScalarAffine",
    "behind_rectifier",
    "has_integer_kernel",
    "limits",
    "moving_inputs",
    "scalar_affine",
]

Grid = tuple[float, int]

# Values pass through unchanged, so both sides share one grid and the operator runs on integers.
MOVES = {
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "MaxPool",
    "ReduceMax",
    "ReduceMin",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
# Integer kernels with a grid of their own for the result.
COMPUTES = {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu"}
# Those that may combine an activation with a constant, which is then held as integers too.
COMBINES = {"Add", "Mul"}
# Results between 0 and 1: their grid is known, and it represents both ends.
GATES = {"HardSigmoid", "Sigmoid"}
GATE_GRID: Grid = (1.0 / 255, 0)
# ONNX Runtime drops these before QuantizeLinear when no level lies outside their limits.
RECTIFIERS = {"Relu", "Clip"}
_STANDARD = (None, "", "ai.onnx")
# Beyond it, Sigmoid is within half a level of 0 or 1.
_SIGMOID_END = float(np.log(2 * 255 - 1))
# Operators whose result has axes, whatever shape inference knows.
_HAVE_AXES = {"Conv", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "DepthToSpace"}


@dataclass(frozen=True)
class ScalarAffine:
    """y = slope · x + offset with constants, slope > 0: the integers of x are integers of y, on another grid.

    Attributes:
        source: x.
    """

    source: gs.Tensor
    slope: float
    offset: float


def has_integer_kernel(node: gs.Node) -> bool:
    """Whether ONNX Runtime replaces the node by an integer kernel, between DequantizeLinear and QuantizeLinear."""
    if node.domain not in _STANDARD or not node.inputs or not node.outputs:
        return False
    if node.op == "HardSigmoid":
        return float(node.attrs.get("alpha", 0.2)) > 0 and 0 <= float(node.attrs.get("beta", 0.5)) <= 1
    if node.op in GATES or node.op in COMPUTES:
        return True
    if node.op not in MOVES or (len(node.outputs) > 1 and node.op != "Split"):
        return False
    if node.op == "Resize":
        return str(node.attrs.get("mode", "nearest")) == "nearest"
    return not is_constant(node.inputs[0])


def moving_inputs(node: gs.Node) -> list[gs.Tensor]:
    """The inputs that carry activations."""
    if node.op in MOVES:
        return [node.inputs[0]]
    if node.op in COMBINES:
        return [tensor for tensor in node.inputs if not is_constant(tensor)]
    return list(node.inputs)


def scalar_affine(node: gs.Node) -> ScalarAffine | None:
    """What the node does, if that is adding one constant, or multiplying by a positive one."""
    if node.domain not in _STANDARD or node.op not in COMBINES or len(node.inputs) != 2:
        return None
    constants = [tensor for tensor in node.inputs if is_constant(tensor)]
    if len(constants) != 1:
        return None
    value = value_of(constants[0])
    if value is None or value.size != 1 or value.ndim > 1:
        return None
    source = next(tensor for tensor in node.inputs if tensor is not constants[0])
    constant = float(value.reshape(-1)[0])
    if not np.isfinite(constant) or (value.ndim and not _has_axes(source)):
        return None
    if node.op == "Add":
        return ScalarAffine(source, 1.0, constant)
    return ScalarAffine(source, constant, 0.0) if constant > 0 else None


def _has_axes(tensor: gs.Tensor) -> bool:
    """Whether the tensor is certainly no scalar (to which a constant of shape (1,) would give an axis)."""
    if tensor.shape is not None:
        return len(tensor.shape) > 0
    if len(tensor.inputs) != 1:
        return False
    producer = tensor.inputs[0]
    if producer.op in _HAVE_AXES:
        return True
    passes_on = producer.op in COMPUTES or producer.op in RECTIFIERS or producer.op in GATES
    return passes_on and any(_has_axes(item) for item in producer.inputs if not is_constant(item))


def behind_rectifier(node: gs.Node, outputs: set[int], members: Container[int]) -> gs.Tensor:
    """The node's output, or that of the rectifier behind it in the same graph.

    Args:
        node: of any operator.
        outputs: what ``edit.output_ids`` gave.
        members: ``id`` of the nodes of that graph.
    """
    tensor: gs.Tensor = node.outputs[0]
    follower = sole_consumer(tensor, outputs)
    if follower is None or id(follower) not in members:
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
    bounds = [value_of(tensor) for tensor in node.inputs[1:] if tensor.name]
    if len(node.inputs) < 2 or not node.inputs[1].name or any(bound is None for bound in bounds):
        return False
    low = float(np.ravel(np.asarray(bounds[0]))[0])
    return low == 0.0


def limits(tensor: gs.Tensor, outputs: set[int], integer: Container[int]) -> tuple[float, float] | None:
    """The range beyond which values make no difference, because only gates see them.

    x · HardSigmoid(x) is zero wherever HardSigmoid is, so nothing is lost where x is cut off there; and
    a gate that is constant beyond some value does not tell values beyond it apart.

    Args:
        tensor: any.
        outputs: what ``edit.output_ids`` gave.
        integer: ``id`` of the gates whose results are integers; no other Sigmoid is constant anywhere.
    """
    if id(tensor) in outputs:
        return None
    gates = [node for node in tensor.outputs if node.op in GATES and node.domain in _STANDARD]
    others = [node for node in tensor.outputs if not any(node is gate for gate in gates)]
    if not gates or not all(has_integer_kernel(gate) for gate in gates):
        return None
    if any(gate.op == "Sigmoid" and id(gate) not in integer for gate in gates):
        return None
    ranges = [_range_of_gate(gate) for gate in gates]
    low, high = min(pair[0] for pair in ranges), max(pair[1] for pair in ranges)
    if not others:
        return low, high
    if all(_multiplies_with(node, tensor, gates) for node in others):
        return low, np.inf
    return None


def _range_of_gate(node: gs.Node) -> tuple[float, float]:
    if node.op == "Sigmoid":
        return -_SIGMOID_END, _SIGMOID_END
    slope, offset = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return -offset / slope, (1.0 - offset) / slope


def _multiplies_with(node: gs.Node, tensor: gs.Tensor, gates: list[gs.Node]) -> bool:
    """Whether the node is tensor · gate with a gate that is exactly zero below its range."""
    if node.op != "Mul" or node.domain not in _STANDARD or len(node.inputs) != 2:
        return False
    other = node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]
    hard = [gate.outputs[0] for gate in gates if gate.op == "HardSigmoid"]
    return any(other is result for result in hard) and len(hard) == len(gates)
