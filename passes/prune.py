"""The pass ``prune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.channels import Candidates, Shrinking
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.shares import Budget, ShareBudget, SpeedBudget
from onnxcomp.runtime.target import Target

__all__ = ["Prune"]

DEFAULT_FLOPS = 0.25


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
        description="share of the multiply-accumulates to remove; 0.25 when nothing else is asked for",
    )
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of the parameters to remove")
    speedup: float | None = Field(
        None, gt=1, le=100, description="how many times faster the whole model is to be, measured on the target"
    )
    rounds: int = Field(1, ge=1, le=100, description="prune a little, fit, and measure all losses anew, so many times")
    align: int | None = Field(
        None, ge=1, description="channels are left in multiples of this; by default what the target prefers"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        if sum(budget is not None for budget in (self.flops, self.sparsity, self.speedup)) > 1:
            raise ValueError("flops, sparsity and speedup exclude each other; give one of them")
        return self

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            InputError: the model does not run on the calibration data.
        """
        feeds = ctx.data.sample() if ctx.data is not None else synthetic(model, ctx.seed)
        before = [(layer, layer.shape) for layer in weighted_layers(model)]
        shapes, align = observed(model, feeds), self.align or ctx.target.channel_multiple
        budget = self._budget(model, feeds, ctx)
        work = Shrinking(model, shapes, ctx.data, ctx.progress)
        found = Candidates.of(model, shapes, align)
        first = {group.name: group.size for group in found.every}
        for turn in range(self.rounds):
            if turn:
                found = Candidates.of(model, observed(model, feeds), align, first)
            removals = found.removals(ctx.data, ctx.progress, work.original if turn else None)
            work.remove(found.groups, budget.gone(found, removals, (turn + 1) / self.rounds))
        if before and (missed := budget.shortfall()):
            ctx.warn(missed)
        _log(ctx, before, work.errors, found)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:
        """See the base class."""
        found = Candidates.of(model, shapes, self.align or target.channel_multiple)
        if not found.every:
            return "nothing: no layer has channels that can be followed through the graph"
        most, channels = sum(found.most), sum(group.size for group in found.every)
        where = f"{len(found.groups)} of {len(found.every)} groups that belong together"
        return f"at most {most} of {channels} channels could go, in {where}{because(found.reasons.values())}"

    def _budget(self, model: Model, feeds: Feeds, ctx: Context) -> Budget:
        if self.speedup is not None:
            threads = ctx.target.threads or 1
            return SpeedBudget(self.speedup, model.copy(), feeds, ctx.timings, threads, ctx.progress)
        if self.sparsity is not None:
            return ShareBudget("parameters", self.sparsity)
        return ShareBudget("flops", self.flops or DEFAULT_FLOPS)


def _log(
    ctx: Context,
    before: Sequence[tuple[WeightedLayer, tuple[int, ...]]],
    errors: Mapping[str, float],
    found: Candidates,
) -> None:
    """Decide about every weighted layer, given the shapes of their weights as they were."""
    groups_of: dict[int, list[Group]] = {}
    for group in found.every:
        for slot in group.slots:
            groups_of.setdefault(id(slot.node), []).append(group)
    for layer, old in before:
        fitted = _fitted(errors[layer.name]) if layer.name in errors else ""
        if old != layer.shape:
            fitted = fitted or ("nothing makes up for it without calibration data" if ctx.data is None else "")
            ctx.act(layer, "pruned", "; ".join(filter(None, [_change(layer, old, layer.shape), fitted])))
        elif fitted:
            ctx.act(layer, "adjusted", f"to inputs that were pruned before it; {fitted}")
        else:
            ctx.skip(layer, _reason(layer, groups_of.get(id(layer.node), []), found.reasons))


def _reason(layer: WeightedLayer, groups: Sequence[Group], reasons: Mapping[int, str]) -> str:
    if layer.nested:
        return f"it lies {layer.place}, where channels are not followed"
    if layer.shared or layer.quantized:
        return f"its weight is {'shared' if layer.shared else 'quantized'}"
    if not groups:
        return f"no rule prunes the weight of {layer.op}"
    if any(id(group) not in reasons for group in groups):
        return "its channels are worth more than they cost"
    return reasons[id(groups[0])]


def _fitted(error: float) -> str:
    if math.isnan(error):
        return "not fitted, for NaN or infinite values reach it on the calibration data"
    return f"relative output error {error:.2g}"


def _change(layer: WeightedLayer, old: tuple[int, ...], new: tuple[int, ...]) -> str:
    """For instance ``64 -> 48 outputs, 32 -> 24 inputs``."""
    names = {layer.out_axis: "outputs", layer.in_axis: "inputs"} if layer.kind != "other" else {}
    changes = [
        f"{before} -> {after} {names.get(axis, 'channels')}"
        for axis, (before, after) in enumerate(zip(old, new, strict=True))
        if before != after
    ]
    return ", ".join(changes)
