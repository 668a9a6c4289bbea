"""Permute channels so that unimportant weights lie together in tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from onnxcomp.context import Context
from onnxcomp.errors import PassError
from onnxcomp.files import write_atomic
from onnxcomp.graph.diagonal import equal_blocks, make_grouped
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.idle import idle_units, order_without
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.panels import panels_of, read_in_panels
from onnxcomp.graph.tied import merge_tied
from onnxcomp.graph.tiling import nonzero, operands_of, salience, untileable
from onnxcomp.heatmap import HeatMap, drawn
from onnxcomp.linalg.matching import match_coupled
from onnxcomp.linalg.tiles import fitted_block, tile_sums
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.padding import without_padding
from onnxcomp.runtime.panel_times import PanelTimes
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.tile_pruning import PAYS, TilePlan, TilePruning
from onnxcomp.tile_index import tile_index

__all__ = ["Reorder"]

Array = np.ndarray[Any, Any]
Size = Annotated[int, Field(ge=1)]

# A cost matrix of 4096 x 4096 takes 134 MB. A sweep takes 100 to 300 ns for each unit of the groups' squared
# sizes; all sweeps are limited by such a count, not by time, so that every machine finds the same orders.
_MOST_UNITS = 4096
_MOST_WORK = 2**26
_DRAWN = 12  # layers of a picture


class Reorder(Pass):
    """Order the channels so that unimportant weights lie in whole tiles, and drop tiles where that is faster.

    Which channels may be exchanged is known from the dependency groups of the graph: one permutation moves
    the outputs of all layers that produce a group's channels and the inputs of all that read them. It is
    folded into the weights: the model computes what it did, and nothing more runs at inference.
    The permutations are found by tile matching, after Ji et al., "TETRIS: TilE-matching the TRemendous
    Irregular Sparsity" (NeurIPS 2018), over all layers at once: in each, little of the salience Σ|w| is to
    lie in the cheapest ``rate`` of its ``block`` tiles.

    In turn:

    1. Channels that are zero already, that only zeros read, or that always equal another one (tied, as training
       with GrOWL leaves them: the weights that read them are added up) are removed, down to a multiple of the
       channels that the target's kernels take at once. Channels whose count an operator depends on stay.
    2. A convolution whose weight falls apart into equal independent blocks becomes a grouped one, where both
       sides of a block are such multiples.
    3. Every group that may move gets the order that tile matching finds for it.
    4. With calibration data and a ``density`` below 1, layers lose tiles: the outputs are divided into ``panels``,
       and each panel goes on reading some of the input channels. Which ones, and what the weights left must become,
       is what changes the outputs least (see ``linalg.sparsify``), on the inputs that the layers before, done already,
       really give. How much each layer loses depends on what that does to the model's outputs and what it saves.
    5. What is left is a smaller layer: where the layer alone reads its input, channels that it does not need are gone
       from the model; elsewhere a Slice or one Gather picks them, and several panels are one grouped convolution. Each
       such form is timed on the target beside the layer as it is, and made only where it is 3 % faster.

    With ``density=1`` the pass is exact. A group keeps its order where something in the graph depends on it (the
    reason is logged), where no order gains more than ``least_gain``, or where it has more channels than can be
    matched (4096, and fewer where many groups are large). Layers inside the bodies of If, Loop and Scan and in
    model-local functions stay as they are, and so do the channels that they read from outside.
    """

    name: ClassVar[str] = "reorder"
    stage: ClassVar[Stage] = Stage.REORDER
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    block: tuple[Size, Size] = Field(
        (8, 8), description="outputs and inputs of a tile; smaller in layers that it would not cut"
    )
    rate: float = Field(0.5, gt=0, lt=1, description="part of a layer's tiles that is to be cheap")
    starts: int = Field(1, ge=1, le=64, description="searches from different orders; the best counts")
    iterations: int = Field(12, ge=1, le=1000, description="sweeps over all groups in one search")
    least_gain: float = Field(
        0.01, ge=0, lt=1, description="part of the salience in cheap tiles that a group's new order must save"
    )

    density: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="part of the multiply-accumulates of the layers that lose tiles which is left; 1 to drop none; "
        "auto: as much as zeros of earlier passes say, and in dense layers what adds less than error",
    )
    panels: Literal[1, 2, 4] | None = Field(
        None, description="panels of outputs, each of which reads channels of its own; by default what is fastest"
    )
    error: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="with density='auto', what the tiles dropped may change in the outputs, over their variance",
    )

    picture: str | None = Field(
        None, description="SVG file to draw the largest weights in, before and after, with tiles"
    )
    tiles: str | None = Field(
        None, description="JSON file to list the tiles in that are not zero, for block-sparse kernels elsewhere"
    )

    @property
    def keeps_outputs(self) -> bool:
        """See the base class."""
        return self.density == 1

    def run(self, model: Model, ctx: Context) -> None:
        """Reorder the model in place; see the class.

        Raises:
            InputError: the model does not run on the calibration data, or a file cannot be written.
            PassError: a density needs calibration data, and there is none; or a file's name has the wrong ending.
        """
        _check_kind("picture", self.picture, "SVG")
        _check_kind("tiles", self.tiles, "JSON")
        multiple = ctx.target.channel_multiple
        feeds = synthetic(model, ctx.seed) if ctx.data is None else ctx.data.sample()
        groups = dependency_groups(model, observed(model, feeds))
        notes = _Notes()
        notes.before = self._seen(model)
        _remove_idle(model, groups, feeds, multiple, notes)
        if _split_diagonal(model, groups, multiple, notes):
            groups = dependency_groups(model, observed(model, feeds))
        notes.stuck = _stuck(groups)
        self._match(model, groups, ctx, notes)
        notes.after = self._seen(model)
        self._drop(model, groups, feeds, ctx, notes)
        if self.picture is not None:
            write_atomic(self.picture, self._drawn(notes).encode())
        if self.tiles is not None:
            tileable = [layer for layer in weighted_layers(model) if untileable(layer) is None]
            write_atomic(self.tiles, tile_index(tileable, self.block).encode())
        for layer in weighted_layers(model):
            self._decide(ctx, layer, groups, notes)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        groups = dependency_groups(model, shapes)
        if not groups:
            return "nothing: no layer has channels that can be followed through the graph"
        stuck = _stuck(groups)
        free = [group.size for group in groups if id(group) not in stuck]
        channels = sum(group.size for group in groups)
        where = f"{len(free)} of {len(groups)} groups that belong together"
        return f"{sum(free)} of {channels} channels could change places, in {where}{because(stuck.values())}"

    def _drop(
        self, model: Model, groups: Sequence[Group], feeds: Mapping[str, Array], ctx: Context, notes: _Notes
    ) -> None:
        """Drop tiles, and make the layers smaller by what is gone."""
        if self.density == 1 or (self.density == "auto" and ctx.data is None):
            return
        layers = {layer.name: layer for layer in weighted_layers(model)}
        before, state = model.copy(), model.checkpoint()
        times = PanelTimes(observed(model, feeds), ctx.timings, ctx.target.threads or 1)
        data = without_padding(model, ctx.require_data())
        work = TilePruning(model, groups, data, times, ctx.target.channel_multiple, self.panels, ctx.progress)
        work.run(list(layers.values()), None if self.density == "auto" else self.density, self.error)
        notes.whole = {id(layers[name].node): reason for name, reason in work.reasons.items()}
        if not work.plans:
            return
        notes.after = self._seen(model)  # what goes is still there, as zeros
        done = {key: list(told) for key, told in notes.done.items()}
        self._make_smaller(model, layers, work.plans, feeds, ctx.target.channel_multiple, notes)
        timed = ctx.timings.compare("tiles dropped", before, model, feeds, ctx.target.threads or 1)
        if timed is not None and timed.ratio < PAYS and self.density == "auto":
            state.restore()
            notes.after, notes.done = self._seen(model), done
            slow = f"without the tiles that could go, the model would run {timed.ratio:.2f} times as fast"
            notes.whole |= {id(layers[name].node): slow for name in work.plans}
            return
        for name, plan in work.plans.items():
            notes.tiled[id(layers[name].node)] = _told(plan, work.errors[name].error)

    def _make_smaller(
        self,
        model: Model,
        layers: Mapping[str, WeightedLayer],
        plans: Mapping[str, TilePlan],
        feeds: Mapping[str, Array],
        multiple: int,
        notes: _Notes,
    ) -> None:
        """Let layers read what is not zero alone, and remove the channels that no one reads any more."""

        def read(several: bool) -> None:
            for name, plan in plans.items():
                wanted = (plan.panels > 1) == several and not plan.alone
                if wanted and (panels := panels_of(layers[name], plan.panels)) is not None:
                    read_in_panels(model, layers[name], panels, len(shapes[layers[name].node.inputs[0].name]))

        shapes = observed(model, feeds)
        read(several=True)  # before outputs go: there would be no equal panels of them any more
        # The groups anew: fitting has given biases to layers that had none.
        _remove_idle(model, dependency_groups(model, observed(model, feeds)), feeds, multiple, notes)
        read(several=False)

    def _seen(self, model: Model) -> dict[str, Array]:
        """Saliences of the layers by name, where they are to be drawn."""
        if self.picture is None:
            return {}
        return {layer.name: salience(layer) for layer in weighted_layers(model) if untileable(layer) is None}

    def _drawn(self, notes: _Notes) -> str:
        """The largest layers, before and after."""
        names = sorted(notes.before.keys() & notes.after.keys(), key=lambda name: (-notes.before[name].size, name))
        return drawn(
            [
                HeatMap(name, notes.before[name], notes.after[name], fitted_block(notes.after[name].shape, self.block))
                for name in names[:_DRAWN]
            ]
        )

    def _match(self, model: Model, groups: Sequence[Group], ctx: Context, notes: _Notes) -> None:
        """Give every group that gains by it another order."""
        free = [group for group in groups if id(group) not in notes.stuck]
        layers = [layer for layer in weighted_layers(model) if untileable(layer) is None]
        operands, tiled = operands_of(layers, free, self.block)
        sizes = [group.size for group in free]
        work = self.starts * sum(size**2 for size in sizes)
        sweeps = max(1, min(self.iterations, _MOST_WORK // max(work, 1)))
        found = match_coupled(operands, sizes, self.rate, ctx.rng(), self.starts, sweeps, self.least_gain, ctx.progress)
        empty = [_empty_tiles(layer, operand.block) for layer, operand in zip(tiled, operands, strict=True)]
        orders, shares = found.orders, found.after
        _put(free, orders)
        now = [_empty_tiles(layer, operand.block) for layer, operand in zip(tiled, operands, strict=True)]
        if sum(now) < sum(empty):  # tiles that are zero already are worth more than small ones
            _put(free, [np.argsort(order) for order in orders])
            orders, shares, now = tuple(np.arange(len(order)) for order in orders), found.before, empty
        moved = zip(free, orders, strict=True)
        notes.moved |= {id(group) for group, order in moved if not np.array_equal(order, np.arange(group.size))}
        for layer, operand, before, after, left in zip(tiled, operands, found.before, shares, now, strict=True):
            rate = self.rate if operand.rate is None else operand.rate
            notes.results[id(layer.node)] = (
                f"salience in the {rate:.0%} cheapest {operand.block[0]}x{operand.block[1]} tiles "
                f"{before:.3f} -> {after:.3f}, {left} all-zero tiles"
            )

    def _decide(self, ctx: Context, layer: WeightedLayer, groups: Sequence[Group], notes: _Notes) -> None:
        """Log what became of a layer."""
        key = id(layer.node)
        done, seen = notes.done.get(key, []), notes.seen.get(key, [])
        if (tiled := notes.tiled.get(key)) is not None:
            ctx.act(layer, "tiled", "; ".join([tiled, *done, *seen]))
            return
        whole = [f"no tiles dropped: {notes.whole[key]}"] if key in notes.whole else []
        names = [group.name for group in groups if id(group) in notes.moved and _touches(group, layer)]
        if names:
            what = notes.results.get(key, "no tiles of its own")
            moves = f"moves with {' and '.join(names)}: {what}; order only, no time or bytes gained by it"
            ctx.act(layer, "permuted", "; ".join([*done, moves, *whole, *seen]))
            return
        reason = untileable(layer) or self._unmoved(layer, groups, notes)
        whole = [] if reason == notes.whole.get(key) else whole
        if done:
            ctx.act(layer, "trimmed", "; ".join([*done, reason, *whole, *seen]))
        else:
            ctx.skip(layer, "; ".join([reason, *whole, *seen]))

    def _unmoved(self, layer: WeightedLayer, groups: Sequence[Group], notes: _Notes) -> str:
        """Why no group moved a layer that could be tiled."""
        if (result := notes.results.get(id(layer.node))) is not None:
            return f"no other order of its channels gains over {self.least_gain:.1%}: {result}"
        reasons = [notes.stuck.get(id(group)) for group in groups if _touches(group, layer)]
        return "; ".join(dict.fromkeys(filter(None, reasons))) or "its inputs and outputs cannot be followed"


@dataclass(eq=False)
class _Notes:
    """What is to be said of layers, by the ids of their nodes.

    Attributes:
        done: to the layer, before its channels were permuted.
        seen: in it, without anything being done.
        results: of tile matching.
        moved: ids of the groups that were given another order.
        stuck: by the ids of groups, why they keep their orders whatever there is to gain.
        tiled: how layers lost tiles.
        whole: why layers lost none.
        before, after: saliences of layers, by name.
    """

    done: dict[int, list[str]] = field(default_factory=dict)
    seen: dict[int, list[str]] = field(default_factory=dict)
    results: dict[int, str] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    stuck: dict[int, str] = field(default_factory=dict)
    tiled: dict[int, str] = field(default_factory=dict)
    whole: dict[int, str] = field(default_factory=dict)
    before: dict[str, Array] = field(default_factory=dict)
    after: dict[str, Array] = field(default_factory=dict)


def _put(groups: Sequence[Group], orders: Sequence[Array]) -> None:
    for group, order in zip(groups, orders, strict=True):
        if not np.array_equal(order, np.arange(group.size)):
            select(group, order)


def _empty_tiles(layer: WeightedLayer, block: tuple[int, int]) -> int:
    return int(np.count_nonzero(tile_sums(salience(layer), block) == 0))


def _check_kind(option: str, path: str | None, kind: str) -> None:
    if path is not None and not path.lower().endswith(f".{kind.lower()}"):
        raise PassError(f"reorder: option {option}={path!r} names no {kind} file; let its name end in .{kind.lower()}")


def _told(plan: TilePlan, error: float) -> str:
    what = f"reads {plan.channels} of {plan.inputs} channels"
    if plan.panels > 1:
        what = f"{plan.panels} panels of outputs, each of which {what}"
    faster = "" if plan.ratio is None else f"; measured {plan.ratio:.2f} times as fast"
    return f"{what}{faster}; relative output error {error:.2g}"


def _stuck(groups: Sequence[Group]) -> dict[int, str]:
    """Why groups keep their orders: they are pinned, or large, and the smaller ones are work enough."""
    stuck, work = {}, 0
    for group in sorted(groups, key=lambda group: group.size):
        if group.pinned is not None:
            stuck[id(group)] = group.pinned
        elif group.size > _MOST_UNITS or work + group.size**2 > _MOST_WORK:
            stuck[id(group)] = f"its {group.size} channels are too many to be matched"
        else:
            work += group.size**2
    return stuck


def _touches(group: Group, layer: WeightedLayer) -> bool:
    return any(slot.node is layer.node and slot.index == layer.weight_index for slot in group.slots)


def _remove_idle(
    model: Model, groups: Sequence[Group], feeds: Mapping[str, Array], multiple: int, notes: _Notes
) -> None:
    """Remove channels that do nothing, or nothing else than others do, as far as the counts stay multiples."""
    ties = merge_tied(model, groups, feeds, multiple)
    for group, idle, tied in zip(groups, idle_units(model, groups, feeds), ties, strict=True):
        order = order_without(idle, multiple)
        if (removed := group.size - len(order)) > 0:
            select(group, order)
            kind = "idle or tied" if tied else "idle"
            for key in dict.fromkeys(id(slot.node) for slot in group.slots):
                notes.done.setdefault(key, []).append(f"lost {removed} {kind} channels of {group.name}")


def _split_diagonal(model: Model, groups: Sequence[Group], multiple: int, notes: _Notes) -> bool:
    """Turn block-diagonal convolutions into grouped ones; says whether there were any.

    A dependency group is ordered for one convolution at most.
    """
    taken: set[int] = set()
    for layer in weighted_layers(model):
        if untileable(layer) is not None or (blocks := equal_blocks(nonzero(layer), multiple)) is None:
            continue
        outputs, inputs = (_sole_mover(groups, layer, axis) for axis in (layer.out_axis, layer.in_axis))
        usable = layer.kind == "Conv" and outputs is not inputs and not {id(outputs), id(inputs)} & taken
        if outputs is None or inputs is None or not usable:
            notes.seen.setdefault(id(layer.node), []).append(
                f"its weight falls apart into {blocks.count} independent blocks, which cannot be used here"
            )
            continue
        select(outputs, blocks.outputs)
        select(inputs, blocks.inputs)
        taken |= {id(outputs), id(inputs)}
        make_grouped(layer, blocks.count)
        notes.done.setdefault(id(layer.node), []).append(f"split into {blocks.count} groups")
    return bool(taken)


def _sole_mover(groups: Sequence[Group], layer: WeightedLayer, axis: int) -> Group | None:
    """The group whose units are the channels along a whole axis of the weight, one each, and may move."""
    for group in groups:
        for slot in group.slots:
            if slot.node is layer.node and slot.index == layer.weight_index and slot.axis == axis:
                whole = np.array_equal(slot.positions, np.arange(layer.shape[axis])[:, None])
                return group if whole and group.pinned is None else None
    return None
