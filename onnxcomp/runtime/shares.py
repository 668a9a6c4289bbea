"""How far channels are removed: until a share of some cost is gone, or until the model is so much faster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from onnxcomp.graph.budget import GroupCost, Prices, operations, parameters
from onnxcomp.graph.groups import select
from onnxcomp.graph.importance import Removal
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.linalg.allocate import allocate, marginal
from onnxcomp.linalg.reconstruct import NEGLIGIBLE
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import Candidates
from onnxcomp.runtime.layer_times import layer_times
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.timings import TimingTable

__all__ = ["Budget", "Plan", "ShareBudget", "SpeedBudget", "units_gone"]

Array = np.ndarray[Any, Any]

TRIALS = 7  # of a speed: each halves the range of shares that it is searched in
NEARLY = 1e-9  # of what is wanted counts as all of it
SECONDS = 1.0  # of timed runs of a trial


@dataclass(frozen=True)
class Plan:
    """What is to go from a model now.

    Attributes:
        gone: the units of each group, ascending.
        loss: of all that together.
        rate: the most that any step of it loses for what it saves.
        needed: how much it had to save.
        missed: how far it stays behind, in parts of what is wanted; 0 where it does not.
        prices: in which that is counted.
    """

    gone: list[Array]
    loss: float
    rate: float
    needed: float
    missed: float
    prices: Prices

    def better_than(self, other: Plan, extra: float) -> bool:
        """Whether it comes nearer to what is wanted than the other one, or as near at less loss.

        Args:
            other: for the model as it was.
            extra: loss of what this one's model has lost besides.
        """
        if self.missed != other.missed:
            return self.missed < other.missed
        return self.loss + extra < other.loss


class Budget(Protocol):
    """What removal is to reach."""

    def plan(self, found: Candidates, removals: Sequence[Removal], part: float) -> Plan:
        """What to remove now at the least loss.

        Args:
            found: the channels of the model as it is now.
            removals: of its groups.
            part: of the whole way that is to be behind then, 0 to 1.
        """

    def shortfall(self) -> str:
        """What the last plan did not reach, as a sentence; empty where it reached all."""


@dataclass
class ShareBudget:
    """Remove a share of the operations or of the parameters.

    Attributes:
        unit: which.
        share: of those of the first model.
    """

    unit: Literal["flops", "parameters"]
    share: float
    _whole: float = 0.0
    _reached: float = 1.0

    def plan(self, found: Candidates, removals: Sequence[Removal], part: float) -> Plan:
        """See ``Budget``."""
        prices = (operations if self.unit == "flops" else parameters)(found.model, found.shapes)
        bill = GroupCost(prices, found.groups, found.counts)
        self._whole = self._whole or prices.total
        losses, limit = _losses(found, removals), (1.0 - self.share) ** part * self._whole
        steps = allocate(losses, bill, limit)
        self._reached = 1.0 - bill.total(steps) / self._whole if self._whole else 0.0
        missed = max(0.0, bill.total(steps) - limit) / self._whole if self._whole else 0.0
        return _plan(found, removals, bill, steps, prices, needed=prices.total - limit, missed=missed)

    def shortfall(self) -> str:
        """See ``Budget``."""
        if self._reached >= self.share - 1e-9:
            return ""
        unit = "multiply-accumulates" if self.unit == "flops" else "parameters"
        return (
            f"prune removed {self._reached:.1%} of the {unit}, not the {self.share:.1%} asked for: "
            "no more channels may go (the report says why for each layer)"
        )


@dataclass
class SpeedBudget:
    """Remove what costs least for the time it takes, until the model is so much faster than the original.

    The time of a layer is measured on its own; how much has to go is found by timing pruned models.

    Attributes:
        speedup: time of the original over that of the result.
        first: the original model.
        feeds: one sample to time on.
        timings: where times are kept, or come from; without them the speed is estimated from operations.
        threads: intra-op threads.
        progress: shows the layers that are timed.
    """

    speedup: float
    first: Model
    feeds: Feeds
    timings: TimingTable
    threads: int = 1
    progress: Progress = silent
    _reached: float = field(default=1.0, init=False)
    _whole: float = field(default=0.0, init=False)

    def plan(self, found: Candidates, removals: Sequence[Removal], part: float) -> Plan:
        """See ``Budget``."""
        wanted = self.speedup**part
        prices = layer_times(found.model, found.shapes, self.timings, self.threads, self.progress)
        prices = prices or operations(found.model, found.shapes)
        self._whole = self._whole or prices.total
        bill = GroupCost(prices, found.groups, found.counts)
        losses, lean = _losses(found, removals), _without_negligible(found.model)
        low, high = 0.0, 1.0  # the share of the time that has to go
        best: tuple[float, list[int]] | None = None
        share = min(0.9, 1.0 - 1.0 / wanted)
        for _ in range(TRIALS):
            steps = allocate(losses, bill, (1.0 - share) * prices.total)
            speed = self._speed(lean, found, removals, steps, bill)
            if speed >= wanted:
                best, high = (speed, steps), share
            else:
                low = share
            share = (low + high) / 2
        if best is None:
            steps = allocate(losses, bill, 0.0)
            best = self._speed(lean, found, removals, steps, bill), steps
        self._reached = best[0]
        missed = max(0.0, 1.0 - best[0] / wanted)
        needed = prices.total - bill.total(best[1])
        if missed > NEARLY:
            needed = max(needed, prices.total - self._whole / wanted)
        return _plan(found, removals, bill, best[1], prices, needed, missed)

    def _speed(
        self, lean: Model, found: Candidates, removals: Sequence[Removal], steps: Sequence[int], bill: GroupCost
    ) -> float:
        """Of a model after these steps, against the original."""
        trial = lean.copy()
        again = found.again(trial)
        for group, units in zip(again.groups, units_gone(found, removals, steps), strict=True):
            if len(units):
                select(group, np.setdiff1d(np.arange(group.size), units))
        timed = self.timings.compare("channels removed", self.first, trial, self.feeds, self.threads, SECONDS)
        return timed.ratio if timed is not None else self._whole / max(bill.total(steps), 1e-12)

    def shortfall(self) -> str:
        """See ``Budget``."""
        if self._reached >= self.speedup:
            return ""
        return (
            f"prune made the model {self._reached:.2f}x as fast, not {self.speedup:g}x: no more channels may go "
            "(the report says why for each layer)"
        )


def _without_negligible(model: Model) -> Model:
    """A copy as fitting will leave it: to multiply with subnormal numbers can take longer than all the rest."""
    lean = model.copy()
    for layer in weighted_layers(lean):
        if layer.quantized or layer.shared:
            continue
        array = layer.array()
        tiny = (array != 0) & (np.abs(array) < NEGLIGIBLE)
        if tiny.any():
            layer.set_array(np.where(tiny, 0, array))
    return lean


def _plan(
    found: Candidates,
    removals: Sequence[Removal],
    bill: GroupCost,
    steps: Sequence[int],
    prices: Prices,
    needed: float,
    missed: float,
) -> Plan:
    losses = _losses(found, removals)
    loss = sum(float(curve[step]) for curve, step in zip(losses, steps, strict=True))
    missed = missed if missed > NEARLY else 0.0
    rate = math.inf if missed else marginal(losses, bill, steps)
    return Plan(units_gone(found, removals, steps), loss, rate, needed, missed, prices)


def units_gone(found: Candidates, removals: Sequence[Removal], steps: Sequence[int]) -> list[Array]:
    """The units of each group that so many steps remove, ascending."""
    return [
        np.sort(removal.order[: counts[step]])
        for removal, counts, step in zip(removals, found.counts, steps, strict=True)
    ]


def _losses(found: Candidates, removals: Sequence[Removal]) -> list[Array]:
    return [removal.losses[counts] for removal, counts in zip(removals, found.counts, strict=True)]
