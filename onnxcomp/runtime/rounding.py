"""Weights rounded by what that does to the outputs of their layers, on calibration samples.

Layers are rounded in the order of the graph. Each is given inputs of the model whose layers before it are rounded
already, and rounded so that it comes closest to what the original's layer gives: errors do not add up, they are
corrected on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.rounding import RoundedLayer
from onnxcomp.linalg.gptq import damped, output_error
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import damping_for, fitted
from onnxcomp.linalg.rounding import Precision, round_for_outputs, round_nearest
from onnxcomp.linalg.weights import QuantizedWeights
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import Regression, observe_pairs
from onnxcomp.runtime.stages import stages

__all__ = ["MOST_INPUTS", "can_be_observed", "round_calibrated"]

Array = np.ndarray[Any, Any]

MOST_INPUTS = 4608  # their H takes 170 MB
_CLEARLY = 0.8  # of the error is left


def can_be_observed(layer: WeightedLayer) -> bool:
    """Whether the layer's outputs are a matrix times inputs that a run shows."""
    if layer.kind == "other" or layer.nested or layer.shared or layer.quantized:
        return False
    if is_constant(layer.node.inputs[0]):
        return False
    if layer.kind == "ConvTranspose" and layer.groups > 1:  # whose groups share their scales
        return False
    return layout_of(layer).size <= MOST_INPUTS


def round_calibrated(
    model: Model,
    layers: Mapping[WeightedLayer, Precision],
    dataset: Dataset,
    loss: float,
    most_stages: int,
    progress: Progress = silent,
) -> dict[str, RoundedLayer]:
    """Round the weights of these layers.

    In 4 bits, a layer's share of the loss that is allowed is its share of the weights; a layer that would lose more
    gets 8 bits. That spends the 4 bits where they save most bytes for the noise they make: the same noise per byte is
    the limit everywhere.

    Args:
        model: in float; not edited.
        layers: of its main graph, those that ``can_be_observed``, and how to hold their weights.
        dataset: samples to observe them on.
        loss: what rounding to 4 bits may add to the outputs, over their variance; summed over all layers, as if each
            one's noise reached the model's outputs whole.
        most_stages: how often the samples may be run; once is without what the rounded layers before make of them.

    Returns:
        by name. Those that values reach which are not finite are missing.

    Raises:
        InputError: the model does not run on the data.
    """
    work = model.copy()
    reference = {layer.name: layer for layer in layers}
    own = [layer for layer in weighted_layers(work) if layer.name in reference]
    total = sum(layer.array().size for layer in layers)
    rounded: dict[str, RoundedLayer] = {}
    for stage in stages(work, own, most_stages):
        fed = min(depth for depth, _ in stage) if most_stages > 1 else -1
        seen = _observe(work, model, stage, fed, reference, dataset, progress)
        for layer, regression in seen:
            if not (regression.fitting.finite and regression.held_out.finite):
                continue
            allowed = loss * layer.array().size / max(1, total)
            precision, constants = layers[reference[layer.name]], takes_constants(work.graph, layer)
            if precision.bits == 8 and not _pays(regression, constants, precision):
                continue
            fit = _Fit.of(regression, constants)
            result = fit.rounded(precision, allowed, _unseen_loss(fit.W, regression, constants, precision))
            rounded[layer.name] = result
            layer.set_matrix(result.weights.restored.reshape(layer.matrix().shape))
            if np.any(result.shift):
                shift_outputs(work, layer, result.shift.reshape(layer.groups, -1))
    return rounded


def _observe(
    work: Model,
    model: Model,
    stage: Sequence[tuple[int, WeightedLayer]],
    fed: int,
    reference: dict[str, WeightedLayer],
    dataset: Dataset,
    progress: Progress,
) -> list[tuple[WeightedLayer, Regression]]:
    """What the layers of a stage are fed and should give; those deeper than ``fed`` as if all before were exact."""
    seen: list[tuple[WeightedLayer, Regression]] = []
    wanted: dict[str, list[Regression]] = {}
    for depth, layer in stage:
        layout = layout_of(layer)
        columns = np.arange(layout.size) if depth > fed else None
        regression = Regression(layout, layout, reference[layer.name].matrix(), columns)
        seen.append((layer, regression))
        wanted.setdefault(layer.node.inputs[0].name, []).append(regression)
    observe_pairs(work, model, dataset, wanted, progress)
    return seen


def _parts(regression: Regression, constants: bool) -> tuple[Moments, Moments]:
    """What was seen to fit, and what was held out; around zero where the layer's bias cannot change."""
    parts = regression.fitting, regression.held_out
    return parts if constants else (parts[0].uncentred(), parts[1].uncentred())


def _unseen_loss(W: Array, regression: Regression, constants: bool, precision: Precision) -> float:
    """What 4 bits add to the outputs, over their variance, on samples that the codes were not chosen on.

    On the others it may be next to nothing, when they are fewer than the inputs.
    """
    fitting, held_out = _parts(regression, constants)
    if precision.bits == 8 or not held_out.count:
        return 0.0
    codes = _Fit.to(W, fitting).codes(precision)
    return _Fit.to(W, held_out).loss(codes)


def _pays(regression: Regression, constants: bool, precision: Precision) -> bool:
    """Whether rounding by outputs does clearly better than to the nearest level, on samples that it has not seen."""
    fitting, held_out = _parts(regression, constants)
    if not held_out.count:
        return True
    fit = _Fit.to(regression.target.astype(np.float64), fitting)
    H, rows = held_out.covariance, fit.W.reshape(-1, fit.W.shape[2])
    errors = [
        float(output_error(fit.W, H, weights.restored.reshape(fit.W.shape)).sum())
        for weights in (round_for_outputs(fit.W, fit.H, precision), round_nearest(rows, precision))
    ]
    return errors[0] <= _CLEARLY * errors[1]


@dataclass(frozen=True)
class _Fit:
    """The layer that best gives the original's outputs from the inputs it has.

    Attributes:
        W: its weights, (G, outputs, d).
        H: second moment of its inputs, as rounding needs it (damped).
        seen: how its inputs and the original's outputs vary together.
    """

    W: Array
    H: Array
    seen: Moments

    @classmethod
    def of(cls, regression: Regression, takes_constants: bool) -> _Fit:
        """Fitted to all samples."""
        parts = _parts(regression, takes_constants)
        W = regression.target.astype(np.float64)
        if regression.columns is None:
            W = fitted(W, *parts)[0]
        return cls.to(W, parts[0] + parts[1])

    @classmethod
    def to(cls, W: Array, seen: Moments) -> _Fit:
        """These weights, for such inputs."""
        return cls(W, damped(seen.covariance, damping_for(seen.count, W.shape[2])), seen)

    def rounded(self, precision: Precision, allowed: float, unseen: float) -> RoundedLayer:
        """Rounded, in 8 bits where 4 would lose more than is allowed, here or on samples not ``seen``."""
        loss, note = unseen, ""
        if precision.bits == 4 and loss <= allowed:
            weights = self.codes(precision)
            if (loss := max(loss, self.loss(weights))) <= allowed:
                return RoundedLayer(weights, self._shift(weights), loss)
        if precision.bits == 4:
            note = f"4 bits would add {loss:.1g} of the outputs' variance, more than this layer's share"
        better = self.codes(replace(precision, bits=8))
        return RoundedLayer(better, self._shift(better), self.loss(better), note)

    def codes(self, precision: Precision) -> QuantizedWeights:
        """The weights that change the outputs least."""
        return round_for_outputs(self.W, self.H, precision)

    def loss(self, weights: QuantizedWeights) -> float:
        """Noise of the outputs over their variance."""
        noise = float(output_error(self.W, self.seen.covariance, self._matrix(weights)).sum())
        return noise / (float(self.seen.output_variance.sum()) or 1.0)

    def _shift(self, weights: QuantizedWeights) -> Array:
        """What the bias must become beside these weights."""
        given = self._matrix(weights) @ self.seen.mean[:, :, None]
        shift: Array = (self.seen.output_mean - given[:, :, 0]).reshape(-1)
        return shift

    def _matrix(self, weights: QuantizedWeights) -> Array:
        return weights.restored.reshape(self.W.shape)
