"""Layers turned into products in the order of the graph, each fitted to the inputs that those before it now give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.factors import Ranks, columns_of, kernel_of, write_factors
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.masks import kept_mask
from onnxcomp.linalg.gptq import damped
from onnxcomp.linalg.low_rank import Factors, Truncation, first_factors, refined, with_middle
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import chosen_damping, damping_for, fitted, prediction_error, solved
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.factor_plan import Choice
from onnxcomp.runtime.fits import can_be_observed, observe_stage, parts_of
from onnxcomp.runtime.regression import Regression
from onnxcomp.runtime.stages import added_branches, depths, stages

__all__ = ["factorize", "factorize_by_weights"]

Array = np.ndarray[Any, Any]

_STAGES = 12  # of the reconstruction, each of which runs the data once


def factorize(
    model: Model, choices: Sequence[Choice], dataset: Dataset, progress: Progress = silent
) -> dict[str, float]:
    """Turn layers into products, and fit what they feed.

    Layer after layer, W becomes what best gives the original's outputs from the inputs that the layers before it,
    done already, really give; the product is the one nearest to that (asymmetric reconstruction, Zhang, Zou, He and
    Sun 2015), and biases make up for what is left of the means. Layers between products are fitted as well.

    Args:
        model: edited in place.
        choices: what becomes of which layers.
        dataset: samples to fit on.
        progress: shows the batches.

    Returns:
        for each layer that became a product or was fitted, by name, the part of the variance of its original outputs
        that it does not give; NaN where values that are not finite reached it, and it stayed.

    Raises:
        InputError: the model does not run on the data.
    """
    original = model.copy()
    reference = {layer.name: layer for layer in weighted_layers(original)}
    layers = _affected(model, [layer for choice in choices for layer in choice.unit.layers])
    branches = added_branches(model, layers)
    choice_of = {layer.name: choice for choice in choices for layer in choice.unit.layers}
    errors: dict[str, float] = {}
    for stage in stages(model, layers, _STAGES):
        fed = stage[0][0]
        found = dict(observe_stage(model, original, stage, fed, reference, dataset, progress, branches))
        for layer, regression in found.items():
            choice = choice_of.get(layer.name)
            if not (regression.fitting.finite and regression.held_out.finite):
                errors[layer.name] = math.nan
            elif choice is None:
                errors[layer.name] = _fit(model, layer, regression)
            elif layer is choice.unit.layers[0]:
                errors |= _write(model, choice, [found[each] for each in choice.unit.layers])
    return errors


def factorize_by_weights(model: Model, choices: Sequence[Choice]) -> dict[str, float]:
    """Turn layers into the products that are nearest to their weights, whatever their inputs (truncated SVD).

    Returns:
        the part of the sum of squares of each weight that is lost, by layer name.
    """
    errors: dict[str, float] = {}
    for choice in choices:
        form, layers = choice.option.form, choice.unit.layers
        columns = columns_of(layers[0], form)
        W = np.concatenate([layer.matrix()[0] for layer in layers])[:, columns]
        factors = _factors(W, np.eye(W.shape[1]), form.taps(kernel_of(layers[0])), choice.option.ranks)
        lost = np.square(factors.product() - W).sum() / max(float(np.square(W).sum()), np.finfo(np.float64).tiny)
        errors |= {layer.name: float(lost) for layer in layers}
        write_factors(model, layers, form, factors)
    return errors


def _affected(model: Model, chosen: Sequence[WeightedLayer]) -> list[WeightedLayer]:
    """These layers, and all others that can be fitted and depend on them."""
    of_node = {id(layer.node): layer for layer in chosen}
    _, depth_of = depths(model, chosen)
    result = []
    for layer in weighted_layers(model):
        if id(layer.node) in of_node:
            result.append(of_node[id(layer.node)])
        elif can_be_observed(layer) and depth_of.get(id(layer.node.inputs[0]), 0) > 0 and not _is_depthwise(layer):
            result.append(layer)
    return result


def _is_depthwise(layer: WeightedLayer) -> bool:
    """Least squares can make up for nothing in a kernel that reads one channel."""
    return layer.groups > 1 and layer.kind == "Conv" and layer.shape[1] == 1


def _fit(model: Model, layer: WeightedLayer, regression: Regression) -> float:
    """Fit a layer that stays whole."""
    constants = takes_constants(model.graph, layer)
    W, shift, error = fitted(regression.target.astype(np.float64), *parts_of(regression, constants), kept_mask(layer))
    layer.set_matrix(W)
    if constants:
        shift_outputs(model, layer, shift)
    return error


def _write(model: Model, choice: Choice, seen: Sequence[Regression]) -> dict[str, float]:
    """Turn the layers of one choice into a product."""
    form, layers = choice.option.form, choice.unit.layers
    constants = [takes_constants(model.graph, layer) for layer in layers]
    moments = [_moments(regression, own) for regression, own in zip(seen, constants, strict=True)]
    fits = [_fitted(regression, own) for regression, own in zip(seen, constants, strict=True)]
    columns = columns_of(layers[0], form)
    inputs = moments[0]
    H = damped(inputs.covariance, damping_for(inputs.count, len(columns)))[0][np.ix_(columns, columns)]
    weightings = choice.unit.weightings
    W = np.concatenate([own.applied(each) for own, each in zip(weightings, fits, strict=True)])[:, columns]
    factors = _factors(W, H, form.taps(kernel_of(layers[0])), choice.option.ranks).normalized(H)
    ends = np.split(factors.last, np.cumsum([len(each) for each in fits])[:-1])
    last = np.concatenate([own.undone(end) for own, end in zip(weightings, ends, strict=True)])
    factors = Factors(factors.first, last, factors.middle)
    product = np.empty_like(W)
    product[:, columns] = factors.product()
    write_factors(model, layers, form, factors)
    errors, row = {}, 0
    for layer, own, each in zip(layers, constants, moments, strict=True):
        outputs = each.output_mean.shape[1]
        part = product[row : row + outputs][None]
        shift = each.output_mean - (part @ each.mean[:, :, None])[:, :, 0]
        errors[layer.name] = prediction_error(part, shift, each)
        if own:
            shift_outputs(model, layer, shift)
        row += outputs
    return errors


def _moments(regression: Regression, constants: bool) -> Moments:
    fitting, held_out = parts_of(regression, constants)
    return fitting + held_out


def _fitted(regression: Regression, constants: bool) -> Array:
    """The weight that best gives the original's outputs."""
    prior = regression.target.astype(np.float64)
    if regression.columns is None:
        fitting, held_out = parts_of(regression, constants)
        damping, _ = chosen_damping(prior, fitting, held_out)
        prior, _ = solved(prior, fitting + held_out, damping)
    weight: Array = prior[0]
    return weight


def _factors(W: Array, H: Array, taps: int, ranks: Ranks) -> Factors:
    """The best found of these ranks."""
    if taps == 1:
        return Truncation.of(W, H).factors(ranks[0])
    factors = refined(W, H, first_factors(W, H, taps)[: ranks[0]])
    return factors if len(ranks) == 1 else with_middle(factors, H, ranks[1])
