"""Weights rounded by what that does to the outputs of their layers, on calibration samples.

Layers are rounded in the order of the graph. Each is given inputs of the model whose layers before it are rounded
already, and rounded so that it comes closest to what the original's layer gives: errors do not add up, they are
corrected on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.masks import kept_mask
from onnxcomp.graph.rounding import RoundedLayer
from onnxcomp.linalg.gptq import output_error
from onnxcomp.linalg.rounding import Precision, round_for_outputs, round_nearest
from onnxcomp.linalg.weights import QuantizedWeights
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.fits import Fit, observe_stage, parts_of
from onnxcomp.runtime.regression import Regression
from onnxcomp.runtime.stages import stages

__all__ = ["round_calibrated"]

Array = np.ndarray[Any, Any]

_CLEARLY = 0.8  # of the error is left


def round_calibrated(
    model: Model,
    layers: Mapping[WeightedLayer, Precision],
    dataset: Dataset,
    loss: float,
    most_stages: int,
    progress: Progress = silent,
) -> dict[str, RoundedLayer]:
    """Round the weights of these layers.

    Beneath 8 bits, a layer's share of the loss that is allowed is its share of the weights; a layer that would lose
    more gets 8. That spends the fewer bits where they save most bytes for the noise they make: the same noise per byte
    is the limit everywhere.

    Args:
        model: in float; not edited.
        layers: of its main graph, those that ``can_be_observed``, and how to hold their weights.
        dataset: samples to observe them on.
        loss: what rounding to fewer than 8 bits may add to the outputs, over their variance; summed over all layers, as
            if each one's noise reached the model's outputs whole.
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
        seen = observe_stage(work, model, stage, fed, reference, dataset, progress)
        for layer, regression in seen:
            if not (regression.fitting.finite and regression.held_out.finite):
                continue
            allowed = loss * layer.array().size / max(1, total)
            precision, constants = layers[reference[layer.name]], takes_constants(work.graph, layer)
            if precision.bits == 8 and not _pays(regression, constants, precision):
                continue
            fit = Fit.of(regression, constants, kept_mask(layer))
            result = _rounded(fit, precision, allowed, _unseen_loss(fit.W, regression, constants, precision))
            rounded[layer.name] = result
            layer.set_matrix(result.weights.restored.reshape(layer.matrix().shape))
            if np.any(result.shift):
                shift_outputs(work, layer, result.shift.reshape(layer.groups, -1))
    return rounded


def _unseen_loss(W: Array, regression: Regression, constants: bool, precision: Precision) -> float:
    """What fewer than 8 bits add to the outputs, over their variance, on samples that the codes were not chosen on.

    On the others it may be next to nothing, when they are fewer than the inputs.
    """
    fitting, held_out = parts_of(regression, constants)
    if precision.bits == 8 or not held_out.count:
        return 0.0
    weights = round_for_outputs(W, Fit.to(W, fitting).H, precision)
    return _loss(Fit.to(W, held_out), weights)


def _pays(regression: Regression, constants: bool, precision: Precision) -> bool:
    """Whether rounding by outputs does clearly better than to the nearest level, on samples that it has not seen."""
    fitting, held_out = parts_of(regression, constants)
    if not held_out.count:
        return True
    fit = Fit.to(regression.target.astype(np.float64), fitting)
    H, rows = held_out.covariance, fit.W.reshape(-1, fit.W.shape[2])
    errors = [
        float(output_error(fit.W, H, weights.restored.reshape(fit.W.shape)).sum())
        for weights in (round_for_outputs(fit.W, fit.H, precision), round_nearest(rows, precision))
    ]
    return errors[0] <= _CLEARLY * errors[1]


def _rounded(fit: Fit, precision: Precision, allowed: float, unseen: float) -> RoundedLayer:
    """Rounded, in 8 bits where fewer would lose more than is allowed, here or on samples not seen."""
    loss, note = unseen, ""
    if precision.bits < 8 and loss <= allowed:
        weights = round_for_outputs(fit.W, fit.H, precision)
        if (loss := max(loss, _loss(fit, weights))) <= allowed:
            return RoundedLayer(weights, fit.shift(_matrix(fit, weights)), loss)
    if precision.bits < 8:
        note = f"{precision.bits} bits would add {loss:.1g} of the outputs' variance, more than this layer's share"
    better = round_for_outputs(fit.W, fit.H, replace(precision, bits=8))
    return RoundedLayer(better, fit.shift(_matrix(fit, better)), _loss(fit, better), note)


def _loss(fit: Fit, weights: QuantizedWeights) -> float:
    return fit.loss(_matrix(fit, weights))


def _matrix(fit: Fit, weights: QuantizedWeights) -> Array:
    return weights.restored.reshape(fit.W.shape)
