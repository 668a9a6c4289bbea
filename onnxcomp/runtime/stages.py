"""The order in which layers are fitted one after the other, on what the fitted ones before them produce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_graphsurgeon as gs

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.residual import other_branch
from onnxcomp.model import Model

__all__ = ["added_branches", "depths", "stages"]


def stages(model: Model, layers: Sequence[WeightedLayer], most: int) -> list[list[tuple[int, WeightedLayer]]]:
    """The layers with their depths, cut into at most so many stages.

    A layer is one deeper than the deepest of these layers that it depends on. A stage holds all layers of one
    depth, or of several consecutive ones where there are more depths than stages; the shallowest come first.

    Args:
        model: its main graph holds the layers.
        layers: those to fit.
        most: stages; the data are run once for each.
    """
    found, _ = depths(model, layers)
    count = max((depth for depth, _ in found), default=-1) + 1
    result: list[list[tuple[int, WeightedLayer]]] = [[] for _ in range(min(most, count))]
    for depth, layer in sorted(found, key=lambda entry: entry[0]):
        result[depth * len(result) // count].append((depth, layer))
    return result


def depths(model: Model, layers: Sequence[WeightedLayer]) -> tuple[list[tuple[int, WeightedLayer]], dict[int, int]]:
    """How many of these layers each of them depends on in a row; and each tensor, by ``id``."""
    of_node = {id(layer.node): layer for layer in layers}
    depth_of: dict[int, int] = {}
    found: list[tuple[int, WeightedLayer]] = []
    for node in model.graph.nodes:
        depth = max((depth_of.get(id(tensor), 0) for tensor in _reads(node)), default=0)
        if (layer := of_node.get(id(node))) is not None:
            found.append((depth, layer))
            depth += 1
        for tensor in node.outputs:
            depth_of[id(tensor)] = depth
    return found, depth_of


def added_branches(model: Model, layers: Sequence[WeightedLayer]) -> dict[str, str]:
    """By layer, what is added to its outputs, where all layers before that are done before the layer."""
    found, depth_of = depths(model, layers)
    branches = {}
    for depth, layer in found:
        other = other_branch(model.graph, layer)
        if other is not None and depth_of.get(id(other), 0) <= depth:
            branches[layer.name] = other.name
    return branches


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """What a node reads, and its bodies from outside."""
    yield from node.inputs
    for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
        yield from body.outputs
        for inner in body.nodes:
            yield from _reads(inner)
