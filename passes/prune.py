"""The pass ``prune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.graph.branches import Branch
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.sparsity import SparseForm
from onnxcomp.linalg.sparsify import Score
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.blocks import measured_blocks, without_blocks
from onnxcomp.runtime.channels import Candidates, Shrinking
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.shares import Budget, ShareBudget, SpeedBudget
from onnxcomp.runtime.sparsify import Sparsified, make_sparse, sparsify_by_size
from onnxcomp.runtime.target import Target

__all__ = ["Prune"]

DEFAULT_FLOPS = 0.25
DEFAULT_SPARSITY = 0.5
_UNOBSERVED = "what it reads cannot be observed on the calibration data, or is not finite, or is too wide"
_NO_GAIN = (
    "prune made weights zero in place: the model has the same size and speed in ONNX Runtime; the zeros pay where "
    "the file is packed, or in a runtime with kernels for such sparsity"
)
_NO_DATA = "; and without calibration data nothing makes up for them: give samples with --data"


class Prune(Pass):
    """Remove whole channels, and let the layers that read them make up for it.

    Channels are removed from all layers that they depend on at once (see ``graph.groups``), so what comes out
    is a smaller model of plain operators that runs faster on any runtime. With calibration data:

    1. The loss of removing channels is the part of the outputs of the layers that read them which the channels
       left cannot give (Optimal Brain Surgeon for blocks, Hassibi and Stork 1993); what that does to the model's
       outputs is measured at three points for each group.
    2. Groups lose channels in steps of ``align``, wherever a step costs least for what it saves: operations
       (``flops``), parameters (``sparsity``) or measured time (``speedup``), until the budget is met. None falls
       below a quarter of its channels. A residual branch goes whole where that costs less than channels
       (``blocks``).
    3. Layer after layer, weights and biases are fitted by least squares to what the original layer gave
       (channel pruning, He et al. 2017, with the inputs that the pruned model really has).

    The result is smaller and faster in any runtime. Without data the smallest weights go (``score`` names other
    choices), and nothing makes up for them.

    With ``granularity`` ``element``, ``2:4`` (any N:M) or ``block(8,8)``, weights become zero in place instead.
    Layers keep their shapes: **neither file nor time shrink in ONNX Runtime**, only what packs the file, or a runtime
    with kernels for such sparsity, gains. Which weights go, and what the others become, is what changes the layer's
    outputs least (see ``linalg.sparsify``); with ``element`` and blocks, layers that bear it lose more. Depthwise
    layers and tables stay dense. Later passes keep the zeros.

    Layers inside the bodies of If, Loop and Scan and in model-local functions stay as they are, and so do the
    channels that they read from outside. ``fold(inline_functions=True)`` makes the functions' layers plain ones.
    """

    name: ClassVar[str] = "prune"
    stage: ClassVar[Stage] = Stage.PRUNE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    granularity: str = Field(
        "channel", description="what goes: channel, or weights: element, 2:4 (any N:M), block(8,8) (outputs, channels)"
    )
    flops: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the multiply-accumulates to remove; 0.25 when nothing else is asked for",
    )
    sparsity: float | None = Field(
        None, gt=0, lt=1, description="share of the parameters to remove; of elements or in blocks by default 0.5"
    )
    score: Literal["obs", "wanda", "magnitude", "median", "scale"] | None = Field(
        None,
        description="what chooses: obs by default, without data magnitude; wanda for weights alone; for channels alone "
        "median (geometric median of the filters) and scale (of a normalization)",
    )
    speedup: float | None = Field(
        None,
        gt=1,
        le=100,
        description="how many times as fast as the original the result is to be, measured on the target",
    )
    rounds: int = Field(1, ge=1, le=100, description="prune a little, fit, and measure all losses anew, so many times")
    blocks: bool = Field(
        True,
        description="take out whole residual branches where measured losses say that it costs less",
    )
    residual: bool = Field(
        False, description="let channels go that a LayerNormalization averages over, as transformers' residual streams"
    )
    align: int | None = Field(
        None, ge=1, description="channels are left in multiples of this; by default what the target prefers"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Prune:
        if sum(budget is not None for budget in (self.flops, self.sparsity, self.speedup)) > 1:
            raise ValueError("flops, sparsity and speedup exclude each other; give one of them")
        return self

    @model_validator(mode="after")
    def _fits_granularity(self) -> Prune:
        if self.granularity == "channel":
            if self.score == "wanda":
                raise ValueError("score='wanda' goes with the granularities element, N:M and block, not with channel")
            return self
        if self.score in ("median", "scale"):
            raise ValueError(f"score={self.score!r} goes with granularity='channel' alone")
        form = SparseForm.parse(self.granularity)
        for option in ("flops", "speedup", "align", "rounds", "blocks", "residual"):
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"{option} goes with granularity='channel': zeros among weights save no work")
        if form.share is not None and self.sparsity is not None:
            raise ValueError(
                f"sparsity and granularity={self.granularity!r} exclude each other: it is {form.share:.0%}"
            )
        return self

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            InputError: the model does not run on the calibration data.
            PassError: the score needs calibration data, and there is none.
        """
        if self.granularity != "channel":
            self._make_sparse(model, SparseForm.parse(self.granularity), ctx)
            return
        if self.score == "obs":
            ctx.require_data()
        feeds = ctx.data.sample() if ctx.data is not None else synthetic(model, ctx.seed)
        before = [(layer, layer.shape) for layer in weighted_layers(model)]
        shapes, align = observed(model, feeds), self.align or ctx.target.channel_multiple
        budget = self._budget(model, feeds, ctx)
        work = Shrinking(model, shapes, ctx.data, ctx.progress)
        found = Candidates.of(model, shapes, align, through_norms=self.residual)
        dropped: list[Branch] = []
        score = self.score if self.score in ("magnitude", "median", "scale") else "obs"
        for turn in range(self.rounds):
            if turn:
                found = Candidates.of(model, observed(model, feeds), align, found.first, self.residual)
            original = work.original if turn else None
            removals = found.removals(ctx.data, ctx.progress, original, score)
            part = (turn + 1) / self.rounds
            if ctx.data is None or score != "obs" or not self.blocks:
                plan = budget.plan(found, removals, part)
                work.remove(found.groups, plan.gone)
                continue
            blocks = measured_blocks(found, ctx.data, ctx.progress, original)
            found, plan, branches = without_blocks(found, removals, blocks, budget, part)
            work.remove(found.groups, plan.gone, [branch.add for branch in branches])
            dropped += branches
        if before and (missed := budget.shortfall()):
            ctx.warn(missed)
        _log(ctx, before, work.errors, found, dropped)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:
        """See the base class."""
        if self.granularity != "channel":
            return _sparse_prospect(model, SparseForm.parse(self.granularity))
        align = self.align or target.channel_multiple
        found = Candidates.of(model, shapes, align, through_norms=self.residual)
        if not found.every:
            return "nothing: no layer has channels that can be followed through the graph"
        most, channels = sum(found.most), sum(group.size for group in found.every)
        where = f"{len(found.groups)} of {len(found.every)} groups that belong together"
        return f"at most {most} of {channels} channels could go, in {where}{because(found.reasons.values())}"

    def _make_sparse(self, model: Model, form: SparseForm, ctx: Context) -> None:
        """Zeros in place: layers keep their shapes."""
        by_size = ctx.data is None if self.score is None else self.score == "magnitude"
        score: Score = "magnitude" if by_size else "wanda" if self.score == "wanda" else "obs"
        data = ctx.require_data() if score != "magnitude" else ctx.data
        share = self.sparsity or DEFAULT_SPARSITY
        every = weighted_layers(model)
        reasons = {layer.name: form.obstacle(layer) for layer in every}
        layers = [layer for layer in every if reasons[layer.name] is None and (data is None or can_be_observed(layer))]
        if data is None:
            done = sparsify_by_size({layer: form.pattern(layer, share) for layer in layers})
        else:
            done = make_sparse(model, layers, form, share, score, data, ctx.progress)
        for layer in every:
            if layer.name in done:
                ctx.act(layer, "sparsified", _sparsified(done[layer.name]))
            else:
                ctx.skip(layer, reasons[layer.name] or _UNOBSERVED)
        if done:
            ctx.warn(_NO_GAIN + ("" if data else _NO_DATA))

    def _budget(self, model: Model, feeds: Feeds, ctx: Context) -> Budget:
        if self.speedup is not None:
            threads = ctx.target.threads or 1
            first = model.copy() if ctx.original is None else ctx.original
            return SpeedBudget(self.speedup, first, feeds, ctx.timings, threads, ctx.progress)
        if self.sparsity is not None:
            return ShareBudget("parameters", self.sparsity)
        return ShareBudget("flops", self.flops or DEFAULT_FLOPS)


def _sparse_prospect(model: Model, form: SparseForm) -> str:
    reasons = [form.obstacle(layer) for layer in weighted_layers(model)]
    open_to_it = sum(reason is None for reason in reasons)
    return f"zeros in {open_to_it} of {len(reasons)} layers{because(reason for reason in reasons if reason)}"


def _sparsified(result: Sparsified) -> str:
    fitted = "" if math.isnan(result.error) else f"; relative output error {result.error:.2g}"
    return f"{result.zeros / result.size:.1%} of {result.size:,} weights are zero{fitted}"


def _log(
    ctx: Context,
    before: Sequence[tuple[WeightedLayer, tuple[int, ...]]],
    errors: Mapping[str, float],
    found: Candidates,
    dropped: Sequence[Branch],
) -> None:
    """Decide about every weighted layer, given the shapes of their weights as they were."""
    groups_of: dict[int, list[Group]] = {}
    for group in found.every:
        for slot in group.slots:
            groups_of.setdefault(id(slot.node), []).append(group)
    branch_of = {id(layer.node): branch.name for branch in dropped for layer in branch.layers}
    for layer, old in before:
        if id(layer.node) in branch_of:
            ctx.act(layer, "removed", f"with all of the residual branch that {branch_of[id(layer.node)]} added")
            continue
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
