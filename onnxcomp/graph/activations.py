"""Hard sigmoids and hard swishes in elementary operators (Howard et al. 2019, arXiv:1905.02244)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import Names, detach, output_ids, reads_alone, sole_consumer

__all__ = ["recognize_hard_sigmoids", "split_hard_swishes"]

Array = np.ndarray[Any, Any]
_STANDARD = (None, "", "ai.onnx")


def recognize_hard_sigmoids(graph: gs.Graph) -> int:
    """``clip(x + 3, 0, 6) / 6`` becomes HardSigmoid(x), and ``x · clip(x + 3, 0, 6) / 6`` x · HardSigmoid(x).

    The division may be a multiplication by 1/6. Every inner result must have no other reader. Two passes over
    the values instead of four, and a form that has integer kernels. Returns how many were found.
    """
    outputs, names = output_ids(graph), Names(graph)
    return sum(_recognize(nested, outputs, names) for nested in nested_graphs(graph))


def _recognize(graph: gs.Graph, outputs: set[int], names: Names) -> int:
    """In one graph, the main one or a body; what is found lies wholly in it."""
    found, members = 0, {id(node) for node in graph.nodes}
    for clip in list(graph.nodes):
        if clip.op != "Clip" or clip.domain or not clip.inputs or _limits(clip) != (0.0, 6.0):
            continue
        add = _producer(clip.inputs[0], "Add")
        if add is None or id(add) not in members or not reads_alone(clip, clip.inputs[0], outputs):
            continue
        source = _other_operand(add, 3.0)
        after = sole_consumer(clip.outputs[0], outputs)
        if source is None or after is None or id(after) not in members:
            continue
        if _divides_by_six(after, clip.outputs[0]):
            _replace(graph, add, [add, clip, after], source, after.outputs[0])
            found += 1
        elif after.op == "Mul" and any(tensor is source for tensor in after.inputs):
            last = sole_consumer(after.outputs[0], outputs)
            if last is not None and id(last) in members and _divides_by_six(last, after.outputs[0]):
                result = last.outputs[0]
                gate = gs.Variable(names.new(f"{result.name}_gate"), clip.outputs[0].dtype, clip.outputs[0].shape)
                _replace(graph, add, [add, clip, last], source, gate)
                after.inputs.clear()
                after.inputs.extend([source, gate])
                after.outputs[0] = result
                found += 1
    return found


def split_hard_swishes(graph: gs.Graph) -> int:
    """HardSwish (operator set 14) becomes x · HardSigmoid(x), as ONNX Runtime does itself at load; in bodies too."""
    names = Names(graph)
    return sum(_split_hard_swishes(nested, names) for nested in nested_graphs(graph))


def _split_hard_swishes(graph: gs.Graph, names: Names) -> int:
    nodes, found = [], 0
    for node in graph.nodes:
        if node.op == "HardSwish" and node.domain in _STANDARD:
            source, result = node.inputs[0], node.outputs[0]
            gate = gs.Variable(names.new(f"{result.name}_gate"), result.dtype, result.shape)
            detach(node)
            nodes.append(_hard_sigmoid(str(node.name), source, gate))
            nodes.append(gs.Node("Mul", names.new(f"{result.name}_Mul"), inputs=[source, gate], outputs=[result]))
            found += 1
        else:
            nodes.append(node)
    if found:
        graph.nodes = nodes
    return found


def _replace(graph: gs.Graph, first: gs.Node, old: list[gs.Node], source: gs.Tensor, result: gs.Tensor) -> None:
    """Put HardSigmoid(source) in the place of ``first``, and cut all of ``old`` off."""
    name = str(old[1].name)
    for node in old:
        detach(node)
    position = next(index for index, node in enumerate(graph.nodes) if node is first)
    graph.nodes.insert(position, _hard_sigmoid(name, source, result))


def _hard_sigmoid(name: str, source: gs.Tensor, result: gs.Tensor) -> gs.Node:
    attributes = {"alpha": 1.0 / 6.0, "beta": 0.5}
    return gs.Node("HardSigmoid", name, attributes, inputs=[source], outputs=[result])


def _limits(clip: gs.Node) -> tuple[float, float] | None:
    """Both limits of a Clip, as attributes (before operator set 11) or constant inputs."""
    if "min" in clip.attrs and "max" in clip.attrs:
        return float(clip.attrs["min"]), float(clip.attrs["max"])
    if len(clip.inputs) != 3:
        return None
    limits = [_scalar(tensor) for tensor in clip.inputs[1:]]
    return None if limits[0] is None or limits[1] is None else (limits[0], limits[1])


def _producer(tensor: gs.Tensor, op: str) -> gs.Node | None:
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == op and tensor.inputs[0].domain in _STANDARD:
        node: gs.Node = tensor.inputs[0]
        return node
    return None


def _other_operand(node: gs.Node, constant: float) -> gs.Tensor | None:
    """What the node combines with this constant."""
    for tensor, other in (node.inputs, reversed(node.inputs)):
        if _scalar(other) == constant:
            result: gs.Tensor = tensor
            return result
    return None


def _divides_by_six(node: gs.Node, tensor: gs.Tensor) -> bool:
    if node.domain not in _STANDARD or len(node.inputs) != 2:
        return False
    if node.op == "Div" and node.inputs[0] is tensor:
        return _scalar(node.inputs[1]) == 6.0
    if node.op == "Mul":
        factor = _scalar(node.inputs[1] if node.inputs[0] is tensor else node.inputs[0])
        return factor is not None and abs(6.0 * factor - 1.0) < 1e-6
    return False


def _scalar(tensor: gs.Tensor) -> float | None:
    """The value of a float constant of one element that adds no axis to what it is combined with."""
    value = value_of(tensor) if tensor.name else None
    if value is None or value.size != 1 or value.ndim > 1 or value.dtype.kind != "f":
        return None
    return float(value.reshape(-1)[0])
