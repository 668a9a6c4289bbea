"""Nodes that compute nothing: found and taken out.

Each rule has a name and says when it fires; the names of graph outputs always survive (see ``edit.bypass``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import bypass, output_ids, reads_alone
from onnxcomp.graph.inferred import TensorType

__all__ = ["remove_noops"]

Types = Mapping[str, TensorType]
_STANDARD = (None, "", "ai.onnx")


def remove_noops(graph: gs.Graph, types: Types) -> int:
    """Take out every node that passes its first input on unchanged, and merge pairs; returns how many.

    Args:
        types: of the tensors of the main graph. (Names inside nested graphs may hide them, so rules that need
            a type are used on the main graph only.)
    """
    removed = 0
    for nested in nested_graphs(graph):
        known: Types = types if nested is graph else {}
        outputs = output_ids(graph)
        for node in list(nested.nodes):
            rule = _RULES.get(node.op)
            if rule is None or node.domain not in _STANDARD or not node.inputs or not node.outputs:
                continue
            if _merge(node, outputs):
                removed += 1
            if rule(node, known) and bypass(nested, node, outputs):
                removed += 1
    return removed


def _identity(node: gs.Node, types: Types) -> bool:  # noqa: ARG001
    return True


def _dropout(node: gs.Node, types: Types) -> bool:  # noqa: ARG001
    """Inference mode, and nobody reads the mask."""
    if any(tensor.outputs for tensor in node.outputs[1:]):
        return False
    if len(node.inputs) > 2 and node.inputs[2].name:
        training = value_of(node.inputs[2])
        return training is not None and not bool(np.any(training))
    return True


def _cast(node: gs.Node, types: Types) -> bool:
    known = types.get(node.inputs[0].name)
    return known is not None and known.element == node.attrs.get("to")


def _transpose(node: gs.Node, types: Types) -> bool:  # noqa: ARG001
    order = node.attrs.get("perm")
    return order is not None and list(order) == sorted(order)


def _reshape(node: gs.Node, types: Types) -> bool:
    """The shape before is fully known and is the shape after."""
    before, after = types.get(node.inputs[0].name), types.get(node.outputs[0].name)
    return before is not None and after is not None and before.static is not None and before.static == after.static


_RULES: dict[str, Callable[[gs.Node, Types], bool]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
}


def _merge(node: gs.Node, outputs: set[int]) -> bool:
    """Let a Transpose or Reshape of the result of another such node read what that one reads."""
    source = node.inputs[0]
    if len(source.inputs) != 1 or not reads_alone(node, source, outputs):
        return False
    first: gs.Node = source.inputs[0]
    if first.op != node.op or first.domain not in _STANDARD or not first.inputs:
        return False
    if node.op == "Transpose" and "perm" in node.attrs and "perm" in first.attrs:
        node.attrs["perm"] = [first.attrs["perm"][axis] for axis in node.attrs["perm"]]
    elif node.op == "Reshape":
        target = value_of(node.inputs[1]) if len(node.inputs) > 1 else None
        # A 0 copies a dimension of the tensor before, which is another one afterwards.
        if target is None or not target.size or np.any(target == 0):
            return False
    else:
        return False
    node.inputs[0] = first.inputs[0]
    return True
