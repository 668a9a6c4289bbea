"""Let the weights of a layer share few values, of which each weight stores the number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from onnxcomp.graph.rows import RowLayout
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.padding import without_padding
from onnxcomp.runtime.sharing import SharedLayer, Sharing, share_calibrated, share_weights
from onnxcomp.runtime.target import Target

__all__ = ["Share"]

_BITS = {4: 2, 16: 4, 256: 8}
_MOST = 256
_BOOK_SHARE = 1 / 8  # of the codes' bits that codebooks take at most
_LEAST_INPUTS = 16  # of an output; a codebook would span channels whose weights have nothing in common
_LEAST_GAIN = 2.0  # times smaller
_LEAST_WEIGHTS = 512  # smaller ones are not worth the nodes that restore them
_VALUE_BITS = 32  # of a codebook, and of a codebook's place
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

    A weight that several layers use is stored once. It, and what lies in bodies of control-flow nodes or in model-local
    functions, is clustered without regard to the outputs; so are embeddings and recurrent layers.

    A layer stays as it is where its weight is quantized already, or too small for a codebook to pay. Deep Compression
    (Han et al. 2015, arXiv:1510.00149) is ``prune(granularity="element"), share``.
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
        reasons = self._obstacles(model, layers)
        uses: dict[int, list[WeightedLayer]] = {}
        for layer in layers:
            if reasons[layer.name]:
                ctx.skip(layer, reasons[layer.name])
            else:
                uses.setdefault(id(layer.weight), []).append(layer)
        first = [readers[0] for readers in uses.values()]
        found = self._found(model, first, ctx)
        writer = FormWriter(model.graph)
        for layer, readers in zip(first, uses.values(), strict=True):
            shared = found[layer.name]
            if np.any(shared.shift) and takes_constants(model.graph, layer):
                shift_outputs(model, layer, shared.shift.reshape(layer.groups, -1))
            writer.shared(layer, shared.books, shared.codes)
            ctx.act(layer, "shared", _told(shared))
            for reader in readers[1:]:
                ctx.act(reader, "shared", f"its weight is that of {layer.name}")
        writer.finish()

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers = weighted_layers(model)
        reasons = self._obstacles(model, layers).values()
        count = sum(not reason for reason in reasons)
        what = f"the weights of {count} of {len(layers)} layers could share {self.clusters} values each"
        return what + because(filter(None, reasons))

    def _obstacles(self, model: Model, layers: Sequence[WeightedLayer]) -> dict[str, str]:
        """Why layers stay as they are, by name; nothing for those that do not."""
        kept = {id(layer.weight): layer.name for layer in layers if layer.name in self.keep}
        reasons: dict[str, str] = {}
        of_weights: dict[int, str] = {}  # as the first of several readers sees it
        for layer in layers:
            if layer.name in self.keep:
                reasons[layer.name] = "kept, as option keep asks"
            elif id(layer.weight) in kept:
                reasons[layer.name] = f"its weight is also that of {kept[id(layer.weight)]}, which option keep names"
            else:
                if id(layer.weight) not in of_weights:
                    of_weights[id(layer.weight)] = self._obstacle(model, layer)
                reasons[layer.name] = of_weights[id(layer.weight)]
        return reasons

    def _obstacle(self, model: Model, layer: WeightedLayer) -> str:
        """Why a layer's weight cannot be shared, or nothing."""
        if reason := obstacle_to_storing(model.graph, layer):
            return reason
        if reason := obstacle_to_codes(layer, _BITS[self.clusters], opset_of(model.graph, layer)):
            return reason
        rows, inputs = RowLayout.of(layer).size
        if inputs < _LEAST_INPUTS:
            return f"an output has {inputs} weights, too few to share values with others"
        if rows * inputs < _LEAST_WEIGHTS or not _pays(rows, inputs, self.clusters, _rows(rows, inputs, self.clusters)):
            return f"its {rows * inputs:,} weights are too few for codebooks to pay"
        if not _pays(rows, inputs, self.clusters, self._rows(rows, inputs, self.clusters)):
            return (
                f"the {self.group * inputs:,} weights of group={self.group} outputs are too few for a codebook to pay"
            )
        return ""

    def _found(self, model: Model, layers: Sequence[WeightedLayer], ctx: Context) -> dict[str, SharedLayer]:
        """Codebooks and codes by layer; of the weights alone where inputs cannot be observed."""
        ways = {layer: self._ways(layer) for layer in layers}
        total = sum(math.prod(layer.shape) for layer in layers)
        most = math.inf if self.loss is None else self.loss
        allowed = {layer.name: most * math.prod(layer.shape) / total for layer in layers}
        found: dict[str, SharedLayer] = {}
        if ctx.data is not None or self.loss is not None:
            data = without_padding(model, ctx.require_data())
            if calibrated := {layer: ways[layer] for layer in layers if can_be_observed(layer)}:
                found = share_calibrated(model, calibrated, data, allowed, ctx.progress)
        elif layers:
            ctx.warn(_WITHOUT_DATA)
        for layer in layers:
            if layer.name not in found:
                found[layer.name] = share_weights(layer, ways[layer], allowed[layer.name])
        return found

    def _ways(self, layer: WeightedLayer) -> list[Sharing]:
        """What the layer may get, the smallest first."""
        rows, inputs = RowLayout.of(layer).size
        sizes = [self.clusters] if self.loss is None else [self.clusters, _MOST]
        ways = [Sharing(size, self._rows(rows, inputs, size)) for size in dict.fromkeys(sizes)]
        return [way for way in ways if _pays(rows, inputs, way.clusters, way.rows)]

    def _rows(self, rows: int, inputs: int, clusters: int) -> int:
        """Outputs that share a codebook."""
        return min(self.group, rows) if self.group else _rows(rows, inputs, clusters)


def _rows(rows: int, inputs: int, clusters: int) -> int:
    """So many outputs that codebooks are small beside the codes; in runs of equal length where there are such."""
    least = math.ceil(_bits_of_book(clusters) / (_BOOK_SHARE * _BITS[clusters] * inputs))
    if rows < 2 * least:
        return rows
    equal = next((run for run in range(least, 2 * least) if rows % run == 0), None)
    return equal or math.ceil(rows / (rows // least))


def _pays(rows: int, inputs: int, clusters: int, run: int) -> bool:
    """Whether codes of these weights, and a codebook for each run of outputs, are clearly smaller."""
    bits = rows * inputs * _BITS[clusters] + math.ceil(rows / run) * _bits_of_book(clusters)
    return bits * _LEAST_GAIN <= rows * inputs * _VALUE_BITS


def _bits_of_book(clusters: int) -> int:
    """Its values, and its place among the others."""
    return (clusters + 1) * _VALUE_BITS


def _told(shared: SharedLayer) -> str:
    """What was done to a layer."""
    books, size = shared.books.values.shape
    bits = _BITS[size] + books * _bits_of_book(size) / max(1, shared.codes.size)
    loss = "" if shared.loss is None else f"; adds {shared.loss:.1g} of its outputs' variance"
    what = f"{size} values" if books == 1 else f"{books} codebooks of {size} values"
    note = f"; {shared.note}" if shared.note else ""
    return f"{what}, {bits:.2f} bits a weight; restored at load, runs in float{loss}{note}"
