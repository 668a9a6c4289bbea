"""What is in a model, before anything is done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field
from rich.table import Table

from onnxcomp.context import Context
from onnxcomp.errors import InputError
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.graph.groups import dependency_groups
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.manager import PassManager
from onnxcomp.model import Model, one_line
from onnxcomp.pipeline import Pipeline
from onnxcomp.progress import Progress, silent
from onnxcomp.registry import pass_class, pass_names
from onnxcomp.report.console import Page
from onnxcomp.report.environment import describe_input
from onnxcomp.report.schema import Input, Section
from onnxcomp.report.table import count, size, table
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.profile import body_shapes, time_by_operator
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target

__all__ = ["Inspection", "inspect", "print_inspection"]

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


class Prospect(Section):
    """What a pass could do to the model."""

    name: str
    """The pass."""
    prospect: str
    """What it finds to work on, or why it finds nothing."""


class Inspection(Section):
    """What ``onnxcomp MODEL`` finds without a pipeline."""

    schema_version: Literal[1] = 1
    """Version of this layout."""
    input: Input
    """The model."""
    feeds: dict[str, list[int]] | None
    """Shapes of the tensors that it was run on; null when it was not run."""
    threads: int
    """Threads of the run that was timed."""
    layers: list[LayerFacts] = Field(default_factory=list)
    """In graph order."""
    operators: list[OperatorFacts] = Field(default_factory=list)
    """Longest time first."""
    channels: list[ChannelFacts] = Field(default_factory=list)
    """What channels could be pruned or reordered."""
    prospects: list[Prospect] = Field(default_factory=list)
    """What each pass could do, in the order they run in; empty when the model was not run."""
    notes: list[str] = Field(default_factory=list)
    """What could not be found out, and why."""


def inspect(
    model: Model,
    feeds: Feeds | None = None,
    target: Target | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Inspection:
    """Look at a model: weights, FLOPs, time, channels, what each pass could do.

    Args:
        model: any model; one that does not run on made-up inputs is described without FLOPs and times.
        feeds: one sample; made up when None.
        target: the machine that passes would work for, and the threads of the run that is timed; default:
            this machine, one thread.
        seed: of the made-up sample.
        progress: shows which pass is looking at the model.
    """
    target = target or Target.host()
    notes: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    inner: dict[int, tuple[int, ...]] = {}
    if feeds is None:
        try:
            feeds = synthetic(model, seed)
        except InputError as error:
            notes.append(f"no FLOPs and times: {error}")
    if feeds is not None:
        shapes, inner = observed(model, feeds), body_shapes(model, feeds)
    counted = cost(model, shapes, inner)
    return Inspection(
        input=describe_input(model, counted.parameters, counted.flops if feeds is not None else None),
        feeds=None if feeds is None else _shapes(feeds),
        threads=target.threads,
        layers=list(_layers(model, counted, ran=feeds is not None)),
        operators=[] if feeds is None else list(_operators(model, feeds, target.threads)),
        channels=[] if feeds is None else list(_channels(model, shapes)),
        prospects=[] if feeds is None else list(_prospects(model, feeds, target, progress)),
        notes=notes,
    )


def print_inspection(page: Page, found: Inspection) -> None:
    """Show all of it: the model, weights by layer, time by operator, what each pass could do."""
    for line in _header(found):
        page.line(line)
    page.line()
    page.line("Weights by layer", style="bold")
    page.table(_layer_table(found))
    if found.operators:
        page.line()
        threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
        page.line(f"Time by operator: one run on {threads}, after ONNX Runtime's own optimizations", style="bold")
        page.table(_operator_table(found.operators))
    if found.prospects:
        page.line()
        page.line("What each pass could do", style="bold")
        rows = table("pass", "here", text=("here",))
        for entry in found.prospects:
            rows.add_row(entry.name, entry.prospect)
        page.table(rows, readable=True)
    page.line()
    for note in found.notes:
        page.line(note)
    if found.input.path is not None:
        page.line(f"to compress it: onnxcomp {found.input.path} -p prune,quant,reorder --data SAMPLES")


def _header(found: Inspection) -> Iterator[str]:
    model = found.input
    flops = "" if model.flops is None else f", {count(model.flops)} FLOPs a sample"
    yield (
        f"{model.path or 'the model'}: {size(model.bytes)}, {count(model.parameters)} parameters{flops}, "
        f"opset {model.opset}, IR version {model.ir_version}"
    )
    if found.feeds is not None:
        inputs = (f"{name} {'x'.join(map(str, dims)) or 'scalar'}" for name, dims in found.feeds.items())
        yield f"run on {', '.join(inputs)}"
    layers: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in found.layers:
        if layer.shape is not None:
            layers[layer.op] += 1
            weights[layer.op] += layer.parameters
    total = max(1, model.parameters)
    parts = (f"{layers[op]} {op} ({100 * held / total:.1f} %)" for op, held in weights.most_common())
    held_by = sum(layers.values())
    yield f"weights in {held_by} layer{'' if held_by == 1 else 's'}: {', '.join(parts) or 'none'}"


def _layer_table(found: Inspection) -> Table:
    """The largest layers in graph order; FLOPs only where the model was run."""
    ran = found.input.flops is not None
    rows = table("layer", "operator", "weight", "params", *(["FLOPs"] if ran else []))
    rows.columns[0].min_width = 16
    shown = sorted(found.layers, key=lambda layer: -max(layer.parameters, layer.flops or 0))[:_MOST_ROWS]
    names = {layer.name for layer in shown}
    for layer in found.layers:
        if layer.name in names:
            shape = "-" if layer.shape is None else "x".join(map(str, layer.shape))
            rows.add_row(layer.name, layer.op, shape, count(layer.parameters), *([count(layer.flops)] if ran else []))
    rest = [layer for layer in found.layers if layer.name not in names]
    if rest:
        flops = [count(sum(layer.flops or 0 for layer in rest))] if ran else []
        label = f"{len(rest)} smaller ones (--report lists them)"
        rows.add_row(label, "", "", count(sum(layer.parameters for layer in rest)), *flops)
    return rows


def _operator_table(operators: list[OperatorFacts]) -> Table:
    rows = table("operator", "nodes", "ms", "share")
    total = sum(entry.ms for entry in operators) or 1.0
    for entry in operators:
        rows.add_row(entry.op, str(entry.nodes), f"{entry.ms:.3f}", f"{100 * entry.ms / total:.1f} %")
    return rows


def _layers(model: Model, counted: Cost, ran: bool) -> Iterator[LayerFacts]:
    weighted: dict[str, WeightedLayer] = {layer.name: layer for layer in weighted_layers(model)}
    for name, entry in counted.per_layer.items():
        layer = weighted.get(name)
        shape = None if layer is None else list(layer.shape)
        flops = entry.flops if ran else None
        yield LayerFacts(name=name, op=entry.op, shape=shape, parameters=entry.parameters, flops=flops)


def _shapes(feeds: Feeds) -> dict[str, list[int]]:
    """Of the arrays; sequences and maps have none."""
    return {name: list(value.shape) for name, value in feeds.items() if isinstance(value, np.ndarray)}


def _operators(model: Model, feeds: Feeds, threads: int) -> Iterator[OperatorFacts]:
    for entry in time_by_operator(model, feeds, threads):
        yield OperatorFacts(op=entry.op, nodes=entry.nodes, ms=round(entry.ms, 4))


def _channels(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[ChannelFacts]:
    for group in dependency_groups(model, shapes):
        reason = group.pinned or group.kept or ""
        movable = group.pinned is None
        removable = movable and group.kept is None
        yield ChannelFacts(layer=group.name, channels=group.size, removable=removable, movable=movable, reason=reason)


def _prospects(model: Model, feeds: Feeds, target: Target, progress: Progress) -> Iterator[Prospect]:
    """Each pass looks at the model as the passes that it requires leave it."""
    prepared: dict[str, tuple[Model, dict[str, tuple[int, ...]]]] = {}
    for cls in progress(sorted(map(pass_class, pass_names()), key=lambda cls: cls.stage), "looking with"):
        try:
            required = [p for p in Pipeline([cls()]).scheduled().passes if not isinstance(p, cls)]
            key = ",".join(map(str, required))
            if key not in prepared:
                work = model.copy()
                if required:
                    PassManager(Pipeline(required)).run(work, Context(target=target))
                prepared[key] = work, observed(work, feeds)
            text = cls().prospect(*prepared[key], target)
        except Exception as error:  # a pass, built in or plugged in, may fail in any way
            text = f"cannot tell: {one_line(error)}"
        yield Prospect(name=cls.name, prospect=text or "see its manual page")
