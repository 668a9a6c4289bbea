"""Layers fitted, one stage after the other, to the inputs that a compressed model gives them.

Each is given inputs of the model whose layers before it are compressed already, and comes as close as it can to
what the original's layer gives: errors do not add up, they are corrected on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.gptq import damped, output_error
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import damping_for, fitted
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import OutputLayout, Regression, observe_pairs

__all__ = ["MOST_INPUTS", "Fit", "can_be_observed", "observe_stage", "parts_of"]

Array = np.ndarray[Any, Any]

MOST_INPUTS = 4608  # their H takes 170 MB


def can_be_observed(layer: WeightedLayer) -> bool:
    """Whether the layer's outputs are a matrix times inputs that a run shows."""
    if layer.kind == "other" or layer.nested or layer.shared or layer.quantized:
        return False
    if is_constant(layer.node.inputs[0]):
        return False
    if layer.kind == "ConvTranspose" and layer.groups > 1:  # whose groups share their scales
        return False
    return layout_of(layer).size <= MOST_INPUTS


def observe_stage(
    work: Model,
    model: Model,
    stage: Sequence[tuple[int, WeightedLayer]],
    fed: int,
    reference: Mapping[str, WeightedLayer],
    dataset: Dataset,
    progress: Progress = silent,
    branches: Mapping[str, str] | None = None,
) -> list[tuple[WeightedLayer, Regression]]:
    """What the layers of a stage are fed and should give.

    Args:
        work: the compressed model.
        model: the original.
        stage: layers of ``work`` with their depths.
        fed: layers deeper than this are taken to be fed by an original model, as if all before were exact.
        reference: layers of ``model`` by name.
        dataset: samples to run.
        progress: shows the batches.
        branches: by layer, the tensor that is added to its output, for whose errors it is to make up.
    """
    seen: list[tuple[WeightedLayer, Regression]] = []
    wanted: dict[str, list[Regression]] = {}
    for depth, layer in stage:
        layout = layout_of(layer)
        columns = np.arange(layout.size) if depth > fed else None
        regression = Regression(layout, layout, reference[layer.name].matrix(), columns)
        if columns is None and branches and layer.name in branches:
            regression.branch = branches[layer.name]
            groups, outputs = regression.target.shape[:2]
            axis = 1 if layer.kind in ("Conv", "ConvTranspose") else -1
            regression.outputs = OutputLayout(groups, outputs, axis)
        seen.append((layer, regression))
        wanted.setdefault(layer.node.inputs[0].name, []).append(regression)
    observe_pairs(work, model, dataset, wanted, progress)
    return seen


def parts_of(regression: Regression, takes_constants: bool) -> tuple[Moments, Moments]:
    """What was seen to fit, and what was held out; around zero where the layer's bias cannot change."""
    parts = regression.fitting, regression.held_out
    return parts if takes_constants else (parts[0].uncentred(), parts[1].uncentred())


@dataclass(frozen=True)
class Fit:
    """The layer that best gives the original's outputs from the inputs it has.

    Attributes:
        W: its weights, (G, outputs, d).
        H: second moment of its inputs, as rounding and sparsifying need it (damped).
        seen: how its inputs and the original's outputs vary together.
    """

    W: Array
    H: Array
    seen: Moments

    @classmethod
    def of(cls, regression: Regression, takes_constants: bool, kept: Array | None = None) -> Fit:
        """Fitted to all samples, with zeros outside the mask ``kept``."""
        parts = parts_of(regression, takes_constants)
        W = regression.target.astype(np.float64)
        if regression.columns is None:
            W = fitted(W, *parts, kept)[0]
        return cls.to(W, parts[0] + parts[1])

    @classmethod
    def to(cls, W: Array, seen: Moments) -> Fit:
        """These weights, for such inputs."""
        return cls(W, damped(seen.covariance, damping_for(seen.count, W.shape[2])), seen)

    def loss(self, W: Array) -> float:
        """What weights W instead add to the outputs, over their variance."""
        noise = float(output_error(self.W, self.seen.covariance, W).sum())
        return noise / (float(self.seen.output_variance.sum()) or 1.0)

    def shift(self, W: Array) -> Array:
        """What must be added to the bias beside weights W, flat."""
        given = W @ self.seen.mean[:, :, None]
        shift: Array = (self.seen.output_mean - given[:, :, 0]).reshape(-1)
        return shift
