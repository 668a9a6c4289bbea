"""Layers whose weights become products: which forms a layer can have, what they cost, and writing them.

The last factor keeps the node of the layer, with its name, its bias and its output; the others stand before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.edit import Names
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.masks import kept_mask
from onnxcomp.linalg.low_rank import Factors
from onnxcomp.model import Model

__all__ = [
    "Form",
    "Ranks",
    "columns_of",
    "forms_of",
    "joined",
    "kernel_of",
    "macs_of",
    "unfactorizable",
    "write_factors",
]

Array = np.ndarray[Any, Any]
Ranks = tuple[int, ...]

_WITHOUT_C = 11  # the opset since which Gemm needs no third input
_LARGEST = 1e15  # sums of squares are to stay finite


@dataclass(frozen=True)
class Form:
    """How a weight becomes a product.

    Attributes:
        spans: for each spatial axis of a kernel, whether the first factor spans it; empty for a matrix product. The
            second factor has a tap for each position along the other axes.
        middle: whether the second factor is a product of two itself: then it has two ranks (Tucker-2).
    """

    spans: tuple[bool, ...] = ()
    middle: bool = False

    def taps(self, kernel: Sequence[int]) -> int:
        """Of the second factor."""
        return math.prod(size for size, own in zip(kernel, self.spans, strict=True) if not own)

    def described(self, kernel: Sequence[int], ranks: Ranks) -> str:
        """For instance ``3x1 (24), 1x3``: kernels, and in brackets the channels between them."""
        if not kernel:
            return f"two factors of rank {ranks[0]}"
        first, second = _parts(kernel, self.spans)
        ones = [1] * len(kernel)
        kernels = [first, second, ones] if self.middle else [first, second]
        texts = ["x".join(map(str, sizes)) for sizes in kernels]
        between = [f"{text} ({rank})" for text, rank in zip(texts, ranks, strict=False)]
        return ", ".join([*between, texts[-1]])


def unfactorizable(layer: WeightedLayer) -> str | None:
    """Why a layer's weight cannot become a product of smaller ones, or None."""
    if layer.kind == "other":
        return f"{layer.op} does not multiply by a weight matrix that could be a product"
    if layer.nested:
        return f"it lies {layer.place}"
    if layer.quantized or layer.shared:
        return f"its weight is {'quantized already' if layer.quantized else 'shared'}"
    if layer.kind == "ConvTranspose":
        return "transposed convolutions are not factorized"
    if layer.groups > 1:
        return "a grouped or depthwise kernel is not factorized"
    if is_constant(layer.node.inputs[0]):
        return "its input is a constant"
    if layer.array().dtype != np.float32:
        return f"it computes in {layer.array().dtype}, not in float32"
    if min(layer.shape) == 0 or not float(np.abs(layer.array()).max()) < _LARGEST:  # NaN is not, either
        return "its weight is empty, or holds values that are not finite"
    if kept_mask(layer) is not None:
        return "its weight is sparse: factors would fill its zeros"
    return None


def kernel_of(layer: WeightedLayer) -> tuple[int, ...]:
    """Sizes of the kernel; none for a matrix product."""
    return layer.shape[2:] if layer.kind == "Conv" else ()


def forms_of(layer: WeightedLayer) -> list[Form]:
    """All that the weight of a layer can have."""
    kernel = kernel_of(layer)
    wide = [axis for axis, size in enumerate(kernel) if size > 1]
    every = (True,) * len(kernel)
    if not wide:
        return [Form(every)]
    none = (False,) * len(kernel)
    one = [tuple(axis == own for axis in range(len(kernel))) for own in wide] if len(wide) > 1 else []
    return [Form(every), Form(none), *map(Form, one), Form(none, middle=True)]


def joined(layers: Sequence[WeightedLayer]) -> list[list[WeightedLayer]]:
    """Matrix products of one input, that could share a first factor: sets of two or more."""
    found: dict[tuple[Any, ...], list[WeightedLayer]] = {}
    for layer in layers:
        if layer.kind in ("MatMul", "Gemm"):
            key = (id(layer.node.inputs[0]), layer.kind, bool(layer.node.attrs.get("transA", 0)))
            found.setdefault(key, []).append(layer)
    return [group for group in found.values() if len(group) > 1]


def columns_of(layer: WeightedLayer, form: Form) -> Array:
    """Columns of ``layer.matrix()`` in the order (taps of the second factor, inputs of the first)."""
    kernel = kernel_of(layer)
    channels = layer.shape[layer.in_axis]
    places = np.arange(channels * math.prod(kernel)).reshape(channels, *kernel)
    taps = [axis + 1 for axis, own in enumerate(form.spans) if not own]
    own = [axis + 1 for axis, own in enumerate(form.spans) if own]
    return places.transpose(*taps, 0, *own).reshape(-1)


def macs_of(
    layers: Sequence[WeightedLayer], form: Form, ranks: Ranks, read: Sequence[int], given: Sequence[int]
) -> int:
    """Multiply-accumulates of factors.

    Args:
        layers: one, or several that share the first factor.
        form: of them.
        ranks: of the form.
        read, given: shapes of the input and of the output of the first layer in one run.
    """
    lead = layers[0]
    kernel, channels = kernel_of(lead), lead.shape[lead.in_axis]
    outputs = sum(layer.shape[layer.out_axis] for layer in layers)
    if not kernel:
        rows = math.prod(given) // max(1, lead.shape[lead.out_axis])
        return rows * ranks[0] * (channels + outputs)
    first, second = _parts(kernel, form.spans)
    between = [after if own else before for before, after, own in zip(read[2:], given[2:], form.spans, strict=True)]
    batch, positions = given[0], math.prod(given[2:])
    total = ranks[0] * channels * math.prod(first) * math.prod(between)
    if form.middle:
        total += ranks[1] * (ranks[0] * math.prod(second) + outputs) * positions
    else:
        total += outputs * ranks[0] * math.prod(second) * positions
    return batch * total


def write_factors(model: Model, layers: Sequence[WeightedLayer], form: Form, factors: Factors) -> None:
    """Let layers compute with these factors instead of their weights.

    Args:
        model: its main graph holds the layers.
        layers: one, or several ``joined`` ones, whose outputs are the rows of the last factor in their order.
        form: of the factors.
        factors: columns of the first are as ``columns_of`` orders them.
    """
    lead = layers[0]
    read = lead.node.inputs[0]
    writer = _Writer(model, layers)
    second_spans = tuple(not own for own in form.spans)
    value = writer.before(read, "basis", factors.first, form.spans)
    if factors.middle is not None:
        value = writer.before(value, "core", factors.middle, second_spans, by_tap=True)
        second_spans = (False,) * len(form.spans)
    row = 0
    for layer in layers:
        outputs = layer.shape[layer.out_axis]
        writer.last(layer, value, factors.last[row : row + outputs], second_spans)
        row += outputs


class _Writer:
    """Puts nodes before the first of some layers."""

    def __init__(self, model: Model, layers: Sequence[WeightedLayer]) -> None:
        self._graph = model.graph
        self._names = Names(model.graph)
        self._lead = layers[0]
        self._kernel = kernel_of(self._lead)
        self._attributes = dict(self._lead.node.attrs)
        nodes = {id(layer.node) for layer in layers}
        self._place = next(place for place, node in enumerate(model.graph.nodes) if id(node) in nodes)

    def before(
        self, read: gs.Tensor, what: str, factor: Array, spans: tuple[bool, ...], by_tap: bool = False
    ) -> gs.Tensor:
        """A node of its own for a factor; returns what it gives."""
        lead, name = self._lead, self._names.new(f"{self._lead.name}/{what}")
        result = gs.Variable(self._names.new(f"{name}/output"), dtype=lead.array().dtype)
        if self._kernel:
            weight, op, attributes = self._kernels(factor, spans, by_tap), "Conv", self._part(spans)
        else:
            weight, op, attributes = factor.T, "MatMul", {}
        inputs = [read, self._constant(f"{name}/weight", weight)]
        if lead.node.attrs.get("transA", 0) and lead.kind == "Gemm":
            op, attributes = "Gemm", {"transA": 1}
            if int(self._graph.opset or 0) < _WITHOUT_C:
                inputs.append(self._constant(f"{name}/bias", np.zeros(len(factor))))
        self._graph.nodes.insert(self._place, gs.Node(op, name, attributes, inputs, [result]))
        self._place += 1
        return result

    def last(self, layer: WeightedLayer, read: gs.Tensor, factor: Array, spans: tuple[bool, ...]) -> None:
        """The factor that the layer's own node multiplies by."""
        layer.node.inputs[0] = read
        if self._kernel:
            layer.node.attrs.update(self._part(spans))
            layer.set_array(self._kernels(factor, spans, by_tap=True))
            return
        if "transA" in layer.node.attrs:
            layer.node.attrs["transA"] = 0
        layer.set_matrix(factor[None])

    def _constant(self, name: str, value: Array) -> gs.Constant:
        return gs.Constant(self._names.new(name), np.ascontiguousarray(value, dtype=self._lead.array().dtype))

    def _kernels(self, factor: Array, spans: tuple[bool, ...], by_tap: bool) -> Array:
        """A factor as the weight of a convolution; its columns are (taps, channels), or else (channels, positions)."""
        own, _ = _parts(self._kernel, spans)
        if by_tap:
            factor = factor.reshape(len(factor), math.prod(own), -1).swapaxes(1, 2)
        return factor.reshape(len(factor), -1, *own)

    def _part(self, spans: tuple[bool, ...]) -> dict[str, Any]:
        """Attributes of a convolution that spans some axes alone: along the others it reads single positions."""
        rank, attributes = len(spans), self._attributes
        result: dict[str, Any] = {"kernel_shape": list(_parts(self._kernel, spans)[0])}
        for name in ("strides", "dilations"):
            values = attributes.get(name) or [1] * rank
            result[name] = [int(value) if own else 1 for value, own in zip(values, spans, strict=True)]
        if attributes.get("auto_pad", "NOTSET") in ("NOTSET", ""):
            pads = attributes.get("pads") or [0] * (2 * rank)
            result["pads"] = [int(pad) if own else 0 for pad, own in zip(pads, spans * 2, strict=True)]
        else:
            result["auto_pad"] = attributes["auto_pad"]
        return result


def _parts(kernel: Sequence[int], spans: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Kernels of a factor that spans these axes, and of one that spans the others."""
    own = [size if spanned else 1 for size, spanned in zip(kernel, spans, strict=True)]
    other = [1 if spanned else size for size, spanned in zip(kernel, spans, strict=True)]
    return own, other
