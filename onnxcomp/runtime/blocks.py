"""Removing whole residual branches, where the channels that could go instead are worth more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import noise, outputs
from onnxcomp.graph.branches import Branch, residual_branches, without
from onnxcomp.graph.importance import Removal
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import PROBE_MACS, Candidates, affordable
from onnxcomp.runtime.shares import Budget, Plan
from onnxcomp.runtime.statistics import Means, observe

__all__ = ["BlockRemoval"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Block:
    """A branch, the mean of what it computes, and the noise of the model's outputs with the mean in its place."""

    branch: Branch
    mean: Array
    loss: float

    def rate(self, plan: Plan) -> float:
        """Loss for what it saves of what is needed."""
        saved = sum(plan.prices.of_layer(layer) for layer in self.branch.layers)
        useful = min(saved, plan.needed)
        return self.loss / useful if useful > 0.0 else math.inf


class BlockRemoval:
    """Takes residual branches out of a model while that costs less than taking channels.

    Args:
        found: the channels of the model.
        data: calibration samples.
        progress: shows the branches.
        original: whose outputs count, where the model has lost anything before.

    Attributes:
        dropped: the branches that are gone.
    """

    def __init__(
        self, found: Candidates, data: Dataset, progress: Progress = silent, original: Model | None = None
    ) -> None:
        self.dropped: list[Branch] = []
        self._found = found
        model = found.model
        samples, held_out = affordable(model, found.shapes, data, PROBE_MACS, 256).split(0.5)
        probe = affordable(model, found.shapes, held_out, PROBE_MACS, 64)
        branches = residual_branches(model, found.shapes)
        means = [Means(branch.axis) for branch in branches]
        wanted: dict[str, list[Means]] = {}
        for branch, mean in zip(branches, means, strict=True):
            wanted.setdefault(branch.result.name, []).append(mean)
        observe(model, samples, wanted, progress)
        reference = list(outputs(original or model, probe)) if branches else []
        so_far = noise(reference, outputs(model, probe)) if branches and original is not None else 0.0
        self._blocks: list[_Block] = []
        for branch, mean in progress(list(zip(branches, means, strict=True)), "measuring branches", len(branches)):
            state = model.checkpoint()
            try:
                without(model, branch, mean.mean)
                loss = noise(reference, outputs(model, probe)) - so_far
            finally:
                state.restore()
            if math.isfinite(loss) and np.isfinite(mean.mean).all():
                self._blocks.append(_Block(branch, mean.mean, max(loss, 0.0)))

    def improve(self, budget: Budget, removals: Sequence[Removal], part: float) -> tuple[Candidates, Plan]:
        """A plan for the model without the branches that are worth less than they cost, which are taken out.

        Args:
            budget: to reach.
            removals: of the groups of the model as it was.
            part: as of ``Budget.plan``.

        Returns:
            the channels of the model as it is then, and the plan.
        """
        found, plan = self._found, budget.plan(self._found, removals, part)
        blocks = list(self._blocks)
        while blocks:
            block = min(blocks, key=lambda each: each.rate(plan))
            if block.rate(plan) >= plan.rate:
                break
            state = found.model.checkpoint()
            without(found.model, block.branch, block.mean)
            again = found.again(found.model)
            theirs = _carried(found, removals, again)
            other = budget.plan(again, theirs, part)
            if block.loss + other.loss >= plan.loss:
                state.restore()
                plan = budget.plan(found, removals, part)  # what the budget reports is this one
                break
            self.dropped.append(block.branch)
            found, removals, plan = again, theirs, other
            left = {id(node) for node in found.model.graph.nodes}
            blocks = [each for each in blocks if each is not block and _is_left(each.branch, left)]
        return found, plan


def _is_left(branch: Branch, nodes: set[int]) -> bool:
    return id(branch.add) in nodes and all(id(layer.node) in nodes for layer in branch.layers)


def _carried(before: Candidates, removals: Sequence[Removal], after: Candidates) -> list[Removal]:
    """The removals of groups that are still there; nothing may go from what was no such group before."""
    known = {(group.name, group.size): removal for group, removal in zip(before.groups, removals, strict=True)}
    return [
        known.get((group.name, group.size)) or Removal.impossible(most)
        for group, most in zip(after.groups, after.most, strict=True)
    ]
