"""Which 8-bit weights a layer gets, and what its bias must become: decided before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.int8 import Int8Weights, quantize_weights

__all__ = ["RoundedLayer", "mean_output_error", "round_to_nearest"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RoundedLayer:
    """What a layer computes with instead of its weight and bias.

    Attributes:
        weights: a row for each output channel, in the order of ``WeightedLayer.matrix()``.
        shift: to be added to the bias, float64, shape (channels,).
    """

    weights: Int8Weights
    shift: Array


def round_to_nearest(
    layers: Iterable[WeightedLayer], means: Mapping[int, Array], avoid_saturation: bool
) -> dict[str, RoundedLayer]:
    """Every weight on the nearest level, by name of the layer.

    Args:
        layers: of kinds that have a ``matrix()``, in float.
        means: by ``id`` of an activation, its mean in each input channel, float64. The mean of the error that
            rounding the weights makes is taken out of the bias (Nagel et al. 2019, "Data-free quantization
            through weight equalization and bias correction", arXiv:1906.04721, section 4.2).
        avoid_saturation: see ``quantize_weights``.
    """
    rounded = {}
    for layer in layers:
        matrix = layer.matrix()
        weights = quantize_weights(matrix.reshape(-1, matrix.shape[-1]), avoid_saturation)
        mean = means.get(id(layer.node.inputs[0]))
        shift = np.zeros(len(weights.scales)) if mean is None else -mean_output_error(layer, weights, mean)
        rounded[layer.name] = RoundedLayer(weights, shift)
    return rounded


def mean_output_error(layer: WeightedLayer, weights: Int8Weights, means: Array) -> Array:
    """Mean of what rounded weights add to each output, shape (out,), for inputs of these means.

    Padding is left out of account.
    """
    matrix = layer.matrix()
    groups, outs, columns = matrix.shape
    error = weights.codes.astype(np.float64) * weights.scales.astype(np.float64)[:, None]
    error = error.reshape(matrix.shape) - matrix
    per_input = means.reshape(groups, -1)
    kernel = columns // per_input.shape[1]
    summed = error.reshape(groups, outs, per_input.shape[1], kernel).sum(axis=3)
    result: Array = np.einsum("goi,gi->go", summed, per_input).reshape(-1)
    return result
