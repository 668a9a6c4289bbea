"""quant: 8-bit weights and activations, in the form that ONNX Runtime runs on integer kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.graph.bias import shift_added_bias
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.int8_division import Division, Mode, divide, is_storable
from onnxcomp.graph.int8_forms import FormWriter
from onnxcomp.graph.integer_plan import make_plans, unsuitable
from onnxcomp.graph.integer_preparation import give_up, prepare
from onnxcomp.graph.integer_writer import Written
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.graph.rounding import RoundedLayer, round_to_nearest
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.calibration import Calibration, calibrate, spread
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.integer_search import IntegerSearch, RangeChoice, integer_kernels
from onnxcomp.runtime.smooth import smooth
from onnxcomp.runtime.target import Target
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Quant"]

OPSET = 13  # DequantizeLinear with a scale for each channel
# Integer kernels that make the model this much slower are not worth it.
_LEAST_SPEED = 0.95
_WITHOUT_DATA = (
    "quant has no calibration data: convolutions stay in float and MatMuls find the range of their activations in "
    "every run; give samples with --data for integer kernels, measured ranges and corrected biases"
)
# What the pass was seen to take, in runs of the model on one sample: of five networks, right to a factor of two.
_RUNS_PER_SAMPLE = 8
_RUNS_FOR_RANGES = 2000


class Quant(Pass):
    """Quantize weights to 8 bits, and activations where ONNX Runtime then runs integer kernels.

    Each weighted layer gets one of these forms:

    - **static** (needs calibration data): QuantizeLinear and DequantizeLinear around Conv, Gemm and MatMul,
      so that ONNX Runtime fuses QLinearConv, QGemm or MatMulIntegerToFloat. Weights: int8, symmetric, one
      scale for each output channel. Activations: uint8, one scale for each tensor. Biases: int32.
    - **dynamic**: MatMul and Gemm as DynamicQuantizeLinear and MatMulInteger; the range of the activation is
      found in every run. With data, wide channels of the activation are divided or kept apart where that pays.
    - **table**: an embedding (Gather of rows) as int8 rows that are dequantized behind the Gather.
    - **stored**: a layer without an integer kernel keeps an int8 weight that ONNX Runtime restores when it
      loads the model: a quarter of the file, the speed of float.

    Layers inside the bodies of If, Loop and Scan get these forms too; the values there are observed like all
    others. A layer in a branch that no calibration sample takes is stored. So are the weights of model-local
    functions, and once for all its readers a weight that several layers share.

    Layers that are quantized already stay as they are, whoever quantized them and in whatever form. The others
    of such a model are quantized, on the grids that activations have already.

    What happens besides:

    1. The optimized graph is inspected. A layer for which no integer kernel appears is stored.
    2. Layers go back to float, with 8-bit weights, while the SQNR of the outputs on calibration samples is
       below ``sqnr``, where that gains much for little work; and whatever the work until it is 6 dB.
    3. Where the target is this machine and the model with integer kernels is measured to be slower than
       before, its layers are stored instead: many small or depthwise convolutions spend more on conversions
       than they save.
    4. Where the target's kernels add products in 16 bits (x86 without VNNI), an output channel whose weights
       could overflow them gets as many levels as are safe, 64 to 127 on each side of zero.
    5. The mean error that rounded weights make is taken out of the biases.
    6. A model below operator set 13 is raised to it. Where one of its operators changed in a way that no rule
       covers, ``auto`` stores all layers, and the other modes fail.

    A layer named in ``keep`` that stands alone between quantized ones is still fed and read in 8 bits, and
    ONNX Runtime (seen with 1.32) may round its weights when it loads the model, with one scale for all of
    them. So it is best to keep layers that follow each other.

    Scales are laid out as in Krishnamoorthi 2018 (arXiv:1806.08342); ranges are chosen as
    ``onnxcomp.linalg.ranges`` says, wide channels are treated as ``onnxcomp.linalg.smoothing`` says; biases
    are corrected as in Nagel et al. 2019 (arXiv:1906.04721).
    """

    name: ClassVar[str] = "quant"
    stage: ClassVar[Stage] = Stage.QUANT
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    mode: Mode = Field(
        "auto",
        description="auto: static, but dynamic for MatMuls where these hold most weights, and without data; "
        "weights: store every layer, for the file alone",
    )
    ranges: RangeChoice = Field(
        "auto", description="how activation ranges are chosen; auto: by the error of the outputs, for each tensor"
    )
    sqnr: Annotated[
        float, Field(ge=0, description="dB of the outputs below which layers return to float where that costs little")
    ] = 20.0
    samples: Annotated[int, Field(ge=1, le=100_000, description="calibration samples to use")] = 128
    keep: tuple[str, ...] = Field((), description="names of layers to leave in float")

    def run(self, model: Model, ctx: Context) -> None:
        layers = weighted_layers(model)
        self._check_names(layers)
        if self.mode == "static":
            ctx.require_data()
        if ctx.data is None and self.mode != "weights" and layers:
            ctx.warn(_WITHOUT_DATA)
        work = _Quantization(self, model, ctx, layers)
        division = divide(model.graph, layers, self.mode, self.keep, calibrated=work.data is not None)
        for layer, reason in division.left:
            ctx.skip(layer, reason)
        if division.empty:
            return
        state, before = model.checkpoint(), model.skeleton().size
        if division.static or division.dynamic or division.tables:
            self._raise_opset(model, ctx, division)
        work.write(division)
        if all(decision.action == "skipped" for decision in ctx.decisions):
            state.restore()
        elif model.skeleton().size >= before:
            raise PassError("quant would enlarge this model: its weights are smaller than the nodes it adds")

    def _raise_opset(self, model: Model, ctx: Context, division: Division) -> None:
        """Give the model the operators of all forms; where it cannot have them, its layers are stored."""
        state = model.checkpoint()
        try:
            upgrade_opset(model, OPSET)
        except PassError as error:
            if self.mode != "auto":
                raise
            state.restore()
            layers = [*division.static, *division.dynamic, *division.tables]
            for layer in division.store_instead(model.graph, layers, str(error)):
                ctx.skip(layer, str(error))
            return
        division.static = prepare(model, division.static)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers = weighted_layers(model)
        reasons = [reason for layer in layers if (reason := unsuitable(layer))]
        return f"{len(layers) - len(reasons)} of {len(layers)} layers could run on integer kernels{because(reasons)}"

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:
        """See the base class."""
        layers = weighted_layers(model)
        division = divide(model.graph, layers, self.mode, self.keep, dataset is not None)
        if dataset is None or not (division.static or division.dynamic):
            return None
        runs = _RUNS_PER_SAMPLE * min(len(dataset), self.samples)
        searches = bool(division.static) and self.ranges == "auto"
        return effort_of_runs(model, dataset, runs + searches * _RUNS_FOR_RANGES)

    def _check_names(self, layers: list[WeightedLayer]) -> None:
        known = {layer.name for layer in layers}
        for name in self.keep:
            if name not in known:
                raise PassError(f"quant: option keep names {name!r}, which is no weighted layer of this model")


class _Quantization:
    """One run of the pass."""

    def __init__(self, options: Quant, model: Model, ctx: Context, layers: list[WeightedLayer]) -> None:
        self.options = options
        self.model = model
        self.ctx = ctx
        self.layers = layers
        self.careful = ctx.target.int8_saturates
        self.calibration = Calibration()
        self.rounded: dict[str, RoundedLayer] = {}
        self.smoothed: dict[str, str] = {}
        self.data: Dataset | None = None if ctx.data is None else spread(ctx.data, options.samples)

    def write(self, division: Division) -> None:
        """Give each layer its form, and log it."""
        if self.data is not None:
            self.smoothed = smooth(self.model, division.dynamic, self.data, self.ctx.progress)
            self.calibration = self._calibrate(division)
            self._leave_unseen(division)
        self.rounded = round_to_nearest(division.static, self.calibration.means, self.careful)
        writer = FormWriter(self.model.graph)
        dynamic = {layer.name: self._write_dynamic(writer, layer) for layer in division.dynamic}
        for layer in division.tables:
            writer.table(layer)
            self.ctx.act(layer, "quantized", "a table of 8-bit rows, dequantized where they are picked")
        self._write_stored(writer, division.stored)
        writer.finish()
        if division.static and not self._write_static(division.static):
            reason = "the model was measured to be slower with integer kernels on this machine"
            self._store_instead(give_up(self.model, division.static), reason)
        kernels = integer_kernels(self.model, dynamic)
        for layer in division.dynamic:
            reason = f"8-bit weights, activations quantized in every run; integer kernel {kernels[layer.name]}"
            if layer.name in self.smoothed:
                reason += f"; {self.smoothed[layer.name]}"
            self.ctx.act(layer, "quantized", reason + _limited(dynamic[layer.name]))

    def _calibrate(self, division: Division) -> Calibration:
        plans = make_plans(self.model.graph, division.static)
        channels = [
            (layer.node.inputs[0], 1 if layer.kind == "Conv" else -1) for layer in (*division.static, *division.dynamic)
        ]
        assert self.data is not None
        tensors = [tensor for plan in plans for tensor in plan.tensors if not plan.is_known(tensor)]
        limits = {key: pair for plan in plans for key, pair in plan.limits.items()}
        return calibrate(self.model, self.data, tensors, channels, self.ctx.progress, limits)

    def _leave_unseen(self, division: Division) -> None:
        """Layers of bodies without a range: their branch was never taken, or what is in it cannot be shown."""
        unseen = {
            site.layer.name
            for plan in make_plans(self.model.graph, division.static)
            for site in plan.sites
            if not all(self.calibration.seen(root) for root in plan.roots_around(site))
        }
        reason = "no calibration sample shows the values in its body"
        layers = [layer for layer in division.static if layer.name in unseen]
        for layer in division.store_instead(self.model.graph, layers, reason):
            self.ctx.skip(layer, reason)

    # -- forms without Q/DQ pairs --------------------------------------------------------------------------

    def _write_dynamic(self, writer: FormWriter, layer: WeightedLayer) -> Written:
        rounded = round_to_nearest([layer], self.calibration.means, self.careful)[layer.name]
        weights, shift = rounded.weights, rounded.shift
        bias = None
        if layer.kind == "MatMul":
            shift_added_bias(layer, shift, output_ids(self.model.graph))
        elif layer.bias is not None:
            bias = np.asarray(value_of(layer.bias), np.float64).reshape(-1) + shift
        elif np.any(shift):
            bias = shift
        return Written(writer.dynamic(layer, weights, bias), len(shift), weights.limited)

    def _write_stored(self, writer: FormWriter, stored: list[tuple[WeightedLayer, str]]) -> None:
        for layer, reason in stored:
            if is_constant(layer.node.inputs[layer.weight_index]):  # not yet done
                writer.stored(layer)
            self.ctx.act(layer, "stored", f"8-bit weight that is restored at load, runs in float: {reason}")

    # -- static form ---------------------------------------------------------------------------------------

    def _write_static(self, layers: list[WeightedLayer]) -> bool:
        """Find the layers and the ranges that serve, leave the graph in that state, and log it.

        Returns:
            False, with the graph as it was, when that was measured to be slower.
        """
        assert self.data is not None
        before = self.model.skeleton()
        search = IntegerSearch(self.model, self.data, self.calibration, self.rounded, self.ctx.progress)
        fused = search.fused(layers)
        how = search.choose_grids(fused, self.options.ranges) if fused else ""
        chosen, reasons = search.relieve(fused, self.options.sqnr)
        chosen, more = search.protect(chosen)
        written = search.build(chosen)
        if chosen and self._is_slower(before):
            search.restore()
            return False
        kernels = integer_kernels(self.model, written)
        for layer in chosen:
            reason = f"8-bit weights and activations ({how}); integer kernel {kernels[layer.name]}"
            self.ctx.act(layer, "quantized", reason + _limited(written[layer.name]))
        reasons.update(more)
        names = {layer.name for layer in chosen}
        for layer in give_up(self.model, [layer for layer in layers if layer.name not in names]):
            reason = reasons.get(layer.name, "ONNX Runtime does not fuse an integer kernel here")
            self._store_instead([layer], reason)
        return True

    def _is_slower(self, before: Skeleton) -> bool:
        """Whether the model now takes clearly longer than before, where that can be measured."""
        target = self.ctx.target
        if not target.is_host or self.data is None:
            return False
        after = self.model.skeleton()
        what = "quant: integer kernels against what was there before"
        measured = self.ctx.timings.compare(what, before, after, self.data.sample(), target.threads)
        return measured is not None and measured.ratio < _LEAST_SPEED

    def _store_instead(self, layers: list[WeightedLayer], reason: str) -> None:
        """Keep 8-bit weights for layers that have no integer kernels, or none that pay."""
        writer = FormWriter(self.model.graph)
        for layer in layers:
            if is_storable(self.model.graph, layer):
                self._write_stored(writer, [(layer, reason)])
            else:
                self.ctx.skip(layer, reason)
        writer.finish()


def _limited(written: Written) -> str:
    if not written.limited:
        return ""
    return f"; {written.limited} of {written.channels} channels have fewer levels, so that sums cannot saturate"
