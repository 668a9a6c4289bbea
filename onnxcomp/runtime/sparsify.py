"""Layers made sparse, so that what they give changes least on calibration samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.masks import kept_mask
from onnxcomp.graph.sparsity import SparseForm
from onnxcomp.linalg.gptq import damped
from onnxcomp.linalg.patterns import Pattern
from onnxcomp.linalg.reconstruct import chosen_damping, damping_for, prediction_error, solved
from onnxcomp.linalg.sparsify import Score, mask_by
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.fits import observe_stage, parts_of
from onnxcomp.runtime.regression import Regression
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.sparsity_plan import loss_curves
from onnxcomp.runtime.stages import added_branches, stages

__all__ = ["Sparsified", "make_sparse", "sparsify", "sparsify_by_size"]

Array = np.ndarray[Any, Any]

_STAGES = 12
_MACS = 2e11  # that the samples may take to run once
_PROBE_MACS = 1e10


@dataclass(frozen=True)
class Sparsified:
    """What became of a layer.

    Attributes:
        zeros, size: weights that are zero, and all.
        error: part of the variance of the original's outputs that it does not give on samples that it was not fitted
            to; NaN where that was not measured.
    """

    zeros: int
    size: int
    error: float = math.nan

    @classmethod
    def of(cls, layer: WeightedLayer, error: float = math.nan) -> Sparsified:
        weights = layer.array()
        return cls(weights.size - int(np.count_nonzero(weights)), weights.size, error)


def make_sparse(
    model: Model,
    layers: Sequence[WeightedLayer],
    form: SparseForm,
    sparsity: float,
    score: Score,
    dataset: Dataset,
    progress: Progress = silent,
) -> dict[str, Sparsified]:
    """Make these layers sparse, each as much as serves the model's outputs best where the form leaves that open.

    Args:
        model: edited in place.
        layers: of its main graph that ``can_be_observed``.
        form: of the zeros.
        sparsity: share of the weights of all layers that becomes zero, where the form leaves it open.
        score: ``obs``, which alone lets layers differ, or another.
        dataset: samples to fit on.
        progress: shows the batches.

    Returns:
        by name. Those that values reach which are not finite are missing, and stay as they were.

    Raises:
        InputError: the model does not run on the data.
    """
    shapes = observed(model, dataset.sample())
    samples = affordable(model, shapes, dataset, _MACS)
    shares = dict.fromkeys((layer.name for layer in layers), sparsity)
    if score == "obs" and form.share is None:
        probe = affordable(model, shapes, dataset, _PROBE_MACS, 64)
        shares = loss_curves(model, layers, form.pattern, samples, probe, progress).shares(sparsity)
    patterns = {layer: form.pattern(layer, shares[layer.name]) for layer in layers if layer.name in shares}
    return sparsify(model, patterns, score, samples, _STAGES, progress)


def sparsify(
    model: Model,
    patterns: Mapping[WeightedLayer, Pattern],
    score: Score,
    dataset: Dataset,
    most_stages: int,
    progress: Progress = silent,
    fill: bool = False,
) -> dict[str, Sparsified]:
    """Make layers sparse in the order of the graph, each fitted to the inputs that those before it now give.

    Args:
        model: edited in place.
        patterns: of layers of its main graph that ``can_be_observed``.
        score: what chooses the zeros.
        dataset: samples to fit on.
        most_stages: how often the samples may be run.
        progress: shows the batches.
        fill: weights that are zero now may become others.

    Returns:
        by name. Those that values reach which are not finite are missing, and stay as they were.

    Raises:
        InputError: the model does not run on the data.
    """
    original = model.copy()
    reference = {layer.name: layer for layer in weighted_layers(original)}
    branches = added_branches(model, list(patterns))
    done: dict[str, Sparsified] = {}
    for stage in stages(model, list(patterns), most_stages):
        fed = stage[0][0]
        for layer, regression in observe_stage(model, original, stage, fed, reference, dataset, progress, branches):
            if regression.fitting.finite and regression.held_out.finite:
                done[layer.name] = _sparsify(model, layer, regression, patterns[layer], score, fill)
    return done


def _sparsify(
    model: Model, layer: WeightedLayer, regression: Regression, pattern: Pattern, score: Score, fill: bool
) -> Sparsified:
    constants = takes_constants(model.graph, layer)
    fitting, held_out = parts_of(regression, constants)
    prior, seen = regression.target.astype(np.float64), fitting + held_out
    damping, _ = chosen_damping(prior, fitting, held_out)
    W, _ = solved(prior, seen, damping, None if fill else kept_mask(layer))
    H = damped(seen.covariance, damping_for(seen.count, W.shape[2]))
    kept = mask_by(score, prior if score == "magnitude" else W, H, pattern)
    W, shift = solved(prior, seen, damping, kept)
    error = prediction_error(*solved(prior, fitting, damping, kept), held_out if held_out.count else fitting)
    layer.set_matrix(W)
    if constants:
        shift_outputs(model, layer, shift)
    return Sparsified.of(layer, error)


def sparsify_by_size(patterns: Mapping[WeightedLayer, Pattern]) -> dict[str, Sparsified]:
    """Without data: make the smallest weights zero, and leave the others as they are."""
    done: dict[str, Sparsified] = {}
    for layer, pattern in patterns.items():
        W = layer.matrix()
        layer.set_matrix(W * pattern.kept(np.square(W)))
        done[layer.name] = Sparsified.of(layer)
    return done
