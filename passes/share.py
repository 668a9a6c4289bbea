"""Let the weights of a layer share few values, of which each weight stores the number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from onnxcomp.context import Context
from onnxcomp.errors import PassError
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.int8_forms import FormWriter, obstacle_to_storing, opset_of
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.packed import obstacle_to_codes
from onnxcomp.graph.rows import rows_of
from onnxcomp.linalg.codebooks import share_nearest
from onnxcomp.linalg.masked import kept_weights
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.sharing import SharedLayer, Sharing, share_calibrated
from onnxcomp.runtime.target import Target

__all__ = ["Share"]

_BITS = {4: 2, 16: 4, 256: 8}
_MOST = 256
_BOOK_SHARE = 1 / 8  # of the codes' bits that codebooks take at most
_LEAST_INPUTS = 16  # of an output; a codebook would span channels whose weights have nothing in common
_LEAST_GAIN = 2.0  # times smaller
_LEAST_WEIGHTS = 512  # smaller ones are not worth the nodes that restore them
_VALUE_BITS = 32  # of a codebook
_WITHOUT_DATA = "share has no calibration data: codebooks are of the least error of the weights, not of the outputs"


class Share(Pass):
    """Cluster the weights of each layer into a codebook of few values, and store their numbers.

    The file becomes smaller: with 16 values, 4 bits are left of a weight. ONNX Runtime restores the weights when it
    loads the model, so it takes the time and the memory that it took before.

    In turn:

    1. Values begin as the clusters of the least squared error of the weights, weighted by how much their inputs vary
       (Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629).
    2. Each weight gets one of them so that the layer's outputs change least: errors are made up for by weights to come
       (GPTQ, Frantar et al. 2023, arXiv:2210.17323). Then the best values for these numbers, in closed form, and better
       numbers for these values, follow in turn.
    3. Layers are treated one after the other on the inputs that the layers before them, done already, really give, and
       biases take up what changed in the means.

    Weights that an earlier pass made zero stay zero. Codes are stored as UINT2 (from operator set 25), UINT4 (from 21)
    or UINT8; in older operator sets several share a byte.

    A layer stays as it is where its weight is shared with other uses, quantized already, or too small for a
    codebook to pay. Deep Compression (Han et al. 2015, arXiv:1510.00149) is ``prune(granularity="element"), share``.
    """

    name: ClassVar[str] = "share"
    stage: ClassVar[Stage] = Stage.SHARE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    clusters: Literal[4, 16, 256] = Field(16, description="values of a codebook")
    group: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="outputs that share a codebook; 0: so many that codebooks take an eighth of the codes at most"
    )
    loss: Annotated[float | None, Field(ge=0)] = Field(
        None,
        description="part of the outputs' variance that sharing may cost (needs data); layers over their share of it "
        "get 256 values; by default no limit",
    )
    keep: tuple[str, ...] = Field((), description="names of layers to leave as they are")

    def run(self, model: Model, ctx: Context) -> None:
        """Share the weights' values in place; see the class.

        Raises:
            InputError: the model does not run on the calibration data.
            PassError: a layer to keep is none of the model's; or a loss needs calibration data, and there is none.
        """
        layers = weighted_layers(model)
        if unknown := set(self.keep).difference(layer.name for layer in layers):
            raise PassError(f"share: option keep names {min(unknown)!r}, which is no weighted layer of this model")
        reasons = {layer.name: self._obstacle(model, layer) for layer in layers}
        chosen = {layer: self._ways(layer) for layer in layers if not reasons[layer.name]}
        found: dict[str, SharedLayer] = {}
        if ctx.data is not None or self.loss is not None:
            calibrated = {layer: ways for layer, ways in chosen.items() if can_be_observed(layer)}
            most = math.inf if self.loss is None else self.loss
            found = share_calibrated(model, calibrated, ctx.require_data(), most, ctx.progress) if calibrated else {}
        elif chosen:
            ctx.warn(_WITHOUT_DATA)
        writer = FormWriter(model.graph)
        for layer in layers:
            if reasons[layer.name]:
                ctx.skip(layer, reasons[layer.name])
                continue
            shared = found.get(layer.name) or _nearest(layer, chosen[layer][0])
            if np.any(shared.shift) and takes_constants(model.graph, layer):
                shift_outputs(model, layer, shared.shift.reshape(layer.groups, -1))
            writer.shared(layer, shared.books, shared.codes)
            ctx.act(layer, "shared", _told(shared))
        writer.finish()

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers = weighted_layers(model)
        reasons = [self._obstacle(model, layer) for layer in layers]
        count = sum(not reason for reason in reasons)
        what = f"the weights of {count} of {len(layers)} layers could share {self.clusters} values each"
        return what + because(filter(None, reasons))

    def _obstacle(self, model: Model, layer: WeightedLayer) -> str:
        """Why a layer stays as it is, or nothing."""
        if layer.name in self.keep:
            return "kept, as option keep asks"
        if layer.nested:
            return f"it lies {layer.place}"
        if layer.shared:
            return "its weight has other uses too"
        if reason := obstacle_to_storing(model.graph, layer):
            return reason
        if reason := obstacle_to_codes(layer, _BITS[self.clusters], opset_of(model.graph, layer)):
            return reason
        rows, inputs = rows_of(layer).shape
        if inputs < _LEAST_INPUTS:
            return f"an output has {inputs} weights, too few to share values with others"
        if rows * inputs < _LEAST_WEIGHTS or not self._pays(rows, inputs, self.clusters):
            return f"its {rows * inputs:,} weights are too few for codebooks to pay"
        return ""

    def _ways(self, layer: WeightedLayer) -> list[Sharing]:
        """What the layer may get, the smallest first."""
        rows, inputs = rows_of(layer).shape
        sizes = [self.clusters] if self.loss is None else [self.clusters, _MOST]
        wanted = dict.fromkeys(size for size in sizes if self._pays(rows, inputs, size))
        return [Sharing(size, self._rows(rows, inputs, size)) for size in wanted]

    def _pays(self, rows: int, inputs: int, clusters: int) -> bool:
        books = math.ceil(rows / self._rows(rows, inputs, clusters))
        bits = rows * inputs * _BITS[clusters] + books * clusters * _VALUE_BITS
        return bits * _LEAST_GAIN <= rows * inputs * _VALUE_BITS

    def _rows(self, rows: int, inputs: int, clusters: int) -> int:
        """Outputs that share a codebook."""
        if self.group:
            return min(self.group, rows)
        least = math.ceil(clusters * _VALUE_BITS / (_BOOK_SHARE * _BITS[clusters] * inputs))
        return math.ceil(rows / max(1, rows // least))  # of equal size, as far as that goes


def _told(shared: SharedLayer) -> str:
    """What was done to a layer."""
    books, size = shared.books.values.shape
    bits = _BITS[size] + books * size * _VALUE_BITS / max(1, shared.codes.size)
    loss = "" if shared.loss is None else f"; adds {shared.loss:.1g} of its outputs' variance"
    what = f"{size} values" if books == 1 else f"{books} codebooks of {size} values"
    note = f"; {shared.note}" if shared.note else ""
    return f"{what}, {bits:.2f} bits a weight; restored at load, runs in float{loss}{note}"


def _nearest(layer: WeightedLayer, sharing: Sharing) -> SharedLayer:
    """Clusters of the weights alone."""
    rows = rows_of(layer)
    books = share_nearest(rows, np.ones(1), sharing.clusters, sharing.rows, kept_weights(rows) is not None)
    return SharedLayer(books, books.codes(rows), np.zeros(len(rows)))
