"""What a model has beside the graph that graphsurgeon takes in: taken out before, tied to its objects behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import (
    FunctionOrigin,
    GraphOrigin,
    NodeOrigin,
    tag_function,
    tag_graphs,
    tag_nodes,
    take_function_origin,
    take_graph_origin,
    take_node_origin,
)
from onnxcomp.codec.refusals import refuse_external, refuse_unreadable_names
from onnxcomp.codec.scopes import nested_graphs, unhide_initializers
from onnxcomp.storage.messages import clear_undecodable, proto_graphs

__all__ = ["SideCar", "forget_undeclared"]

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class SideCar:
    """The origins of a model's graphs, nodes and functions, in the order that its walks meet them.

    Attributes:
        bodies: the graph, its bodies and those of the functions.
        declared, used: operator domains, of the graph and of each function.
    """

    bodies: list[onnx.GraphProto]
    graphs: list[GraphOrigin]
    nodes: list[NodeOrigin]
    functions: list[FunctionOrigin]
    declared: list[set[str]]
    used: list[set[str]]

    @classmethod
    def take(cls, proto: onnx.ModelProto) -> SideCar:
        """Take out of the model what graphsurgeon cannot hold, and keep what it would forget.

        Raises:
            InputError: something can neither be held nor kept.
        """
        for info in proto.training_info:
            refuse_external(info, "the training information")
        trained = {name for info in proto.training_info for name in _names_in(info)}
        roots = [proto.graph, *proto.functions]
        walked = [graph for root in roots for graph in proto_graphs(root)]
        for graph in walked:
            refuse_unreadable_names(graph)
        bodies = [graph for graph in walked if isinstance(graph, onnx.GraphProto)]
        imports = [root.opset_import or proto.opset_import for root in (proto, *proto.functions)]
        taken = cls(
            bodies,
            [take_graph_origin(graph, pinned=trained) for graph in bodies],
            [take_node_origin(node) for graph in walked for node in graph.node],
            [take_function_origin(function) for function in proto.functions],
            [{entry.domain for entry in field} for field in imports],
            [{node.domain for graph in proto_graphs(root) for node in graph.node} for root in roots],
        )
        clear_undecodable(proto, ("producer_name", "producer_version"))
        for graph in walked:
            clear_undecodable(graph, ("name", "doc_string"))
        return taken

    def attach(self, graph: gs.Graph) -> None:
        """Tag what graphsurgeon made of the model."""
        functions = [body for function in graph.functions for body in nested_graphs(function) if body is not function]
        graphs = [*nested_graphs(graph), *functions]
        unhide_initializers(graphs, self.bodies)
        tag_graphs(graphs, self.graphs)
        tags = iter(self.nodes)
        for root, declared, used in zip((graph, *graph.functions), self.declared, self.used, strict=True):
            tag_nodes(root, tags)
            vars(root).update(domains_declared=declared, domains_undeclared=used - declared)
        for function, origin in zip(graph.functions, self.functions, strict=True):
            tag_function(function, origin)


def _names_in(info: onnx.TrainingInfoProto) -> Iterator[str]:
    """Names that training may take from the graph that is trained."""
    for graph in (info.initialization, info.algorithm):
        for body in proto_graphs(graph):
            for node in body.node:
                yield from node.input
    for binding in (*info.initialization_binding, *info.update_binding):
        yield from (binding.key, binding.value)


def forget_undeclared(item: gs.Graph, exported: onnx.ModelProto | onnx.FunctionProto) -> None:
    """graphsurgeon imports every domain that nodes use, in what it writes and in what it was given.

    What the file did without it still does: an alias of the standard domain above all, which is not to be imported
    twice.
    """
    tags = vars(item)
    for imports in (exported.opset_import, item.import_domains):
        standard = [entry.domain for entry in imports if entry.domain in _STANDARD]
        extra = tags.get("domains_undeclared", set()) | (set(standard[1:]) - tags.get("domains_declared", set()))
        for index in reversed(range(len(imports))):
            if imports[index].domain in extra:
                del imports[index]
