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
from onnxcomp.graph.rows import RowLayout
from onnxcomp.linalg.codebooks import Codebooks, share_for_outputs, share_nearest
from onnxcomp.linalg.masked import kept_weights
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.fits import Fit, observe_stage
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.stages import stages

__all__ = ["SharedLayer", "Sharing", "share_calibrated", "share_weights"]

Array = np.ndarray[Any, Any]

_STAGES = 12  # of layers, each of which runs the data once
_MACS = 4e10  # that the samples may take to run once


@dataclass(frozen=True)
class Sharing:
    """How many values a layer's weights may take.

    Attributes:
        clusters: values or vectors of a codebook.
        rows: outputs that share one.
        dim: weights of a vector, divides the inputs; 1 for single values.
    """

    clusters: int
    rows: int
    dim: int = 1

    @property
    def entries(self) -> str:
        """What a codebook has, in words."""
        return f"{self.clusters} values" if self.dim == 1 else f"{self.clusters} vectors of {self.dim}"


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """What a layer computes with instead of its weight and bias.

    Attributes:
        books: of values.
        codes: (channels, inputs / dim), of ``graph.rows.rows_of``.
        shift: to be added to the bias, (channels,).
        loss: what that adds to the layer's outputs, over their variance; None where it was not measured.
        note: why it has others than were asked for, or nothing.
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
    allowed: Mapping[str, float],
    progress: Progress = silent,
) -> dict[str, SharedLayer]:
    """Find codebooks and codes for these layers.

    Args:
        model: in float; not edited.
        layers: of its main graph, those that ``can_be_observed``; with each what it may get, the smallest first.
        dataset: samples to observe them on.
        allowed: by name, what sharing may add to a layer's outputs, over their variance. One that would add more gets
            the next that it may get.
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
            ways = layers[reference[layer.name]]
            result = shared[layer.name] = _shared(fit, ways, kept is not None, allowed[layer.name])
            layer.set_matrix(result.books.decode(result.codes).reshape(fit.W.shape))
            if takes_constants(work.graph, layer):
                shift_outputs(work, layer, result.shift.reshape(layer.groups, -1))
    return shared


def share_weights(layer: WeightedLayer, ways: Sequence[Sharing], allowed: float) -> SharedLayer:
    """Find codebooks of the least error of a layer's weights, and the nearest values' codes.

    Args:
        layer: in float.
        ways: what it may get, the smallest first.
        allowed: squared error of the weights, over their squares, which is what outputs lose of inputs that vary alike.
    """
    rows = RowLayout.of(layer).rows(np.asarray(layer.array()))
    zero = kept_weights(rows) is not None
    power, note = float(np.square(rows, dtype=np.float64).sum()) or 1.0, ""
    for sharing in ways:
        books = share_nearest(rows, np.ones(1), sharing.clusters, sharing.rows, zero, sharing.dim)
        codes = books.codes(rows)
        if allowed == math.inf or (loss := float(np.square(rows - books.decode(codes)).sum()) / power) <= allowed:
            break
        if sharing is not ways[-1]:
            note = f"{sharing.entries} would lose {loss:.1g} of the weights' power, more than this layer's share"
    return SharedLayer(books, codes, np.zeros(len(rows)), None, note)


def _shared(fit: Fit, ways: Sequence[Sharing], zero: bool, allowed: float) -> SharedLayer:
    """In the first way whose loss is allowed, or the last."""
    note = ""
    for sharing in ways:
        books, codes = share_for_outputs(fit.W, fit.H, sharing.clusters, sharing.rows, zero, sharing.dim)
        W = books.decode(codes)
        if (loss := fit.loss(W)) <= allowed:
            break
        if sharing is not ways[-1]:
            note = f"{sharing.entries} would add {loss:.1g}, more than this layer's share"
    return SharedLayer(books, codes.reshape(-1, codes.shape[2]), fit.shift(W), loss, note)
