"""Which weights of few bits the layers of a model get: how many bits, rounded how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.cost import cost
from onnxcomp.graph.int8_forms import opset_of
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.packed import obstacle_to_few_bits
from onnxcomp.graph.rounding import RoundedLayer, round_to_nearest
from onnxcomp.graph.rows import RowLayout, rows_of
from onnxcomp.linalg.rounding import Precision
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.calibration import spread
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.rounding import round_calibrated
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.stages import stages

__all__ = ["Bits", "RoundingChoice", "WeightPlan"]

Array = np.ndarray[Any, Any]
Bits: TypeAlias = Literal[2, 4, 8, 16]
RoundingChoice: TypeAlias = Literal["auto", "nearest", "gptq"]

_STAGES = 12  # of rounding by outputs, each of which runs the data once
_RUNS_PER_STAGE = 4  # what a sample costs in one of them, in runs of the model
_MACS = 4e10  # that the samples may take to run once
_MACS_OF_8_BITS = 1.6e10
_FEW_INPUTS = 64  # of an output; with more, rounding errors of 8 bits average out
_LEAST_INPUTS = 64  # of an output; with fewer, 4 bits or 2 rounded to nearest lose much and save little


@dataclass
class WeightPlan:
    """Decides about weights, before anything is written.

    Attributes:
        model: in float.
        bits: 2, 4 or 8, for all layers that can have them.
        block: neighbouring inputs with a factor of their own beneath 8 bits; 0 for none.
        rounding: to the nearest level, or by what it does to outputs; ``auto``: the latter beneath 8 bits.
        loss: see ``round_calibrated``.
        avoid_saturation: of layers on integer kernels.
        progress: shows what takes long.
        means: of activations, by ``id``, see ``round_to_nearest``.
    """

    model: Model
    bits: int
    block: int
    rounding: RoundingChoice
    loss: float
    avoid_saturation: bool = False
    progress: Progress = silent
    means: Mapping[int, Array] = field(default_factory=dict)
    _rounded: dict[str, tuple[RowLayout, RoundedLayer]] = field(default_factory=dict)
    _on_integers: set[str] = field(default_factory=set)

    def decide(
        self, on_integers: Sequence[WeightedLayer], stored: Sequence[WeightedLayer], dataset: Dataset | None
    ) -> None:
        """Round what samples are needed for.

        Args:
            on_integers: layers that integer kernels are to run.
            stored: layers whose weights are restored at load.
            dataset: samples, or None.
        """
        self._on_integers = {layer.name for layer in on_integers}
        layers = {layer: self._precision(layer) for layer in self._chosen([*on_integers, *stored])}
        if dataset is None or not layers:
            return
        samples = self._affordable(dataset)
        rounded = round_calibrated(self.model, layers, samples, self.loss, self._most_stages, self.progress)
        self._rounded = {
            layer.name: (RowLayout.of(layer), rounded[layer.name]) for layer in layers if layer.name in rounded
        }

    def runs(self, layers: Sequence[WeightedLayer], dataset: Dataset) -> float:
        """About how many runs of the model on one sample ``decide`` takes as long as."""
        if not (chosen := self._chosen(layers)):
            return 0.0
        count = len(stages(self.model, chosen, self._most_stages))
        return float(_RUNS_PER_STAGE * count * len(self._affordable(dataset)))

    def of(self, layer: WeightedLayer, keep: bool = False) -> RoundedLayer:
        """What a layer gets; computed in each call, unless it was decided on samples or is to be kept."""
        layout = RowLayout.of(layer)
        known, found = self._rounded.get(layer.name, (None, None))
        if found is None or known != layout:  # the layer may have got another form since
            found = self._nearest(layer)
        if keep:
            self._rounded[layer.name] = (layout, found)
        return found

    def give_up(self, layers: Sequence[WeightedLayer]) -> None:
        """Let layers that were to run on integers run in float: no sums of theirs can saturate."""
        for layer in layers:
            self._on_integers.discard(layer.name)
            _, found = self._rounded.get(layer.name, (None, None))
            if found is not None and found.weights.limited:
                del self._rounded[layer.name]

    def _chosen(self, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
        return [layer for layer in layers if can_be_observed(layer) and self._pays(layer)]

    @property
    def _quick(self) -> bool:
        """Whether only layers of few inputs are rounded by outputs, in 8 bits, and all at once."""
        return self.bits == 8 and self.rounding == "auto"

    @property
    def _most_stages(self) -> int:
        return 1 if self._quick else _STAGES

    def _pays(self, layer: WeightedLayer) -> bool:
        """Whether the layer is to be rounded by what that does to its outputs."""
        if self.rounding != "auto" or self.bits == 16:
            return self.rounding == "gptq"
        few = layout_of(layer).size <= _FEW_INPUTS
        return few if self.bits == 8 else not self.model.is_large

    def _nearest(self, layer: WeightedLayer) -> RoundedLayer:
        precision, note = self._precision(layer), ""
        if precision.bits < 8 and rows_of(layer).shape[1] < _LEAST_INPUTS:
            precision, note = replace(precision, bits=8), f"an output has fewer than {_LEAST_INPUTS} inputs"
        mean = self.means.get(id(layer.node.inputs[0])) if layer.kind in ("Conv", "Gemm", "MatMul") else None
        return replace(round_to_nearest(layer, precision, mean), note=note)

    def _precision(self, layer: WeightedLayer) -> Precision:
        careful = self.avoid_saturation and layer.name in self._on_integers
        if self.bits < 8 and not obstacle_to_few_bits(layer, self.bits, opset_of(self.model.graph, layer)):
            return Precision(self.bits, self.block if RowLayout.of(layer).has_blocks else 0, careful)
        return Precision(8, 0, careful)

    def _affordable(self, dataset: Dataset) -> Dataset:
        """As many samples as can be run once for so much work, 16 at least."""
        shapes = observed(self.model, dataset.sample())
        each = cost(self.model, shapes).flops / 2 / dataset.least
        macs = _MACS_OF_8_BITS if self._quick else _MACS
        return spread(dataset, max(16, int(macs / max(1.0, each))))
