"""The pass ``prune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.graph.affine import input_columns, output_rows
from onnxcomp.graph.budget import GroupCost
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.cost import cost
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.linalg.allocate import allocate
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.refit import Kept, refit
from onnxcomp.runtime.removal import Removal, measured_removals, norm_removals, readers
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target

__all__ = ["Prune"]

Array = np.ndarray[Any, Any]

DEFAULT_FLOPS = 0.25
LEAST_SHARE = 0.25  # of a group's channels that are kept whatever they cost
MAX_INPUTS = 4608  # of a layer: its covariance is a matrix of that size
MAX_STAGES = 8  # of the reconstruction, each of which runs the data once; more were not seen to help
MACS = 4e10  # that the calibration samples may take to run once
PROBE_MACS = 1e10


class Prune(Pass):
    """Remove whole channels, and let the layers that read them make up for it.

    Channels are removed from all layers that they depend on at once (see ``graph.groups``), so what comes out
    is a smaller model of plain operators that runs faster on any runtime. With calibration data:

    1. The loss of removing channels is the part of the outputs of the layers that read them which the channels
       left cannot give (Optimal Brain Surgeon for blocks, Hassibi and Stork 1993); how much of it reaches the
       model's outputs is measured once for each group.
    2. Groups lose channels in steps of ``align``, wherever a step costs least for what it saves, until the
       budget is met. None falls below a quarter of its channels.
    3. Layer after layer, weights and biases are fitted by least squares to what the original layer gave
       (channel pruning, He et al. 2017, with the inputs that the pruned model really has).

    Without data the smallest weights go, and nothing makes up for them.

    Layers inside the bodies of If, Loop and Scan and in model-local functions stay as they are, and so do the
    channels that they read from outside. ``fold(inline_functions=True)`` makes the functions' layers plain ones.
    """

    name: ClassVar[str] = "prune"
    stage: ClassVar[Stage] = Stage.PRUNE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    granularity: Literal["channel"] = Field("channel", description="what is removed")
    flops: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the multiply-accumulates to remove; 0.25 when sparsity is not set",
    )
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of the parameters to remove")
    align: int | None = Field(
        None, ge=1, description="channels are left in multiples of this; by default what the target prefers"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        if self.flops is not None and self.sparsity is not None:
            raise ValueError("flops and sparsity exclude each other; give one of them")
        return self

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            InputError: the model does not run on the calibration data.
        """
        feeds = ctx.data.sample() if ctx.data is not None else synthetic(model, ctx.seed)
        work = _Pruning.of(model, observed(model, feeds), self.align or ctx.target.channel_multiple)
        removals = work.removals(ctx)
        bill = GroupCost(model, work.shapes, work.groups, work.counts, self._unit)
        whole = bill.total([0] * len(work.groups))
        limit = (1.0 - self._share) * whole
        losses = [removal.losses[counts] for removal, counts in zip(removals, work.counts, strict=True)]
        steps = allocate(losses, bill, limit)
        removed = 1.0 - bill.total(steps) / whole if whole else 0.0
        if work.before and removed < self._share - 1e-9:
            ctx.warn(self._shortfall(removed))
        gone = [
            np.sort(removal.order[: counts[step]])
            for removal, counts, step in zip(removals, work.counts, steps, strict=True)
        ]
        errors = work.remove(gone, ctx)
        work.log(ctx, errors)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:
        """See the base class."""
        work = _Pruning.of(model, dict(shapes), self.align or target.channel_multiple)
        if not work.every:
            return "nothing: no layer has channels that can be followed through the graph"
        most, channels = sum(counts[-1] for counts in work.counts), sum(group.size for group in work.every)
        where = f"{len(work.groups)} of {len(work.every)} groups that belong together"
        return f"at most {most} of {channels} channels could go, in {where}{because(work.reasons.values())}"

    @property
    def _unit(self) -> Literal["flops", "parameters"]:
        return "flops" if self.sparsity is None else "parameters"

    @property
    def _share(self) -> float:
        return self.sparsity or self.flops or DEFAULT_FLOPS

    def _shortfall(self, removed: float) -> str:
        unit = "multiply-accumulates" if self._unit == "flops" else "parameters"
        return (
            f"prune removed {removed:.1%} of the {unit}, not the {self._share:.1%} asked for: "
            "no more channels may go (the report says why for each layer)"
        )


@dataclass
class _Pruning:
    """The pass at work on one model.

    Attributes:
        every: all dependency groups.
        groups: those that may lose channels.
        counts: for each of ``groups``, how many units are gone after 0, 1, 2, … steps.
        reasons: why the others may not, by ``id`` of the group.
        before: all layers, with the shapes of their weights as they were.
    """

    model: Model
    shapes: dict[str, tuple[int, ...]]
    every: list[Group]
    groups: list[Group]
    counts: list[list[int]]
    reasons: dict[int, str]
    before: list[tuple[WeightedLayer, tuple[int, ...]]]

    @classmethod
    def of(cls, model: Model, shapes: dict[str, tuple[int, ...]], align: int) -> _Pruning:
        every = dependency_groups(model, shapes)
        groups: list[Group] = []
        counts: list[list[int]] = []
        reasons: dict[int, str] = {}
        for group in every:
            steps = _counts(group, align)
            reason = group.kept or _unfit(group)
            if reason is None and len(steps) == 1:
                reason = f"it has {group.size} channels, too few to remove {align} and keep a quarter"
            if reason is None:
                groups.append(group)
                counts.append(steps)
            else:
                reasons[id(group)] = reason
        before = [(layer, layer.shape) for layer in weighted_layers(model)]
        return cls(model, shapes, every, groups, counts, reasons, before)

    def removals(self, ctx: Context) -> list[Removal]:
        """In which order the units of each group go, and what it costs."""
        most = [counts[-1] for counts in self.counts]
        if ctx.data is None:
            return norm_removals(self.groups, most)
        samples, held_out = self.samples(ctx.data, MACS).split(0.75)
        probe = self.samples(held_out, PROBE_MACS, 64)
        removals = measured_removals(self.model, self.groups, most, samples, probe, ctx.progress)
        for group, removal in zip(self.groups, removals, strict=True):
            if not removal.measurable:
                self.reasons[id(group)] = "NaN or infinite values reach its readers on the calibration data"
        return removals

    def samples(self, data: Dataset, most_macs: float, most: int = 4096) -> Dataset:
        """As many as can be run for so many multiply-accumulates, 16 at least."""
        each = cost(self.model, self.shapes).flops / 2 / data.least
        return data.take(max(16, min(most, int(most_macs / max(1.0, each)))))

    def remove(self, gone: Sequence[Array], ctx: Context) -> dict[str, float]:
        """Remove these units, and fit what is left; returns the relative error of each layer that was fitted."""
        if not any(len(units) for units in gone):
            return {}
        original = self.model.copy()
        kept = _kept(self.model, self.groups, gone)
        for group, units in zip(self.groups, gone, strict=True):
            if len(units):
                select(group, np.setdiff1d(np.arange(group.size), units))
        if ctx.data is None:
            return {}
        return refit(self.model, original, self.samples(ctx.data, MACS), kept, MAX_STAGES, ctx.progress)

    def log(self, ctx: Context, errors: Mapping[str, float]) -> None:
        """Decide about every weighted layer."""
        groups_of: dict[int, list[Group]] = {}
        for group in self.every:
            for slot in group.slots:
                groups_of.setdefault(id(slot.node), []).append(group)
        for layer, old in self.before:
            fitted = _fitted(errors[layer.name]) if layer.name in errors else ""
            if old != layer.shape:
                fitted = fitted or ("nothing makes up for it without calibration data" if ctx.data is None else "")
                ctx.act(layer, "pruned", "; ".join(filter(None, [_change(layer, old, layer.shape), fitted])))
            elif fitted:
                ctx.act(layer, "adjusted", f"to inputs that were pruned before it; {fitted}")
            else:
                ctx.skip(layer, self._reason(layer, groups_of.get(id(layer.node), [])))

    def _reason(self, layer: WeightedLayer, groups: Sequence[Group]) -> str:
        if layer.nested:
            return f"it lies {layer.place}, where channels are not followed"
        if layer.shared or layer.quantized:
            return f"its weight is {'shared' if layer.shared else 'quantized'}"
        if not groups:
            return f"no rule prunes the weight of {layer.op}"
        if any(id(group) not in self.reasons for group in groups):
            return "its channels are worth more than they cost"
        return self.reasons[id(groups[0])]


def _fitted(error: float) -> str:
    if math.isnan(error):
        return "not fitted, for NaN or infinite values reach it on the calibration data"
    return f"relative output error {error:.2g}"


def _counts(group: Group, align: int) -> list[int]:
    """How many units are gone after 0, 1, 2, … steps, so that channels are multiples of ``align`` from 1 on."""
    producers = [slot.positions.shape[1] for slot in group.slots if slot.role == "out"]
    step = align // math.gcd(align, *(producers or [1]))
    least = max(step, -(-math.ceil(LEAST_SHARE * group.size) // step) * step)
    highest = (group.size - 1) // step * step
    return [0, *(group.size - left for left in range(highest, least - 1, -step))]


def _unfit(group: Group) -> str | None:
    """Why its readers cannot make up for lost channels."""
    layers = [layer for layer, _ in readers(group)]
    if not layers:
        return "no layer reads its channels"
    for layer in layers:
        if layer.kind == "other":
            return f"{layer.name} reads its channels, and no {layer.op} can be fitted to do without some"
        if (size := layout_of(layer).size) > MAX_INPUTS:
            return f"{layer.name} reads {size} inputs, more than the {MAX_INPUTS} that can be fitted"
    for slot in group.slots:
        if not np.isfinite(np.asarray(value_of(slot.tensor), dtype=np.float64)).all():
            return f"{slot.tensor.name} holds NaN or infinite values"
    return None


def _kept(model: Model, groups: Sequence[Group], gone: Sequence[Array]) -> list[Kept]:
    """What is left of every layer that is to be fitted: those behind a removed channel."""
    lost_inputs: dict[str, Array] = {}
    lost_outputs: dict[str, Array] = {}
    for group, units in zip(groups, gone, strict=True):
        for slot in group.slots if len(units) else ():
            layer, positions = slot.layer, slot.positions[units]
            if layer is None or slot.index != layer.weight_index:
                continue
            if slot.role == "in":
                columns = input_columns(layer, positions).reshape(-1)
                lost_inputs[layer.name] = np.union1d(lost_inputs.get(layer.name, columns), columns)
            elif slot.role == "out":
                lost_outputs[layer.name] = np.union1d(lost_outputs.get(layer.name, positions), positions)
    kept: list[Kept] = []
    for layer in _behind(model, set(lost_inputs)):
        mask = np.ones(layer.shape[layer.out_axis], dtype=bool)
        mask[lost_outputs.get(layer.name, np.zeros(0, dtype=np.int64))] = False
        inputs = np.arange(layout_of(layer).size)
        columns = np.setdiff1d(inputs, lost_inputs.get(layer.name, inputs[:0]))
        kept.append(Kept(layer, columns, output_rows(layer, mask)))
    return kept


def _behind(model: Model, changed: set[str]) -> list[WeightedLayer]:
    """The layers that can be fitted and compute from channels that change: these, and all that come after."""
    layers = {id(layer.node): layer for layer in weighted_layers(model) if _can_fit(layer)}
    touched: set[int] = set()
    found: list[WeightedLayer] = []
    for node in model.graph.nodes:
        layer = layers.get(id(node))
        behind = any(id(tensor) in touched for tensor in node.inputs)
        if behind or (layer is not None and layer.name in changed):
            touched.update(id(tensor) for tensor in node.outputs)
            if layer is not None:
                found.append(layer)
    return found


def _can_fit(layer: WeightedLayer) -> bool:
    """Not depthwise: a channel of its own has nothing to make up with."""
    if layer.kind == "other" or layer.shared or layer.quantized or layer.nested:
        return False
    inputs = layer.shape[layer.in_axis] // (layer.groups if layer.kind == "ConvTranspose" else 1)
    return (layer.groups == 1 or inputs > 1) and layout_of(layer).size <= MAX_INPUTS


def _change(layer: WeightedLayer, old: tuple[int, ...], new: tuple[int, ...]) -> str:
    """For instance ``64 -> 48 outputs, 32 -> 24 inputs``."""
    names = {layer.out_axis: "outputs", layer.in_axis: "inputs"} if layer.kind != "other" else {}
    changes = [
        f"{before} -> {after} {names.get(axis, 'channels')}"
        for axis, (before, after) in enumerate(zip(old, new, strict=True))
        if before != after
    ]
    return ", ".join(changes)
