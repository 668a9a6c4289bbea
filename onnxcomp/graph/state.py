"""Snapshots of a graphsurgeon graph, by reference.

A snapshot keeps lists and scalars, never weights: it costs microseconds a node whatever the model weighs.
That holds because passes replace a weight's array and never write into it.
Restoring changes the graph in place, so nodes and tensors that a caller still holds stay the graph's own.
"""

from __future__ import annotations

import copy
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
        self._objects: list[tuple[Any, type, dict[str, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._opsets: list[tuple[Any, list[onnx.OperatorSetIdProto]]] = []
        for item in _members(graph, set()):
            fields = dict(vars(item))
            self._objects.append((item, type(item), fields))
            for value in fields.values():
                self._keep(value)
            if isinstance(item, gs.Graph) and item.import_domains is not None:
                self._opsets.append((item.import_domains, copy.deepcopy(list(item.import_domains))))

    def _keep(self, value: Any) -> None:
        """Lists and dicts by content, as they may be edited in place."""
        if isinstance(value, list):
            self._lists.append((value, list(value)))
        elif isinstance(value, dict):
            self._dicts.append((value, dict(value)))
            for inner in value.values():
                self._keep(inner)

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
        for domains, opsets in self._opsets:
            del domains[:]
            domains.extend(opsets)

    def changed(self) -> bool:
        """Whether the graph has been edited since. Weights count by identity, names and numbers by value."""
        for item, kind, fields in self._objects:
            if type(item) is not kind or vars(item).keys() != fields.keys():
                return True
            if not all(_same(vars(item)[key], value) for key, value in fields.items()):
                return True
        for live, content in self._lists:
            if len(live) != len(content) or not all(map(_same, live, content)):
                return True
        if any(list(domains) != opsets for domains, opsets in self._opsets):
            return True
        return any(
            live.keys() != saved.keys() or not all(_same(live[key], saved[key]) for key in saved)
            for live, saved in self._dicts
        )


def _same(live: Any, saved: Any) -> bool:
    if live is saved:
        return True
    if isinstance(saved, list):  # replaced by a new list: equal if it holds the same things
        return isinstance(live, list) and len(live) == len(saved) and all(map(_same, live, saved))
    return isinstance(saved, str | int | float | bytes) and type(live) is type(saved) and live == saved


def _members(graph: gs.Graph, seen: set[int]) -> Iterator[Any]:
    """The graph, its nodes, their tensors, and the same of every nested graph and function, each once."""
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
            elif isinstance(attribute, gs.Tensor):
                tensors.append(attribute)
    for function in graph.functions:
        yield from _members(function, seen)
    if isinstance(graph, gs.Function):
        tensors += [value for value in graph.attrs.values() if isinstance(value, gs.Tensor)]
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
