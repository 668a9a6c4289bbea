"""What is in a model, before anything is done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field
from rich.table import Table

from onnxcomp.errors import InputError
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.graph.groups import dependency_groups
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model
from onnxcomp.report.environment import describe_input
from onnxcomp.report.schema import Input, Section
from onnxcomp.report.table import count, size, table
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.profile import body_shapes, time_by_operator
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.shapes import observed

__all__ = ["Inspection", "inspect", "inspection_tables", "inspection_text"]

_MOST_ROWS = 40


class LayerFacts(Section):
    """A node with weights, or one that multiplies activations."""

    name: str
    """Its name."""
    op: str
    """Its operator."""
    shape: list[int] | None
    """Of its weight; null where it has none of two axes or more."""
    parameters: int
    """Elements of its weights."""
    flops: int | None
    """Of one inference of one sample; null when the model was not run."""


class OperatorFacts(Section):
    """All nodes of one operator, after ONNX Runtime's own optimizations."""

    op: str
    """The operator."""
    nodes: int
    """How many."""
    ms: float
    """Milliseconds of one inference spent in them."""


class ChannelFacts(Section):
    """A group of channels that belong together over all layers that produce and read them."""

    layer: str
    """The first layer that produces them."""
    channels: int
    """How many there are."""
    removable: bool
    """Whether some may be removed."""
    movable: bool
    """Whether they may be permuted."""
    reason: str
    """What stands against it."""


class Inspection(Section):
    """What ``onnxcomp MODEL`` finds without a pipeline."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    input: Input
    """The model."""
    feeds: dict[str, list[int]] | None
    """Shapes of the inputs that it was run on; null when it was not run."""
    threads: int
    """Threads of the run that was timed."""
    layers: list[LayerFacts] = Field(default_factory=list)
    """In graph order."""
    operators: list[OperatorFacts] = Field(default_factory=list)
    """Longest time first."""
    channels: list[ChannelFacts] = Field(default_factory=list)
    """What channels could be pruned or reordered."""
    notes: list[str] = Field(default_factory=list)
    """What could not be found out, and why."""


def inspect(model: Model, feeds: Feeds | None = None, threads: int = 1, seed: int = 0) -> Inspection:
    """Look at a model: weights, FLOPs, time, channels.

    Args:
        model: any model; one that does not run on made-up inputs is described without FLOPs and times.
        feeds: one sample; made up when None.
        threads: intra-op threads of the run that is timed.
        seed: of the made-up sample.
    """
    notes: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    if feeds is None:
        try:
            feeds = synthetic(model, seed)
        except InputError as error:
            notes.append(f"no FLOPs and times: {error}")
    if feeds is not None:
        shapes = observed(model, feeds) | body_shapes(model, feeds)
    counted = cost(model, shapes)
    return Inspection(
        input=describe_input(model, counted.parameters, counted.flops if feeds is not None else None),
        feeds=None if feeds is None else {name: list(array.shape) for name, array in feeds.items()},
        threads=threads,
        layers=list(_layers(model, counted, ran=feeds is not None)),
        operators=[] if feeds is None else list(_operators(model, feeds, threads)),
        channels=[] if feeds is None else list(_channels(model, shapes)),
        notes=notes,
    )


def inspection_tables(found: Inspection) -> Iterator[Table]:
    """Weights by layer and time by operator."""
    rows = table("layer", "operator", "weight", "parameters", "FLOPs", title="Weights by layer")
    shown = sorted(found.layers, key=lambda layer: -max(layer.parameters, layer.flops or 0))[:_MOST_ROWS]
    names = {layer.name for layer in shown}
    for layer in found.layers:
        if layer.name in names:
            shape = "-" if layer.shape is None else "x".join(map(str, layer.shape))
            rows.add_row(layer.name, layer.op, shape, count(layer.parameters), count(layer.flops))
    rest = [layer for layer in found.layers if layer.name not in names]
    if rest:
        flops = None if found.input.flops is None else sum(layer.flops or 0 for layer in rest)
        label = f"{len(rest)} smaller ones (--report lists them all)"
        rows.add_row(label, "", "", count(sum(layer.parameters for layer in rest)), count(flops))
    yield rows
    if found.operators:
        title = f"Time by operator on {found.threads} thread{'s' if found.threads > 1 else ''}"
        times = table("operator", "nodes", "ms", "share", title=title)
        total = sum(entry.ms for entry in found.operators) or 1.0
        for entry in found.operators:
            times.add_row(entry.op, str(entry.nodes), f"{entry.ms:.3f}", f"{100 * entry.ms / total:.1f} %")
        yield times


def inspection_text(found: Inspection) -> Iterator[str]:
    """One line for the model, and some for what passes can work on."""
    model = found.input
    flops = "" if model.flops is None else f", {count(model.flops)}FLOPs"
    yield (
        f"{model.path}: {size(model.bytes)}, {count(model.parameters)} parameters{flops}, "
        f"opset {model.opset}, IR version {model.ir_version}"
    )
    if found.feeds is not None:
        inputs = (f"{name} {'x'.join(map(str, dims)) or 'scalar'}" for name, dims in found.feeds.items())
        yield f"run on {', '.join(inputs)}"
    yield _weights_text(found)
    if found.channels:
        yield from _channel_text(found.channels)
    yield from found.notes


def _weights_text(found: Inspection) -> str:
    """Operators by the weights that they hold: what to quantize, and what no pass knows."""
    layers: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in found.layers:
        if layer.shape is not None:
            layers[layer.op] += 1
            weights[layer.op] += layer.parameters
    total = max(1, found.input.parameters)
    parts = (f"{layers[op]} {op} ({100 * held / total:.1f} %)" for op, held in weights.most_common())
    return f"weights of {sum(layers.values())} layers: {', '.join(parts) or 'none'}"


def _channel_text(groups: list[ChannelFacts]) -> Iterator[str]:
    for verb, chosen in (
        ("prune", [group for group in groups if group.removable]),
        ("reorder", [group for group in groups if group.movable]),
    ):
        channels = sum(group.channels for group in chosen)
        yield f"to {verb}: {channels} channels in {len(chosen)} of {len(groups)} groups of channels"
    reasons = Counter(group.reason for group in groups if not group.movable)
    for reason, number in reasons.most_common(5):
        yield f"  {number} {'stay' if number > 1 else 'stays'}: {reason}"


def _layers(model: Model, counted: Cost, ran: bool) -> Iterator[LayerFacts]:
    weighted: dict[str, WeightedLayer] = {layer.name: layer for layer in weighted_layers(model)}
    for name, entry in counted.per_layer.items():
        layer = weighted.get(name)
        shape = None if layer is None else list(layer.shape)
        flops = entry.flops if ran else None
        yield LayerFacts(name=name, op=entry.op, shape=shape, parameters=entry.parameters, flops=flops)


def _operators(model: Model, feeds: Feeds, threads: int) -> Iterator[OperatorFacts]:
    for entry in time_by_operator(model, feeds, threads):
        yield OperatorFacts(op=entry.op, nodes=entry.nodes, ms=round(entry.ms, 4))


def _channels(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[ChannelFacts]:
    for group in dependency_groups(model, shapes):
        reason = group.pinned or group.kept or ""
        movable = group.pinned is None
        removable = movable and group.kept is None
        yield ChannelFacts(layer=group.name, channels=group.size, removable=removable, movable=movable, reason=reason)
