"""Where things stand in a model whose nodes have bodies: graphs in graphs, and tensors by their place.

Names repeat between bodies that do not contain each other (both branches of an If may compute ``y``), so a
tensor of a body is told by the way to its graph and its name there, or by the object itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs

__all__ = ["Address", "Steps", "addresses", "common_graph", "graphs_of_nodes"]

# From the main graph inwards: position of a node among its graph's, and the attribute that holds the body.
Steps: TypeAlias = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Address:
    """Where a tensor is computed.

    Attributes:
        steps: the way from the main graph to the graph that computes it; empty for the main graph itself.
        name: its name there.
    """

    steps: Steps
    name: str


def addresses(graph: gs.Graph) -> dict[int, Address]:
    """By ``id`` of every tensor that the graph or a body computes or is fed: its address."""
    found: dict[int, Address] = {}
    for inner, steps in _walk(graph, ()):
        for tensor in (*inner.inputs, *(output for node in inner.nodes for output in node.outputs)):
            if tensor.name:
                found.setdefault(id(tensor), Address(steps, str(tensor.name)))
    return found


def graphs_of_nodes(graph: gs.Graph) -> dict[int, gs.Graph]:
    """By ``id`` of every node of the graph and its bodies: the graph that it stands in."""
    return {id(node): inner for inner in nested_graphs(graph) for node in inner.nodes}


def common_graph(graph: gs.Graph, readers: Collection[int]) -> tuple[gs.Graph, gs.Node] | None:
    """The innermost graph around all these nodes (``id``), and its first node that is or holds one of them.

    None when one of them stands nowhere in the graph.
    """
    for inner, first, held in _holders(graph, set(readers)):
        if held == len(set(readers)):
            return inner, first
    return None


def _holders(graph: gs.Graph, readers: set[int]) -> Iterator[tuple[gs.Graph, gs.Node, int]]:
    """Innermost graphs first: each that holds readers, the first node on the way to one, and how many."""
    first, total = None, 0
    for node in graph.nodes:
        held = int(id(node) in readers)
        for body in node.attrs.values():
            if isinstance(body, gs.Graph):
                inner = list(_holders(body, readers))
                held += inner[-1][2] if inner else 0
                yield from inner
        if held and first is None:
            first = node
        total += held
    if first is not None:
        yield graph, first, total


def _walk(graph: gs.Graph, steps: Steps) -> Iterator[tuple[gs.Graph, Steps]]:
    yield graph, steps
    for position, node in enumerate(graph.nodes):
        for name, body in node.attrs.items():
            if isinstance(body, gs.Graph):
                yield from _walk(body, (*steps, (position, name)))
