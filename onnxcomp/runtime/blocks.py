"""Removing whole residual branches, where the channels that could go instead are worth more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.errors import InputError
from onnxcomp.evaluate import noise, outputs
from onnxcomp.graph.branches import Branch, residual_branches, without
from onnxcomp.graph.importance import Removal
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import PROBE_MACS, Candidates, affordable
from onnxcomp.runtime.shares import Budget, Plan
from onnxcomp.runtime.statistics import Means, observe

__all__ = ["Block", "measured_blocks", "without_blocks"]

Array = np.ndarray[Any, Any]

MOST_LOSS = 0.1  # a branch without which there is more noise stays, even where a budget is missed


@dataclass(frozen=True)
class Block:
    """A residual branch that could go whole.

    Attributes:
        branch: it.
        mean: of what it computes, one value for each channel.
        loss: noise of the model's outputs over their signal with the mean in its place.
    """

    branch: Branch
    mean: Array
    loss: float

    def rate(self, plan: Plan) -> float:
        """Loss for what it saves of what the plan needs."""
        saved = sum(plan.prices.of_layer(layer) for layer in self.branch.layers)
        useful = min(saved, plan.needed)
        return self.loss / useful if useful > 0.0 else math.inf


def measured_blocks(
    found: Candidates, data: Dataset, progress: Progress = silent, original: Model | None = None
) -> list[Block]:
    """The residual branches that a model can do without, and what each costs.

    Args:
        found: the channels of the model.
        data: calibration samples.
        progress: shows the branches.
        original: whose outputs count, where the model has lost anything before.

    Raises:
        InputError: the model does not run on the data.
    """
    model = found.model
    branches = residual_branches(model, found.shapes)
    if not branches:
        return []
    samples, held_out = affordable(model, found.shapes, data, PROBE_MACS, 256).split(0.5)
    probe = affordable(model, found.shapes, held_out, PROBE_MACS, 64)
    means = [Means(branch.axis) for branch in branches]
    wanted: dict[str, list[Means]] = {}
    for branch, mean in zip(branches, means, strict=True):
        wanted.setdefault(branch.result.name, []).append(mean)
    observe(model, samples, wanted, progress)
    reference = list(outputs(original or model, probe))
    so_far = noise(reference, outputs(model, probe)) if original is not None else 0.0
    blocks = []
    for branch, mean in progress(list(zip(branches, means, strict=True)), "measuring branches", len(branches)):
        state = model.checkpoint()
        try:
            without(model, branch, mean.mean)
            loss = noise(reference, outputs(model, probe)) - so_far
        except InputError:  # shapes that other samples have show that it is no such branch
            continue
        finally:
            state.restore()
        if loss <= MOST_LOSS and np.isfinite(mean.mean).all():
            blocks.append(Block(branch, mean.mean, max(loss, 0.0)))
    return blocks


def without_blocks(
    found: Candidates, removals: Sequence[Removal], blocks: Sequence[Block], budget: Budget, part: float
) -> tuple[Candidates, Plan, list[Branch]]:
    """Take residual branches out of a model while that costs less than taking channels.

    Args:
        found: the channels of the model.
        removals: of its groups.
        blocks: that may go.
        budget: to reach.
        part: as of ``Budget.plan``.

    Returns:
        the channels of the model as it is then, a plan for it, and the branches that are gone.
    """
    plan, dropped = budget.plan(found, removals, part), list[Branch]()
    left = list(blocks)
    while left:
        block = min(left, key=lambda each: each.rate(plan))
        if block.rate(plan) >= plan.rate:
            break
        state = found.model.checkpoint()
        without(found.model, block.branch, block.mean)
        again = found.again(found.model)
        theirs = _carried(found, removals, again)
        other = budget.plan(again, theirs, part)
        if not other.better_than(plan, block.loss):
            state.restore()
            plan = budget.plan(found, removals, part)  # what the budget reports is this one
            break
        dropped.append(block.branch)
        found, removals, plan = again, theirs, other
        nodes = {id(node) for node in found.model.graph.nodes}
        left = [each for each in left if each is not block and _is_left(each.branch, nodes)]
    return found, plan, dropped


def _is_left(branch: Branch, nodes: set[int]) -> bool:
    return id(branch.add) in nodes and all(id(layer.node) in nodes for layer in branch.layers)


def _carried(before: Candidates, removals: Sequence[Removal], after: Candidates) -> list[Removal]:
    """The removals of groups that are still there; nothing may go from what was no such group before."""
    known = {(group.name, group.size): removal for group, removal in zip(before.groups, removals, strict=True)}
    return [
        known.get((group.name, group.size)) or Removal.impossible(most)
        for group, most in zip(after.groups, after.most, strict=True)
    ]
