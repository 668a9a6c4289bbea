"""What a graph needs before layers of it are put on integers: exact rewrites that would not pay in float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxcomp.graph.absorb import clip_hard_sigmoids
from onnxcomp.graph.activations import split_hard_swishes
from onnxcomp.graph.bodies import graphs_of_nodes
from onnxcomp.graph.edit import Names, output_ids
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.transposed import makes_squares, write_as_convolution, write_as_transposed
from onnxcomp.graph.upsampling import name_all_axes
from onnxcomp.model import Model

__all__ = ["give_up", "prepare"]


def prepare(model: Model, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
    """Give the model the operators that integer plans know.

    Args:
        model: edited.
        layers: that are to run on integers, and may change for it.

    Returns:
        these layers as they are now.

    Raises:
        PassError: one of the others cannot be rewritten, see ``name_all_axes``.
    """
    if any(layer.kind.startswith("Conv") for layer in layers):
        name_all_axes(model)
    names, outputs, graph_of = Names(model.graph), output_ids(model.graph), graphs_of_nodes(model.graph)
    squares = [layer for layer in layers if makes_squares(layer)]
    for layer in squares:
        write_as_convolution(graph_of[id(layer.node)], layer, names, outputs)
    layers = _as_they_are(model, layers, squares)
    split_hard_swishes(model.graph)
    clip_hard_sigmoids(model.graph, layers)
    return layers


def give_up(model: Model, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
    """Put layers that were prepared, and are left in float after all, into the form that is fastest there.

    Returns:
        these layers as they are now.
    """
    names, outputs, graph_of = Names(model.graph), output_ids(model.graph), graphs_of_nodes(model.graph)
    changed = [layer for layer in layers if write_as_transposed(graph_of[id(layer.node)], layer, names, outputs)]
    return _as_they_are(model, layers, changed)


def _as_they_are(
    model: Model, layers: Sequence[WeightedLayer], changed: Sequence[WeightedLayer]
) -> list[WeightedLayer]:
    """The layers, with what is known of the changed ones brought up to date."""
    if not changed:
        return list(layers)
    nodes = {id(layer.node) for layer in changed}
    known = {id(layer.node): layer for layer in weighted_layers(model) if id(layer.node) in nodes}
    return [replace(known.get(id(layer.node), layer), name=layer.name) for layer in layers]
