"""Snapshots of a graphsurgeon graph, by reference.

A snapshot keeps lists and scalars, never weights: it costs microseconds a node whatever the model weighs.
That holds because passes replace a weight's array and never write into it.
Restoring changes the graph in place, so nodes and tensors that a caller still holds stay the graph's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs

__all__ = ["GraphState"]


class GraphState:
    """The structure of a graph, and of all graphs nested in it, at one moment.

    Example: ``state = GraphState(graph)``, edit, ``state.restore()``. It may be restored more than once.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._objects: list[tuple[Any, type, dict[str, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for item in _members(graph, set()):
            fields = dict(vars(item))
            self._objects.append((item, type(item), fields))
            for value in fields.values():
                if isinstance(value, list):
                    self._lists.append((value, list(value)))
                elif isinstance(value, dict):
                    self._dicts.append((value, dict(value)))
        self._opsets = [(entry.domain, entry.version) for entry in graph.import_domains or ()]

    def restore(self) -> None:
        """Put every node, tensor and list back as it was."""
        for item, kind, fields in self._objects:
            if type(item) is not kind:  # a Variable that became a Constant, or the reverse
                object.__setattr__(item, "__class__", kind)
            vars(item).clear()
            vars(item).update(fields)
        for live, content in self._lists:
            # The plain list operations: the synchronised ones would edit the other side as well.
            list.clear(live)
            list.extend(live, content)
        for attributes, saved in self._dicts:
            attributes.clear()
            attributes.update(saved)
        if self._graph.import_domains is not None:
            del self._graph.import_domains[:]
            self._graph.import_domains.extend(onnx.helper.make_opsetid(*opset) for opset in self._opsets)


def _members(graph: gs.Graph, seen: set[int]) -> Iterator[Any]:
    """The graph, its nodes, their tensors, and the same of every nested graph, each once."""
    if id(graph) in seen:
        return
    seen.add(id(graph))
    yield graph
    tensors = [*graph.inputs, *graph.outputs]
    for node in graph.nodes:
        yield node
        tensors += [*node.inputs, *node.outputs]
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from _members(attribute, seen)
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
