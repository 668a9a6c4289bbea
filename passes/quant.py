"""quant: weights of 8, 4 or 2 bits and activations of 8, in the form that ONNX Runtime runs on integer kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import shift_added_bias, takes_constants
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.int8_division import Division, Mode, divide, is_storable
from onnxcomp.graph.int8_forms import FormWriter
from onnxcomp.graph.integer_plan import make_plans, unsuitable
from onnxcomp.graph.integer_preparation import give_up, prepare
from onnxcomp.graph.integer_writer import Written
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.calibration import Calibration, calibrate, spread
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.integer_search import IntegerSearch, RangeChoice, integer_kernels
from onnxcomp.runtime.smooth import smooth
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.weight_plan import Bits, RoundingChoice, WeightPlan
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
_LOSS = 0.005  # of the outputs' variance, in 4 bits


class Quant(Pass):
    """Quantize weights to 8 bits (or 4, or 2), and activations where ONNX Runtime then runs integer kernels.

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
       below ``sqnr``, where that gains much for little work: one by one, or all around one activation. And
       whatever the work until it is 6 dB.
    3. Where the target is this machine and the model with integer kernels is measured to be slower than
       before, its layers are stored instead: many small or depthwise convolutions spend more on conversions
       than they save.
    4. Where the target's kernels add products in 16 bits (x86 without VNNI), an output channel whose weights
       could overflow them gets as many levels as are safe, 64 to 127 on each side of zero.
    5. The mean error that rounded weights make is taken out of the biases.
    6. A model below operator set 13 is raised to it. Where one of its operators changed in a way that no rule
       covers, or cannot stand beside integer kernels, ``auto`` stores all layers, and the other modes fail.

    With ``bits=4``, weights are codes of 4 bits times a factor for each ``block`` of inputs and a scale for each
    output channel. ONNX Runtime restores them when it loads the model, for the same kernels: an eighth of the
    file, the speed of 8 bits or float. Layers whose share of ``loss`` does not suffice get 8 bits; tables keep
    8. With calibration data the codes are those that change the outputs least (GPTQ), each layer making up for
    those before it. ``bits=2`` does the same with codes of 2 bits, without a limit for what layers lose unless ``loss``
    sets one: ``recover`` wins back most of it. With ``bits=16`` weights are stored in float16 where it holds them;
    nothing else changes.

    In 8 bits and with calibration data, layers of up to 64 inputs are rounded by GPTQ too, where held-out samples
    confirm a gain: depthwise and first convolutions, whose few rounding errors do not average out.

    A layer named in ``keep`` that stands alone between quantized ones is still fed and read in 8 bits, and
    ONNX Runtime (seen with 1.32) may round its weights when it loads the model, with one scale for all of
    them. So it is best to keep layers that follow each other.

    Scales are laid out as in Krishnamoorthi 2018 (arXiv:1806.08342); ranges are chosen as
    ``onnxcomp.linalg.ranges`` says, wide channels are treated as ``onnxcomp.linalg.smoothing`` says; biases
    are corrected as in Nagel et al. 2019 (arXiv:1906.04721); GPTQ is that of Frantar et al. 2023
    (arXiv:2210.17323), and 4 bits beneath 8 are laid out as in Lin et al. 2024 (arXiv:2405.04532).
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
        float,
        Field(ge=0, description="dB of the outputs below which layers return to float for little time; 0: only speed"),
    ] = 22.0
    bits: Bits = Field(
        8,
        description="of a weight: 8; 4, where the layer bears it; 2, before recover; "
        "16: floating-point, stored for the file alone",
    )
    rounding: RoundingChoice = Field(
        "auto",
        description="of weights: to the nearest level, or by GPTQ for the outputs (needs data); "
        "auto: by GPTQ beneath 8 bits, and in 8 bits where an output has few inputs",
    )
    loss: Annotated[
        float | None,
        Field(
            ge=0,
            description="part of the outputs' variance that fewer bits may cost; layers over their share get 8; "
            "by default 0.005 in 4 bits, and no limit in 2",
        ),
    ] = None
    block: Annotated[
        int, Field(ge=0, le=1024, description="neighbouring weights with a factor of their own beneath 8 bits; 0: none")
    ] = 32
    samples: Annotated[int, Field(ge=1, le=100_000, description="calibration samples to use")] = 128
    keep: tuple[str, ...] = Field((), description="names of layers to leave in float")

    @model_validator(mode="after")
    def _agree(self) -> Quant:
        if self.bits == 16 and (self.mode in ("static", "dynamic") or self.rounding == "gptq"):
            raise ValueError("bits=16 stores float16 for the file alone; leave mode and rounding out")
        return self

    def run(self, model: Model, ctx: Context) -> None:
        layers = weighted_layers(model)
        if unknown := set(self.keep).difference(layer.name for layer in layers):
            raise PassError(f"quant: option keep names {min(unknown)!r}, which is no weighted layer of this model")
        if self.mode == "static" or self.rounding == "gptq":
            ctx.require_data()
        if ctx.data is None and self.mode != "weights" and self.bits != 16 and layers:
            ctx.warn(_WITHOUT_DATA)
        work = _Quantization(self, model, ctx, layers)
        division = divide(model.graph, layers, self.mode, self.keep, work.data is not None, halves=self.bits == 16)
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
        elif model.skeleton().size >= before and any(layer.quantized for layer in layers):
            state.restore()  # the others are small
            ctx.decisions.clear()
            for layer in layers:
                ctx.skip(layer, "the weights that are not quantized yet are smaller than the nodes that would be added")
        elif model.skeleton().size >= before:
            raise PassError("quant would enlarge this model: its weights are smaller than the nodes it adds")

    def _raise_opset(self, model: Model, ctx: Context, division: Division) -> None:
        """Give the model the operators of all forms; where it cannot have them, its layers are stored."""
        state = model.checkpoint()
        try:
            upgrade_opset(model, OPSET)
            division.static = prepare(model, division.static)
        except PassError as error:
            if self.mode != "auto":
                raise
            state.restore()
            layers = [*division.static, *division.dynamic, *division.tables]
            for layer in division.store_instead(model.graph, layers, str(error)):
                ctx.skip(layer, str(error))

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers = weighted_layers(model)
        reasons = [reason for layer in layers if (reason := unsuitable(layer))]
        return f"{len(layers) - len(reasons)} of {len(layers)} layers could run on integer kernels{because(reasons)}"

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:
        """See the base class."""
        if dataset is None or self.bits == 16:
            return None
        division = divide(model.graph, weighted_layers(model), self.mode, self.keep, calibrated=True)
        on_integers, stored = [*division.static, *division.dynamic], [layer for layer, _ in division.stored]
        runs = self.weight_plan(model).runs([*on_integers, *stored], spread(dataset, self.samples))
        searches = bool(division.static) and self.ranges == "auto"
        runs += bool(on_integers) * _RUNS_PER_SAMPLE * min(len(dataset), self.samples) + searches * _RUNS_FOR_RANGES
        return effort_of_runs(model, dataset, runs) if runs else None

    @property
    def _most_loss(self) -> float:
        if self.loss is not None:
            return self.loss
        return math.inf if self.bits == 2 else _LOSS

    @property
    def least_sqnr(self) -> float:
        """dB below which layers return to float; what codes of 2 bits cost says nothing about integer kernels."""
        return 0.0 if self.bits == 2 else self.sqnr

    def weight_plan(self, model: Model, saturates: bool = False, progress: Progress = silent) -> WeightPlan:
        """How these options have the weights of a model rounded."""
        return WeightPlan(model, self.bits, self.block, self.rounding, self._most_loss, saturates, progress)


class _Quantization:
    """One run of the pass."""

    def __init__(self, options: Quant, model: Model, ctx: Context, layers: list[WeightedLayer]) -> None:
        self.options = options
        self.model = model
        self.ctx = ctx
        self.layers = layers
        self.calibration = Calibration()
        self.stored: dict[int, str] = {}  # by ``id`` of what a layer reads, what it is
        self.weights = options.weight_plan(model, ctx.target.int8_saturates, ctx.progress)
        self.smoothed: dict[str, str] = {}
        data = None if options.bits == 16 else ctx.data  # float16 depends on no activation
        self.data = None if data is None else spread(data, options.samples)

    def write(self, division: Division) -> None:
        """Give each layer its form, and log it."""
        if self.data is not None:
            if self.options.sqnr > 0:  # smoothing takes time in every run
                self.smoothed = smooth(self.model, division.dynamic, self.data, self.ctx.progress)
            self.calibration = self._calibrate(division)
            self._leave_unseen(division)
        self.weights.means = self.calibration.means
        self.weights.decide([*division.static, *division.dynamic], [layer for layer, _ in division.stored], self.data)
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
            written = dynamic[layer.name]
            reason = f"{written.bits}-bit weights, activations quantized in every run; integer kernel "
            smoothed = f"; {self.smoothed[layer.name]}" if layer.name in self.smoothed else ""
            self.ctx.act(layer, "quantized", reason + kernels[layer.name] + smoothed + written.remark)

    def _calibrate(self, division: Division) -> Calibration:
        plans = make_plans(self.model.graph, division.static)
        corrected = [layer for layer, _ in division.stored if can_be_observed(layer)]
        channels = [
            (layer.node.inputs[0], 1 if layer.kind.startswith("Conv") else -1)
            for layer in (*division.static, *division.dynamic, *corrected)
        ]
        assert self.data is not None
        tensors = [tensor for plan in plans for tensor in plan.tensors if not plan.is_known(tensor)]
        limits = {key: pair for plan in plans for key, pair in plan.limits.items()}
        return calibrate(self.model, self.data, tensors, channels, self.ctx.progress, limits)

    def _leave_unseen(self, division: Division) -> None:
        """Layers of bodies without a range: their branch was never taken, or what is in it cannot be shown."""
        unseen = self.calibration.unseen(make_plans(self.model.graph, division.static))
        reason = "no calibration sample shows the values in its body"
        layers = [layer for layer in division.static if layer.name in unseen]
        for layer in division.store_instead(self.model.graph, layers, reason):
            self.ctx.skip(layer, reason)

    # -- forms without Q/DQ pairs --------------------------------------------------------------------------

    def _write_dynamic(self, writer: FormWriter, layer: WeightedLayer) -> Written:
        rounded = self.weights.of(layer)
        weights, shift = rounded.weights, rounded.shift
        bias = None
        if layer.kind == "MatMul":
            shift_added_bias(layer, shift, output_ids(self.model.graph))
        elif layer.bias is not None:
            bias = np.asarray(value_of(layer.bias), np.float64).reshape(-1) + shift
        elif np.any(shift):
            bias = shift
        return Written(writer.dynamic(layer, weights, bias), weights.grid.bits, rounded.remark)

    def _write_stored(self, writer: FormWriter, stored: list[tuple[WeightedLayer, str]]) -> None:
        for layer, reason in stored:
            node, index = layer.node, layer.weight_index
            if is_constant(node.inputs[index]):
                what = self._write_weight(writer, layer)
                self.stored[id(node.inputs[index])] = what
            else:  # another layer, which shares it, has been before
                what = self.stored[id(node.inputs[index])]
            self.ctx.act(layer, "stored", what.format(f"restored at load, runs in float: {reason}"))

    def _write_weight(self, writer: FormWriter, layer: WeightedLayer) -> str:
        """Returns what the weight has become, with a gap for what that is for."""
        if self.options.bits == 16:
            writer.halved(layer)
            return "float16 weight that is {}"
        rounded = self.weights.of(layer)
        if np.any(rounded.shift) and takes_constants(self.model.graph, layer):
            shift_outputs(self.model, layer, rounded.shift.reshape(layer.groups, -1))
        writer.stored(layer, rounded.weights)
        return f"{rounded.weights.grid.bits}-bit weight that is {{}}{rounded.remark}"

    # -- static form ---------------------------------------------------------------------------------------

    def _write_static(self, layers: list[WeightedLayer]) -> bool:
        """Find the layers and the ranges that serve, leave the graph in that state, and log it.

        Returns:
            False, with the graph as it was, when that was measured to be slower.
        """
        assert self.data is not None
        before = self.model.skeleton()
        weights = {layer.name: self.weights.of(layer, keep=True) for layer in layers}
        search = IntegerSearch(self.model, self.data, self.calibration, weights, self.ctx.progress)
        fused = search.fused(layers)
        how = search.choose_grids(fused, self.options.ranges) if fused else ""
        chosen, reasons = search.relieve(fused, self.options.least_sqnr)
        more: dict[str, str] = {}
        if self.options.bits > 2:
            chosen, more = search.protect(chosen)
        written = search.build(chosen)
        if chosen and self._is_slower(before):
            search.restore()
            return False
        kernels = integer_kernels(self.model, written)
        for layer in chosen:
            bits, remark = written[layer.name].bits, written[layer.name].remark
            what = "8-bit weights and activations" if bits == 8 else f"{bits}-bit weights, 8-bit activations"
            self.ctx.act(layer, "quantized", f"{what} ({how}); integer kernel {kernels[layer.name]}{remark}")
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
        self.weights.give_up(layers)
        writer = FormWriter(self.model.graph)
        for layer in layers:
            if is_storable(self.model.graph, layer):
                self._write_stored(writer, [(layer, reason)])
            else:
                self.ctx.skip(layer, reason)
        writer.finish()
