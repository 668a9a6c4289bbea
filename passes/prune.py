"""The pass ``prune``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.graph.affine import input_columns, output_rows
from onnxcomp.graph.budget import GroupCost, macs
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.linalg.allocate import allocate
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.refit import Kept, refit
from onnxcomp.runtime.removal import Removal, measured_removals, norm_removals, readers
from onnxcomp.runtime.shapes import observed

__all__ = ["Prune"]

Array = np.ndarray[Any, Any]

DEFAULT_FLOPS = 0.25
LEAST_SHARE = 0.25  # of a group's channels that are kept whatever they cost
MAX_INPUTS = 4608  # of a layer: its covariance is a matrix of that size
MAX_STAGES = 12  # of the reconstruction, each of which runs the data once
MACS = 4e10  # that the calibration samples may take to run once
PROBE_MACS = 1e10


class Prune(Pass):
    """Remove whole channels, and let the layers that read them make up for it.

    Channels are removed from all layers that they depend on at once (see ``graph.groups``), so what comes out is a
    smaller model of plain operators that runs faster on any runtime. With calibration data:

    1. The loss of removing channels is the part of the outputs of the layers that read them which the channels left
       cannot give (Optimal Brain Surgeon for blocks, Hassibi and Stork 1993); how far it reaches the model's
       outputs is measured once for each group.
    2. Groups lose channels in steps of ``align``, wherever a step costs least for what it saves, until the budget is
       met. None falls below a quarter of its channels.
    3. Layer after layer, weights and biases are fitted by least squares to what the original layer gave (channel
       pruning, He et al. 2017, with the inputs that the pruned model really has).

    Without data the smallest weights go, and nothing makes up for them.
    """

    name: ClassVar[str] = "prune"
    stage: ClassVar[Stage] = Stage.PRUNE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    granularity: Literal["channel"] = Field("channel", description="what is removed")
    flops: float | None = Field(
        None, gt=0, lt=1, description="share of the floating-point operations to remove; 0.25 unless sparsity is given"
    )
    sparsity: float | None = Field(None, gt=0, lt=1, description="share of the parameters to remove")
    align: int | None = Field(
        None, ge=1, description="channel counts become multiples of this; by default what the target's vectors hold"
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
        shapes = observed(model, feeds)
        groups = dependency_groups(model, shapes)
        plan = _Plan.of(groups, self.align or ctx.target.channel_multiple)
        removals = self._removals(model, shapes, plan, ctx)
        steps = self._allocate(model, shapes, plan, removals)
        gone = [removal.order[: removed[step]] for removal, removed, step in zip(removals, plan.removed, steps, strict=True)]
        original = Model.from_proto(model.proto())
        before = {layer.name: layer.shape for layer in weighted_layers(model)}
        kept = _kept(model, plan.groups, gone)
        for group, units in zip(plan.groups, gone, strict=True):
            if len(units):
                select(group, np.setdiff1d(np.arange(group.size), units))
        errors: dict[str, float] = {}
        if ctx.data is not None and kept:
            samples = _take(model, shapes, ctx, MACS)
            errors = refit(model, original, samples, kept, MAX_STAGES, ctx.progress)
        _log(model, ctx, groups, plan, before, errors)
