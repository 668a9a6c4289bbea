"""Weights that share few values, chosen by what that does to the outputs of their layers, on calibration samples.

Layers are treated in the order of the graph. Each is given inputs of the model whose layers before it share values
already, and comes as close as it can to what the original's layer gives: errors do not add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.masks import kept_mask
from onnxcomp.linalg.codebooks import Codebooks, share_for_outputs
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.fits import Fit, observe_stage
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.stages import stages

__all__ = ["SharedLayer", "Sharing", "share_calibrated"]

Array = np.ndarray[Any, Any]

_STAGES = 12  # of layers, each of which runs the data once
_MACS = 4e10  # that the samples may take to run once


@dataclass(frozen=True)
class Sharing:
    """How many values a layer's weights may take.

    Attributes:
        clusters: values of a codebook.
        rows: outputs that share one.
    """

    clusters: int
    rows: int


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """What a layer computes with instead of its weight and bias.

    Attributes:
        books: of values.
        codes: (channels, inputs), of ``graph.rows.rows_of``.
        shift: to be added to the bias, (channels,).
        loss: what that adds to the layer's outputs, over their variance; None where it was not measured.
    """

    books: Codebooks
    codes: Array
    shift: Array
    loss: float | None = None


def share_calibrated(
    model: Model, layers: Mapping[WeightedLayer, Sharing], dataset: Dataset, progress: Progress = silent
) -> dict[str, SharedLayer]:
    """Find codebooks and codes for these layers.

    Args:
        model: in float; not edited.
        layers: of its main graph, those that ``can_be_observed``.
        dataset: samples to observe them on.
        progress: shows the batches.

    Returns:
        by name. Those that values reach which are not finite are missing.

    Raises:
        InputError: the model does not run on the data.
    """
    samples = affordable(model, observed(model, dataset.sample()), dataset, _MACS)
    work = model.copy()
    reference = {layer.name: layer for layer in layers}
    own = [layer for layer in weighted_layers(work) if layer.name in reference]
    shared: dict[str, SharedLayer] = {}
    for stage in stages(work, own, _STAGES):
        seen = observe_stage(work, model, stage, min(depth for depth, _ in stage), reference, samples, progress)
        for layer, regression in progress(seen, "sharing", len(seen)):
            if not (regression.fitting.finite and regression.held_out.finite):
                continue
            kept = kept_mask(layer)
            fit = Fit.of(regression, takes_constants(work.graph, layer), kept)
            sharing = layers[reference[layer.name]]
            books, codes = share_for_outputs(fit.W, fit.H, sharing.clusters, sharing.rows, kept is not None)
            W = books.decode(codes)
            result = SharedLayer(books, codes.reshape(-1, codes.shape[2]), fit.shift(W), fit.loss(W))
            shared[layer.name] = result
            layer.set_matrix(W)
            if takes_constants(work.graph, layer):
                shift_outputs(work, layer, result.shift.reshape(layer.groups, -1))
    return shared
