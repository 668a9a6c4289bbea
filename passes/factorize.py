"""The pass ``factorize``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.graph.cost import cost
from onnxcomp.graph.factors import joined, unfactorizable
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.factor_losses import Unit, layer_units, measured_units
from onnxcomp.runtime.factor_plan import PAYS, FactorPlan
from onnxcomp.runtime.factor_times import FactorTimes
from onnxcomp.runtime.factorizing import factorize, factorize_by_weights
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.padding import without_padding
from onnxcomp.runtime.sensitivity import output_moments
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target

__all__ = ["Factorize"]

DEFAULT_ERROR = 0.01
_MACS, _PROBE_MACS, _GRADIENT_MACS = 1e11, 1e10, 3e10  # that samples may take to run once
_RUNS_PER_SAMPLE = 40  # of the model: a prefix of two models in each stage, and the probe of each layer
_UNOBSERVED = "what it reads cannot be observed on the calibration data, or is not finite, or is too wide"
_NO_DATA = (
    "factorize went by the weights alone (truncated SVD), which loses far more than with calibration data at the same "
    "size: give samples with --data"
)


class Factorize(Pass):
    """Replace weights by products of smaller ones, where that is measured to be faster.

    A matrix product becomes two of lower rank, and a convolution one of several chains of smaller ones: k x k then
    1 x 1, 1 x 1 then k x k, k x 1 then 1 x k (and the reverse), or 1 x 1, k x k, 1 x 1 (Tucker-2). Layers that read the
    same input, as the queries, keys and values of attention, share their first factor where that loses less. What comes
    out are plain operators; the last factor keeps the layer's name and its bias.

    1. For every form and rank (multiples of what the target prefers), the loss is what the layer's outputs change on
       the calibration samples, not what its weights do (activation-whitened low rank, as SVD-LLM); how far that
       reaches the model's outputs is measured for each layer.
    2. Each form is timed on the target, between neighbours, beside the layer as it is. Forms and ranks are
       chosen over all layers where a microsecond costs the model's outputs least, under one budget: ``flops``,
       ``speedup``, ``energy``, or (the default) ``error``.
    3. Layer after layer, the factors are fitted to give what the original gave, from the inputs that the layers
       before them now give; biases make up for the means. Whole layers behind them are fitted as well.

    A layer stays as it is where no product is measured to be 3 % faster, and so does the model.

    Without data, or with ``metric="weights"``, it is the plain singular value decomposition of the weights.

    Convolutions that are transposed, grouped or depthwise, weights that are shared, quantized or sparse, and layers
    inside the bodies of If, Loop and Scan and in model-local functions stay as they are.
    """

    name: ClassVar[str] = "factorize"
    stage: ClassVar[Stage] = Stage.FACTORIZE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    flops: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share to remove of the multiply-accumulates of the layers that may become products",
    )
    speedup: float | None = Field(
        None,
        gt=1,
        le=100,
        description="how many times as fast as the original the model is to be, measured on the target",
    )
    energy: float | None = Field(
        None, gt=0, lt=1, description="share of the variance of its outputs that each layer keeps"
    )
    error: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="what all products together may change in the model's outputs, over their variance, as far as can "
        "be foretold; 0.01 when nothing else is asked for",
    )
    metric: Literal["activations", "weights"] = Field(
        "activations", description="what products come close to: what layers give on the data, or their weights"
    )
    align: int | None = Field(
        None, ge=1, description="ranks are multiples of this; by default what the target prefers of channels"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Factorize:
        if sum(budget is not None for budget in (self.flops, self.speedup, self.energy, self.error)) > 1:
            raise ValueError("flops, speedup, energy and error exclude each other; give one of them")
        return self

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            InputError: the model does not run on the calibration data.
        """
        data = None if ctx.data is None or self.metric == "weights" else without_padding(model, ctx.data)
        feeds = ctx.data.sample() if ctx.data is not None else synthetic(model, ctx.seed)
        shapes = observed(model, feeds)
        every = weighted_layers(model)
        reasons = {layer.name: reason for layer in every if (reason := _obstacle(layer, shapes)) is not None}
        layers = [layer for layer in every if layer.name not in reasons]
        units = self._units(model, layers, shapes, data, ctx)
        times = FactorTimes(shapes, ctx.timings, ctx.target.threads or 1)
        macs = cost(model, shapes).per_layer
        plan = FactorPlan(units, times, float(sum(macs[layer.name].macs for layer in layers)))
        missed = self._choose(plan, model, feeds, ctx)
        errors = self._write(model, plan, data, feeds, ctx) if plan.choices else {}
        reasons |= plan.reasons
        _log(ctx, every, plan, errors, reasons, "weight" if data is None else "output")
        if data is None and errors:
            ctx.warn(_NO_DATA)
        if missed:
            ctx.warn(missed)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:
        """See the base class."""
        layers = weighted_layers(model)
        reasons = {layer.name: reason for layer in layers if (reason := _obstacle(layer, shapes)) is not None}
        for unit in layer_units([x for x in layers if x.name not in reasons], shapes, self._align(target)):
            if not unit.options:
                reasons[unit.name] = "no product of aligned ranks has fewer operations"
        return f"{len(layers) - len(reasons)} of {len(layers)} layers could become products{because(reasons.values())}"

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:
        """See the base class."""
        if dataset is None or self.metric == "weights":
            return None
        return effort_of_runs(model, dataset, _RUNS_PER_SAMPLE * min(dataset.units, 4096))

    def _align(self, target: Target) -> int:
        return self.align or target.channel_multiple

    def _units(
        self,
        model: Model,
        layers: Sequence[WeightedLayer],
        shapes: Mapping[str, tuple[int, ...]],
        data: Dataset | None,
        ctx: Context,
    ) -> list[Unit]:
        align = self._align(ctx.target)
        if data is None:
            return layer_units(layers, shapes, align)
        samples = affordable(model, shapes, data, _MACS)
        probe = affordable(model, shapes, data, _PROBE_MACS, 64)
        # Gradients are of one shape: with padding, at which they are zero.
        gradient = affordable(model, shapes, ctx.require_data(), _GRADIENT_MACS, 256)
        moments = {} if self.energy else output_moments(model, layers, gradient, ctx.rng(), ctx.progress)
        groups = joined(layers)
        return measured_units(model, layers, groups, shapes, align, samples, probe, moments, ctx.progress)

    def _choose(self, plan: FactorPlan, model: Model, feeds: Feeds, ctx: Context) -> str:
        """Fill the plan; returns what it does not reach, as a sentence."""
        if self.speedup is not None:
            first = model.copy() if ctx.original is None else ctx.original
            reached = plan.by_speed(self.speedup, model, first, feeds, ctx.timings, ctx.target.threads or 1)
            slower = f"factorize made the model {reached:.2f}x as fast, not {self.speedup:g}x"
            return slower if reached < self.speedup else ""
        if self.flops is not None:
            plan.by_flops(self.flops)
            reached = plan.gone()
            return "" if reached >= self.flops - 1e-9 else _fell_short(reached, self.flops)
        if self.energy is not None:
            plan.by_energy(self.energy)
        else:
            plan.by_error(self.error or DEFAULT_ERROR)
        return ""

    def _write(
        self, model: Model, plan: FactorPlan, data: Dataset | None, feeds: Feeds, ctx: Context
    ) -> dict[str, float]:
        """Write the products, unless the model is no faster with them; returns the errors of layers by name."""
        before, state = model.copy(), model.checkpoint()
        if data is None:
            errors = factorize_by_weights(model, plan.choices)
        else:
            samples = affordable(model, observed(model, feeds), data, _MACS)
            errors = factorize(model, plan.choices, samples, ctx.progress)
        timed = ctx.timings.compare("layers factorized", before, model, feeds, ctx.target.threads or 1)
        if timed is None or timed.ratio >= PAYS:
            return errors
        state.restore()
        slow = f"with all products that pay on their own, the model would run {timed.ratio:.2f} times as fast"
        plan.reasons |= {layer.name: slow for choice in plan.choices for layer in choice.unit.layers}
        plan.choices.clear()
        return {}


def _log(
    ctx: Context,
    layers: Sequence[WeightedLayer],
    plan: FactorPlan,
    errors: Mapping[str, float],
    reasons: Mapping[str, str],
    kind: str,
) -> None:
    """Decide about every weighted layer; errors that are NaN are of layers that stayed as they were."""
    chosen = {layer.name: choice for choice in plan.choices for layer in choice.unit.layers}
    for layer in layers:
        error = errors.get(layer.name, math.nan)
        if math.isnan(error):
            ctx.skip(layer, reasons.get(layer.name, _UNOBSERVED))
        elif layer.name in chosen:
            ctx.act(layer, "factorized", f"{chosen[layer.name].text}; relative {kind} error {error:.2g}")
        else:
            ctx.act(layer, "adjusted", f"to products before it; relative output error {error:.2g}")


def _fell_short(reached: float, wanted: float) -> str:
    return (
        f"factorize removed {reached:.1%} of the multiply-accumulates of the layers that may become products, not the "
        f"{wanted:.1%} asked for: other products are not faster (the report says why for each layer)"
    )


def _obstacle(layer: WeightedLayer, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Why a layer stays as it is whatever is asked for, or None."""
    if (reason := unfactorizable(layer)) is not None:
        return reason
    node = layer.node
    if node.inputs[0].name not in shapes or node.outputs[0].name not in shapes:
        return "the shapes of what it reads and gives are not known"
    if not can_be_observed(layer):
        return _UNOBSERVED
    return None
