"""Let the weights of a layer share few values, of which each weight stores the number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from onnxcomp.linalg.masked import kept_weights
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
    """Cluster the weights of each layer into a codebook of few values or vectors, and store their numbers.

    The file becomes smaller: with 16 values, 4 bits are left of a weight, and with 256 vectors of 4 weights, 2. ONNX
    Runtime restores the weights when it loads the model, so it takes the time and the memory that it took before.

    In turn:

    1. Values begin as the clusters of the least squared error of the weights, weighted by how much their inputs vary
       (Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629).
    2. Each weight gets one of them so that the layer's outputs change least: errors are made up for by weights to come
       (GPTQ, Frantar et al. 2023, arXiv:2210.17323). Then the best values for these numbers, in closed form, and better
       numbers for these values, follow in turn.
    3. Layers are treated one after the other on the inputs that the layers before them, done already, really give, and
       biases take up what changed in the means.

    With ``dim`` a number stands for 2 or 4 neighbouring weights of an output (vector quantization, Gersho and Gray
    1992, Gong et al. 2014, arXiv:1412.6115), and errors are made up for by vectors to come (GPTVQ, van Baalen et al.
    2024, arXiv:2402.15319). A layer's vectors are shorter where its inputs are no multiple of that, or where the
    codebook would take more than it saves.

    Weights that an earlier pass made zero stay zero; a layer with many of them gets single values in any case. Codes
    are stored as UINT2 (from operator set 25), UINT4 (from 21) or UINT8; in older operator sets several share a byte.

    A weight that several layers use is stored once. It, and what lies in bodies of control-flow nodes or in model-local
    functions, is clustered without regard to the outputs; so are embeddings and recurrent layers.

    A layer stays as it is where its weight is quantized already, or too small for a codebook to pay. Deep Compression
    (Han et al. 2015, arXiv:1510.00149) is ``prune(granularity="element"), share``.
    """

    name: ClassVar[str] = "share"
    stage: ClassVar[Stage] = Stage.SHARE
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    clusters: Literal[4, 16, 256] = Field(16, description="values of a codebook, or vectors of one")
    dim: Literal[1, 2, 4] = Field(1, description="weights of a vector; 1: each weight has a number of its own")
    group: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="outputs that share a codebook; 0: so many that codebooks take an eighth of the codes at most"
    )
    loss: Annotated[float | None, Field(ge=0)] = Field(
        None,
        description="part of the outputs' variance that sharing may cost (needs data); layers over their share of it "
        "get 256 values, or shorter vectors; by default no limit",
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
            told = _told(shared, self._narrowed(layer, shared))
            writer.shared(layer, shared.books, shared.codes)
            ctx.act(layer, "shared", told)
            for reader in readers[1:]:
                ctx.act(reader, "shared", f"its weight is that of {layer.name}")
        writer.finish()

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers = weighted_layers(model)
        reasons = self._obstacles(model, layers).values()
        count = sum(not reason for reason in reasons)
        entries = Sharing(self.clusters, 0, self.dim).entries
        what = f"the weights of {count} of {len(layers)} layers could share {entries} each"
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
        widths = self._widths(layer, opset_of(model.graph, layer))
        pays = (_pays(rows, inputs, _of_length(rows, inputs, self.clusters, dim)) for dim in widths)
        if rows * inputs < _LEAST_WEIGHTS or not any(pays):
            return f"its {rows * inputs:,} weights are too few for codebooks to pay"
        if not self._ways(model, layer):
            return (
                f"the {self.group * inputs:,} weights of group={self.group} outputs are too few for a codebook to pay"
            )
        return ""

    def _found(self, model: Model, layers: Sequence[WeightedLayer], ctx: Context) -> dict[str, SharedLayer]:
        """Codebooks and codes by layer; of the weights alone where inputs cannot be observed."""
        ways = {layer: self._ways(model, layer) for layer in layers}
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

    def _ways(self, model: Model, layer: WeightedLayer) -> list[Sharing]:
        """What the layer may get, the smallest first: nothing where no codebook pays."""
        rows, inputs = RowLayout.of(layer).size
        widths = self._widths(layer, opset_of(model.graph, layer))
        wanted = [self._sharing(rows, inputs, self.clusters, dim) for dim in widths]
        ways = [min(wanted, key=lambda way: _bits(rows, inputs, way))]
        if self.loss is not None:
            more = [self._sharing(rows, inputs, _MOST, dim) for dim in widths]
            ways += [way for way in more if _bits_of_code(way) > _bits_of_code(ways[0])]
        return [way for way in ways if _pays(rows, inputs, way)]

    def _widths(self, layer: WeightedLayer, opset: int) -> list[int]:
        """Lengths of vectors that the layer may have, the longest first; 1 is always among them."""
        inputs = RowLayout.of(layer).size[1]
        if self.dim > 1 and _is_sparse(layer):
            return [1]
        lengths = [dim for dim in (4, 2) if dim <= self.dim and inputs % dim == 0]
        return [dim for dim in lengths if not obstacle_to_codes(layer, _BITS[self.clusters], opset, dim)] + [1]

    def _sharing(self, rows: int, inputs: int, clusters: int, dim: int) -> Sharing:
        """With as many outputs to a codebook as the option asks for."""
        if self.group:
            return Sharing(clusters, min(self.group, rows), dim)
        return _of_length(rows, inputs, clusters, dim)

    def _narrowed(self, layer: WeightedLayer, shared: SharedLayer) -> str:
        """Why a layer's vectors are shorter than asked for, or nothing."""
        if shared.note or shared.books.width >= self.dim:
            return shared.note
        inputs = RowLayout.of(layer).size[1]
        if shared.books.zero:
            return "single values, so that its zeros stay"
        if inputs % self.dim:
            return f"its {inputs} weights of an output are no multiple of {self.dim}"
        return f"a codebook of vectors of {self.dim} would take more than it saves"


def _is_sparse(layer: WeightedLayer) -> bool:
    """Whether zeros of the layer are meant to stay."""
    return kept_weights(RowLayout.of(layer).rows(np.asarray(layer.array()))) is not None


def _of_length(rows: int, inputs: int, clusters: int, dim: int) -> Sharing:
    """So many outputs that codebooks are small beside the codes; in runs of equal length where there are such."""
    way = Sharing(clusters, rows, dim)
    least = math.ceil(_bits_of_book(way) / (_BOOK_SHARE * _bits_of_code(way) * inputs))
    if rows < 2 * least:
        return way
    equal = next((run for run in range(least, 2 * least) if rows % run == 0), None)
    return replace(way, rows=equal or math.ceil(rows / (rows // least)))


def _pays(rows: int, inputs: int, way: Sharing) -> bool:
    """Whether codes of these weights, and a codebook for each run of outputs, are clearly smaller."""
    return _bits(rows, inputs, way) * _LEAST_GAIN <= rows * inputs * _VALUE_BITS


def _bits(rows: int, inputs: int, way: Sharing) -> float:
    """Of the codes of these weights, and of the codebooks."""
    return rows * inputs * _bits_of_code(way) + math.ceil(rows / way.rows) * _bits_of_book(way)


def _bits_of_code(way: Sharing) -> float:
    """For a weight."""
    return _BITS[way.clusters] / way.dim


def _bits_of_book(way: Sharing) -> int:
    """Its values, and its place among the others."""
    return (way.clusters * way.dim + 1) * _VALUE_BITS


def _told(shared: SharedLayer, note: str) -> str:
    """What was done to a layer."""
    books, size, dim = shared.books.values.shape
    way = Sharing(size, shared.books.rows, dim)
    bits = _bits_of_code(way) + books * _bits_of_book(way) / max(1, shared.codes.size * dim)
    loss = "" if shared.loss is None else f"; adds {shared.loss:.1g} of its outputs' variance"
    what = way.entries if books == 1 else f"{books} codebooks of {way.entries}"
    return f"{what}, {bits:.2f} bits a weight; restored at load, runs in float{loss}{'; ' if note else ''}{note}"
