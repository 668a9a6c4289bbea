"""Names in nested graphs, where graphsurgeon gets them wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnxcomp.storage.messages import name_of

__all__ = ["all_graphs", "nested_graphs", "unhide_initializers"]


def nested_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and, depth first, the bodies of its control-flow nodes."""
    yield graph
    for node in graph.nodes:
        for attribute in node.attrs.values():
            if isinstance(attribute, gs.Graph):
                yield from nested_graphs(attribute)


def all_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and its bodies, and then each model-local function and its bodies."""
    for root in (graph, *graph.functions):
        yield from nested_graphs(root)


def unhide_initializers(graphs: Iterable[gs.Graph], protos: Iterable[onnx.GraphProto]) -> None:
    """Give bodies their own initializers where a value of the graphs around them has the name of one.

    The format lets the inner one hide the outer one; graphsurgeon takes the outer one, which is another weight.

    Args:
        graphs: as graphsurgeon imported them, bodies behind the graphs around them.
        protos: what they were imported from.
    """
    for graph, proto in zip(graphs, protos, strict=True):
        own = {name_of(message): message for message in (*proto.initializer, *proto.sparse_initializer)}
        made: dict[str, gs.Constant] = {}
        for reader in _readers(graph, own):
            for index, tensor in enumerate(reader.inputs):
                if tensor.name in own and not _is(tensor, own[tensor.name]):
                    if tensor.name not in made:
                        made[tensor.name] = OnnxImporter.import_tensor(own[tensor.name])
                    _replace_input(reader, index, made[tensor.name])
        for index, tensor in enumerate(graph.outputs):
            graph.outputs[index] = made.get(tensor.name, tensor) if not tensor.inputs else tensor


def _readers(graph: gs.Graph, own: dict[str, Any]) -> Iterator[gs.Node]:
    """Nodes that see the initializers of the graph; bodies with an input of such a name see that instead."""
    for nested in nested_graphs(graph):
        if nested is graph or not any(tensor.name in own for tensor in nested.inputs):
            yield from nested.nodes


def _is(tensor: gs.Tensor, message: Any) -> bool:
    return isinstance(tensor, gs.Constant) and getattr(tensor._values, "tensor", None) is message


def _replace_input(node: gs.Node, index: int, tensor: gs.Tensor) -> None:
    """By identity: graphsurgeon would take the first node that looks like this one, and branches look alike."""
    readers = node.inputs[index].outputs
    list.__delitem__(readers, next(place for place, reader in enumerate(readers) if reader is node))
    list.__setitem__(node.inputs, index, tensor)
    list.append(tensor.outputs, node)
