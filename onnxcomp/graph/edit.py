"""Edits of a graph that several passes need.

Tensors and nodes are compared by identity throughout: graphsurgeon's ``==`` compares names, and names repeat
between nested graphs.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.codec import all_graphs, nested_graphs

__all__ = ["Names", "bypass", "detach", "output_ids", "reads_alone", "replace_uses", "sole_consumer"]


class Names:
    """Hands out names that no tensor and no node of the graph, its bodies and its functions has."""

    def __init__(self, graph: gs.Graph) -> None:
        self._taken: set[str] = set()
        for nested in all_graphs(graph):
            self._taken.update(tensor.name for tensor in (*nested.inputs, *nested.outputs))
            for node in nested.nodes:
                self._taken.add(node.name)
                self._taken.update(tensor.name for tensor in (*node.inputs, *node.outputs))

    def new(self, wanted: str) -> str:
        """``wanted``, or ``wanted_2``, ``wanted_3`` … when it is taken."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def output_ids(graph: gs.Graph) -> set[int]:
    """``id`` of every tensor that is an output of the graph or of a graph nested in it."""
    return {id(tensor) for nested in nested_graphs(graph) for tensor in nested.outputs}


def sole_consumer(tensor: gs.Tensor, outputs: set[int]) -> gs.Node | None:
    """The one node that reads the tensor, once, when nothing else sees it.

    Args:
        outputs: what ``output_ids`` gave.
    """
    if len(tensor.outputs) != 1 or id(tensor) in outputs:
        return None
    consumer: gs.Node = tensor.outputs[0]
    return consumer if sum(item is tensor for item in consumer.inputs) == 1 else None


def reads_alone(node: gs.Node, tensor: gs.Tensor, outputs: set[int]) -> bool:
    """Whether this node is the ``sole_consumer`` of the tensor."""
    return sole_consumer(tensor, outputs) is node


def replace_uses(old: gs.Tensor, new: gs.Tensor) -> None:
    """Every node that reads ``old`` reads ``new`` instead; graph outputs stay what they are."""
    for consumer in list(old.outputs):
        for index, tensor in enumerate(consumer.inputs):
            if tensor is old:
                consumer.inputs[index] = new


def detach(node: gs.Node) -> None:
    """Cut a node off from its tensors; ``graph.cleanup()`` drops it later."""
    node.inputs.clear()
    node.outputs.clear()


def bypass(graph: gs.Graph, node: gs.Node, outputs: set[int]) -> bool:
    """Let the readers of the node's first output read its first input, and detach it.

    The names of graph outputs survive: where the node's output is one, the input's producer takes the name
    over, which it can when it is a node of the same graph and its own output is no graph output.

    Returns:
        whether it was possible.
    """
    source, result = node.inputs[0], node.outputs[0]
    if id(result) not in outputs:
        detach(node)
        replace_uses(result, source)
        return True
    if id(source) in outputs or isinstance(source, gs.Constant) or len(source.inputs) != 1:
        return False
    producer = source.inputs[0]
    if not any(member is producer for member in graph.nodes):
        return False
    if not any(tensor is result for tensor in graph.outputs):
        return False
    detach(node)
    position = next(index for index, tensor in enumerate(producer.outputs) if tensor is source)
    producer.outputs[position] = result
    replace_uses(source, result)
    return True
