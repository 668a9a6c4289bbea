"""equalize: rescale channels between layers so that 8-bit activations and weights lose less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.rescaling import NOT_FOLLOWED, ScaleUnits
from onnxcomp.graph.scaling import follow_scales
from onnxcomp.graph.scaling_rules import SCALING_RULES
from onnxcomp.linalg.equalization import Solution
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.calibration import spread
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.equalizing import find_scales
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target

__all__ = ["Equalize"]

Array = np.ndarray[Any, Any]

_WITHOUT_DATA = "equalize has no calibration data, and does nothing; give samples with --data"
# What the pass was seen to take, in runs of the model on one sample: of four networks, right to a factor of two.
_RUNS_PER_SAMPLE = 2
_UNROUNDED = "its channels reach nothing that is rounded to 8 bits"


class Equalize(Pass):
    """Rescale channels between layers so that less is lost when activations and weights are rounded to 8 bits.

    An activation is rounded in steps that its widest channel asks for, and narrow channels drown in them. A channel
    may be multiplied by a number where it is made and divided by it where it is read: the model computes what it did,
    and nothing more runs at inference. Scales pass through Relu, LeakyRelu and PRelu, pooling, Concat, Split and what
    only moves values; residual additions tie them, so that a whole group of layers gets one factor for each channel.
    They begin and end at convolutions, Gemm, MatMul, BatchNormalization, Mul by a constant for each channel, tables
    and LayerNormalization. They stop at Sigmoid, Softmax, Clip at other limits than zero (ReLU6), at outputs of the
    model, and at weights that are shared or quantized.

    The factors are those with the least expected error of the scheme that ``quant`` uses: one step for each
    activation tensor, wide enough for what its channels are expected to reach in 1000 samples like those given, and
    one step for each output of a weight. Channels that depend on each other are solved for together; they stay as
    they are where the expected error falls by less than ``least_gain``.

    It helps where channels differ much in width: a network for text detection gained 2.4 dB. On MobileNetV2, whose
    ReLU6 stop most scales, it gained 0.1 dB. With ``limits`` ReLU6 stops only channels that may reach 6; that gave 2 dB
    there, and 88 instead of 81 % of 500 images kept their class. Values beyond what samples let expect then changed
    the outputs, by 75 dB less than they are. Text recognition lost 1.2 dB instead, so look at the figures. Run it with
    ``quant``; alone it gains nothing.

    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction" (arXiv:1906.04721), and
    Xiao et al. 2022, "SmoothQuant" (arXiv:2211.10438), choose factors by the ranges of both sides instead.
    """

    name: ClassVar[str] = "equalize"
    stage: ClassVar[Stage] = Stage.EQUALIZE
    exact: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    least_gain: Annotated[
        float, Field(ge=0, description="dB of the expected rounding error that factors must save to be used")
    ] = 0.2
    limits: bool = Field(
        False,
        description="also rescale channels that stay below the limits of a Clip (ReLU6) with room for unseen samples; "
        "values beyond that room are then cut off earlier or later than before",
    )
    samples: Annotated[int, Field(ge=1, le=100_000, description="calibration samples to use")] = 128

    @property
    def keeps_outputs(self) -> bool:
        """See the base class."""
        return not self.limits

    def run(self, model: Model, ctx: Context) -> None:
        """Rescale the model in place; see the class."""
        layers = weighted_layers(model)
        if ctx.data is None:
            if layers:
                ctx.warn(_WITHOUT_DATA)
            for layer in layers:
                ctx.skip(layer, "without calibration data, nothing is known of the ranges of channels")
            return
        data = spread(ctx.data, self.samples)
        shapes = observed(model, data.sample())
        units = ScaleUnits(follow_scales(model, shapes, SCALING_RULES, self.limits))
        logs, notes = self._chosen(find_scales(model, layers, units, shapes, data, ctx.progress), units)
        scales = np.exp(logs)
        decisions = [_Decision(layer, units, scales, notes) for layer in layers]
        units.rescale(scales)
        for decision in decisions:
            decision.log(ctx)

    def _chosen(self, solutions: Sequence[Solution], units: ScaleUnits) -> tuple[Array, dict[int, str]]:
        """Logarithms of the scales of all units, and what is to be said of those that solutions were sought for."""
        logs = np.zeros(units.count)
        notes: dict[int, str] = {}
        for solution in solutions:
            gain = 10 * np.log10(solution.before / solution.after) if solution.after > 0 else 0.0
            if gain >= self.least_gain and np.any(solution.logs):
                logs += solution.logs
                note = f"expected rounding error of their group {-gain:+.1f} dB"
            else:
                note = f"no factors lower the expected rounding error by {self.least_gain:g} dB"
            notes.update(dict.fromkeys(solution.units.tolist(), note))
        return logs, notes

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        units = ScaleUnits(follow_scales(model, shapes, SCALING_RULES, self.limits))
        layers = weighted_layers(model)
        stuck = [_why_not(layer, units) for layer in layers if not _is_free(layer, units)]
        free = len(layers) - len(stuck)
        return f"channels around {free} of {len(layers)} layers could be rescaled{because(stuck)}"

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:
        """See the base class."""
        if dataset is None or not weighted_layers(model):
            return None
        return effort_of_runs(model, dataset, _RUNS_PER_SAMPLE * min(len(dataset), self.samples))


def _is_free(layer: WeightedLayer, units: ScaleUnits) -> bool:
    """Whether any channel of the layer may be rescaled."""
    return any(units.free[ids].any() for _, ids in units.factors_at(layer.node, layer.weight_index))


class _Decision:
    """What is to be said of a layer, found before the graph changes."""

    def __init__(self, layer: WeightedLayer, units: ScaleUnits, scales: Array, notes: Mapping[int, str]) -> None:
        self._layer = layer
        self._done: list[str] = []
        reasons: list[str] = []
        for factor, ids in units.factors_at(layer.node, layer.weight_index):
            changed = ids[scales[ids] != 1]
            if changed.size:
                side, values = "input" if factor.power < 0 else "output", scales[ids]
                what = f"{side} channels times {values.min():.2g} to {values.max():.2g}"
                self._done.append(f"{what}, {notes[int(changed[0])]}")
            elif units.free[ids].any():
                reasons.append(next((notes[unit] for unit in ids.reshape(-1).tolist() if unit in notes), _UNROUNDED))
        self._reason = "; ".join(dict.fromkeys(reasons)) or _why_not(layer, units)

    def log(self, ctx: Context) -> None:
        """Log it."""
        if self._done:
            ctx.act(self._layer, "equalized", "; ".join(self._done))
        else:
            ctx.skip(self._layer, self._reason)


def _why_not(layer: WeightedLayer, units: ScaleUnits) -> str:
    """Why the layer's channels keep their scales."""
    if layer.nested:
        return f"it lies {layer.place}"
    if layer.quantized:
        return "its weight is quantized"
    reasons = [
        units.reasons[int(unit)]
        for _, ids in units.factors_at(layer.node, layer.weight_index)
        for unit in np.unique(ids)[:4]
        if int(unit) in units.reasons
    ]
    told = [reason for reason in dict.fromkeys(reasons) if reason != NOT_FOLLOWED]
    return "; ".join(told) or units.refusal(layer.node) or NOT_FOLLOWED
