"""Fitting the weights of a compressed model so that its layers give what the original's gave.

Layers are fitted in the order of the graph, each on the inputs that the layers before it, fitted already, really
produce, to the outputs that the original's layer had: errors do not add up, they are corrected on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.remains import Kept
from onnxcomp.linalg.reconstruct import fitted
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import Regression, observe_pairs
from onnxcomp.runtime.stages import stages

__all__ = ["can_fit", "refit"]

Array = np.ndarray[Any, Any]


def can_fit(layer: WeightedLayer, most_inputs: int) -> bool:
    """Whether least squares can make up for anything in it: a depthwise kernel has but one channel to do it with."""
    if layer.kind == "other" or layer.shared or layer.quantized or layer.nested:
        return False
    inputs = layer.shape[layer.in_axis] // (layer.groups if layer.kind == "ConvTranspose" else 1)
    return (layer.groups == 1 or inputs > 1) and layout_of(layer).size <= most_inputs


def refit(
    model: Model,
    original: Model,
    dataset: Dataset,
    kept: Sequence[Kept],
    most_stages: int,
    progress: Progress = silent,
) -> dict[str, float]:
    """Fit weights and biases by least squares, damped towards the original's.

    Args:
        model: its layers have fewer inputs and outputs than the original's; edited in place.
        original: with layers and tensors of the same names.
        dataset: samples to fit on.
        kept: the layers to fit.
        most_stages: how often the data may be run.
        progress: shows the batches.

    Returns:
        for each layer that was fitted, by name, the part of the variance of its original outputs that it does
        not give; NaN where values that are not finite left nothing to fit.

    Raises:
        InputError: a model does not run on the data.
    """
    reference = {layer.name: layer for layer in weighted_layers(original)}
    errors: dict[str, float] = {}
    left_of = {id(left.layer): left for left in kept}
    for stage in stages(model, [left.layer for left in kept], most_stages):
        regressions: list[tuple[Kept, Regression]] = []
        wanted: dict[str, list[Regression]] = {}
        for depth, layer in stage:
            left = left_of[id(layer)]
            columns = left.columns if depth > stage[0][0] else None
            old = reference[left.layer.name]
            if columns is not None and len(columns) == layout_of(old).size:
                continue  # it would only learn what it knows
            regression = _regression(left, old, columns)
            regressions.append((left, regression))
            wanted.setdefault(left.layer.node.inputs[0].name, []).append(regression)
        observe_pairs(model, original, dataset, wanted, progress)
        for left, regression in regressions:
            errors[left.layer.name] = _fit(model, left, regression)
    return errors


def _regression(kept: Kept, original: WeightedLayer, columns: Array | None) -> Regression:
    target = np.take_along_axis(original.matrix(), kept.rows[:, :, None], axis=1)
    return Regression(layout_of(kept.layer), layout_of(original), target, columns)


def _fit(model: Model, kept: Kept, seen: Regression) -> float:
    """Fit one layer; returns its relative error."""
    if not (seen.fitting.finite and seen.held_out.finite):
        return math.nan
    prior = seen.target[:, :, kept.columns].astype(np.float64)
    W, shift, error = fitted(prior, seen.fitting, seen.held_out)
    kept.layer.set_matrix(W)
    shift_outputs(model, kept.layer, shift)
    return error
