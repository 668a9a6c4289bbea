"""Places where a network can be cut in two: all that it has computed so far is in one tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from onnxcomp.model import Model
from onnxcomp.storage.messages import drop_unneeded_nodes, keep_named, reads_of

__all__ = ["between", "cuts", "evenly", "spread"]


def cuts(model: Model, parameters: Collection[str]) -> list[str]:
    """Tensors of the main graph, in its order, through which all that depends on parameters before them goes on.

    What does not depend on any parameter (a mask, a shape) may go past them: each side can compute it anew. Of several
    tensors with the same parameters before them the last is given, and none without parameters on both sides.

    Args:
        parameters: names of initializers.
    """
    graph = model.proto().graph
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in set(reads_of(node)):
            readers[name] = readers.get(name, 0) + 1
    for value in graph.output:  # read after all else
        readers[value.name] = readers.get(value.name, 0) + 1
    depending, live, met = set(parameters), set[str](), set[str]()
    found: dict[int, str] = {}  # by the number of parameters before
    for node in graph.node:
        reads = set(reads_of(node))
        for name in reads:
            readers[name] -= 1
        live = {name for name in live if readers[name]}
        met |= reads.intersection(parameters)
        if depending & reads:
            outputs = [name for name in node.output if name]
            depending.update(outputs)
            live.update(name for name in outputs if readers.get(name))
        shared = any(readers[name] for name in met)  # a parameter of both sides would be trained twice
        if len(live) == 1 and (alone := next(iter(live))) in node.output and not shared:
            found[len(met)] = alone
    ends = {value.name for value in graph.output}
    return [name for count, name in found.items() if 0 < count < len(met) and name not in ends]


def evenly(places: Sequence[str], positions: Mapping[str, float], count: int) -> list[str]:
    """Of these places, in order, those nearest to ``count`` - 1 equal steps from 0 to 1.

    Args:
        places: to choose from.
        positions: how far along each is, from 0 to 1.
        count: parts wanted; there are fewer where places are few.
    """
    steps = min(count - 1, len(places))
    chosen: list[str] = []
    first = 0
    for step in range(steps):
        last = len(places) - (steps - 1 - step)  # so many are left for the steps behind
        wanted = (step + 1) / (steps + 1)
        index = min(range(first, last), key=lambda place: abs(positions[places[place]] - wanted))
        chosen.append(places[index])
        first = index + 1
    return chosen


def spread(places: Sequence[str], count: int) -> list[str]:
    """``count`` of these places, or all, in equal steps; the last one is among them."""
    chosen = min(count, len(places))
    return [places[(step + 1) * len(places) // chosen - 1] for step in range(chosen)]


def between(model: Model, start: str | None, end: str | None) -> Model:
    """The part of a model from one tensor (or its inputs) to another (or its outputs).

    Args:
        model: not changed.
        start: becomes an input, float32.
        end: becomes the only output.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto())
    graph = proto.graph
    if end is not None:
        del graph.output[:]
        graph.output.append(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None))
    if start is not None:
        _replace_producer(graph, start)
        graph.input.append(onnx.helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, None))
        keep_named(graph.value_info, {value.name for value in graph.value_info} - {start})
    needed = drop_unneeded_nodes(graph)
    keep_named(graph.initializer, needed)
    keep_named(graph.input, needed)
    return Model.from_proto(proto)


def _replace_producer(graph: onnx.GraphProto, name: str) -> None:
    """Let nobody compute the tensor; whoever did gives it another name."""
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == name:
                node.output[index] = f"{name}/before"
