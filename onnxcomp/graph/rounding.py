"""Which weights of few bits a layer gets, and what its bias must become: decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rows import rows_of
from onnxcomp.linalg.rounding import Precision, round_nearest
from onnxcomp.linalg.weights import QuantizedWeights

__all__ = ["RoundedLayer", "mean_output_error", "round_to_nearest"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RoundedLayer:
    """What a layer computes with instead of its weight and bias.

    Attributes:
        weights: of the rows of ``graph.rows.rows_of``.
        shift: to be added to the bias, float64, shape (channels,).
        loss: what rounding adds to the layer's outputs, over their variance, where that was measured.
        note: why it has more bits than were asked for, or nothing.
    """

    weights: QuantizedWeights
    shift: Array
    loss: float | None = None
    note: str = ""

    @property
    def remark(self) -> str:
        """What is to be said of it, as the end of a sentence."""
        weights, remarks = self.weights, []
        if weights.limited:
            remarks.append(
                f"{weights.limited} of {len(weights.scales)} channels have fewer levels, so that sums cannot saturate"
            )
        if self.loss is not None:
            remarks.append(f"rounding adds {self.loss:.1g} of its outputs' variance")
        return "".join(f"; {item}" for item in (*remarks, self.note) if item)


def round_to_nearest(layer: WeightedLayer, precision: Precision, mean: Array | None = None) -> RoundedLayer:
    """Every weight on the nearest level.

    Args:
        layer: in float.
        precision: to hold it in.
        mean: of its activation in each input channel, float64, where it is known. The mean of the error that
            rounding the weights makes is taken out of the bias (Nagel et al. 2019, "Data-free quantization through
            weight equalization and bias correction", arXiv:1906.04721, section 4.2).
    """
    weights = round_nearest(rows_of(layer), precision)
    shift = np.zeros(len(weights.scales)) if mean is None else -mean_output_error(layer, weights, mean)
    return RoundedLayer(weights, shift)


def mean_output_error(layer: WeightedLayer, weights: QuantizedWeights, means: Array) -> Array:
    """Mean of what rounded weights add to each output, shape (out,), for inputs of these means.

    Padding is left out of account.
    """
    matrix = layer.matrix()
    groups, outs, columns = matrix.shape
    error = weights.restored.reshape(matrix.shape) - matrix
    per_input = means.reshape(groups, -1)
    kernel = columns // per_input.shape[1]
    summed = error.reshape(groups, outs, per_input.shape[1], kernel).sum(axis=3)
    result: Array = np.einsum("goi,gi->go", summed, per_input).reshape(-1)
    return result
