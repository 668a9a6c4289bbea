"""Weights that share few values, chosen by what that does to the outputs of their layers, on calibration samples.

Layers are treated in the order of the graph. Each is given inputs of the model whose layers before it share values
already, and comes as close as it can to what the original's layer gives: errors do not add up.
"""

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
        note: why it has more values than were asked for, or nothing.
    """

    books: Codebooks
    codes: Array
    shift: Array
    loss: float | None = None
    note: str = ""


def share_calibrated(
    model: Model,
    layers: Mapping[WeightedLayer, Sequence[Sharing]],
    dataset: Dataset,
    loss: float = math.inf,
    progress: Progress = silent,
) -> dict[str, SharedLayer]:
    """Find codebooks and codes for these layers.

    A layer's share of the loss that is allowed is its share of the weights, which spends few bits where they save most
    bytes for the noise they make.

    Args:
        model: in float; not edited.
        layers: of its main graph, those that ``can_be_observed``; with each what it may get, the smallest first.
        dataset: samples to observe them on.
        loss: what sharing may add to the outputs, over their variance; summed over all layers, as if each one's noise
            reached the model's outputs whole. A layer that would add more gets the next that it may get.
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
    total = sum(layer.array().size for layer in layers)
    shared: dict[str, SharedLayer] = {}
    for stage in stages(work, own, _STAGES):
        seen = observe_stage(work, model, stage, min(depth for depth, _ in stage), reference, samples, progress)
        for layer, regression in progress(seen, "sharing", len(seen)):
            if not (regression.fitting.finite and regression.held_out.finite):
                continue
            kept = kept_mask(layer)
            fit = Fit.of(regression, takes_constants(work.graph, layer), kept)
            allowed = loss * layer.array().size / total
            result = shared[layer.name] = _shared(fit, layers[reference[layer.name]], kept is not None, allowed)
            layer.set_matrix(result.books.decode(result.codes).reshape(fit.W.shape))
            if takes_constants(work.graph, layer):
                shift_outputs(work, layer, result.shift.reshape(layer.groups, -1))
    return shared


def _shared(fit: Fit, ways: Sequence[Sharing], zero: bool, allowed: float) -> SharedLayer:
    """In the first way whose loss is allowed, or the last."""
    note = ""
    for sharing in ways:
        books, codes = share_for_outputs(fit.W, fit.H, sharing.clusters, sharing.rows, zero)
        W = books.decode(codes)
        if (loss := fit.loss(W)) <= allowed:
            break
        if sharing is not ways[-1]:
            note = f"{sharing.clusters} values would add {loss:.1g}, more than this layer's share"
    return SharedLayer(books, codes.reshape(-1, codes.shape[2]), fit.shift(W), loss, note)
