"""Which form each weighted layer gets, and why not a better one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.int8_forms import is_table, obstacle_to_storing
from onnxcomp.graph.integer_plan import unsuitable
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["Division", "Mode", "divide", "is_storable"]

Array = np.ndarray[Any, Any]
Mode: TypeAlias = Literal["auto", "static", "dynamic", "weights"]
# A weight smaller than this is not worth two nodes to restore it.
_LEAST_STORED = 512
_MOST_LOST_IN_HALVES = 2.0**-10  # of the sum of magnitudes; at most half of it where all are large enough


@dataclass
class Division:
    """The forms of all layers.

    Attributes:
        static: activations and weights in 8 bits, between QuantizeLinear and DequantizeLinear.
        dynamic: activations quantized in every run.
        tables: rows of 8-bit integers that are looked up.
        stored: 8-bit weights that are restored when the model is loaded, each with why it is no more than that.
        left: in float, each with the reason.
    """

    static: list[WeightedLayer] = field(default_factory=list)
    dynamic: list[WeightedLayer] = field(default_factory=list)
    tables: list[WeightedLayer] = field(default_factory=list)
    stored: list[tuple[WeightedLayer, str]] = field(default_factory=list)
    left: list[tuple[WeightedLayer, str]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether every layer is left in float."""
        return not (self.static or self.dynamic or self.tables or self.stored)

    def add_half(self, graph: gs.Graph, layer: WeightedLayer) -> None:
        """Store a layer in float16, if it can be."""
        reason = obstacle_to_storing(graph, layer) or _obstacle_to_halving(layer.array())
        if not reason and int(np.prod(layer.shape)) < _LEAST_STORED:
            reason = "its weight is not worth a node to restore it"
        if reason:
            self.left.append((layer, reason))
        else:
            self.stored.append((layer, "bits is 16"))

    def store_instead(self, graph: gs.Graph, layers: Sequence[WeightedLayer], reason: str) -> list[WeightedLayer]:
        """Store these layers, which had a better form; returns those that cannot even be stored."""
        given_up = {id(layer) for layer in layers}
        self.static, self.dynamic, self.tables = (
            [layer for layer in form if id(layer) not in given_up] for form in (self.static, self.dynamic, self.tables)
        )
        self.stored += [(layer, reason) for layer in layers if is_storable(graph, layer)]
        left = [layer for layer in layers if not is_storable(graph, layer)]
        self.left += [(layer, reason) for layer in left]
        return left


def divide(
    graph: gs.Graph,
    layers: Sequence[WeightedLayer],
    mode: Mode,
    keep: Collection[str],
    calibrated: bool,
    halves: bool = False,
) -> Division:
    """Choose a form for each layer.

    Args:
        graph: the main graph.
        layers: all weighted layers of the model.
        mode: the forms to use: ``auto`` is static, but dynamic for MatMuls where these hold most weights, and
            without data; ``weights`` stores every layer.
        keep: names of layers to leave in float, with all that share their weights.
        calibrated: whether there are samples to find ranges of activations on.
        halves: store every layer, in float16.
    """
    division = Division()
    dynamic = _dynamic_kinds(layers, mode, calibrated)
    no_range = "mode is dynamic" if calibrated else "there is no calibration data"
    kept = {id(layer.weight) for layer in layers if layer.name in keep}
    for layer in layers:
        reason = unsuitable(layer) or ("mode is weights" if mode == "weights" else "")
        if layer.name in keep:
            division.left.append((layer, "kept in float, as option keep asks"))
        elif id(layer.weight) in kept:
            division.left.append((layer, "its weight is also that of a layer that option keep names"))
        elif halves:
            division.add_half(graph, layer)
        elif is_table(layer) and is_storable(graph, layer):
            division.tables.append(layer)
        elif reason and not is_storable(graph, layer):
            division.left.append((layer, reason))
        elif reason:
            division.stored.append((layer, reason))
        elif layer.kind in dynamic:
            division.dynamic.append(layer)
        elif calibrated and mode != "dynamic":
            division.static.append(layer)
        elif is_storable(graph, layer):
            division.stored.append((layer, f"{no_range}, and Conv has no fast dynamic integer kernel"))
        else:
            division.left.append((layer, no_range))
    return division


def is_storable(graph: gs.Graph, layer: WeightedLayer) -> bool:
    """Whether the weight may be kept in 8 bits and restored by nodes beside the layer, and is worth it."""
    return int(np.prod(layer.shape)) >= _LEAST_STORED and not obstacle_to_storing(graph, layer)


def _obstacle_to_halving(array: Array) -> str:
    """Why float16 does not hold these finite weights, or nothing."""
    magnitudes = np.abs(array)
    if float(magnitudes.max(initial=0.0)) > float(np.finfo(np.float16).max):
        return "its largest weights are beyond 65504"
    lost = np.abs(array - array.astype(np.float16).astype(array.dtype)).sum(dtype=np.float64)
    if lost > _MOST_LOST_IN_HALVES * magnitudes.sum(dtype=np.float64):
        return "its weights are too small for float16, which has steps of 6e-8 near zero"
    return ""


def _dynamic_kinds(layers: Sequence[WeightedLayer], mode: Mode, calibrated: bool) -> set[str]:
    """Kinds of layers whose activations are to be quantized in every run."""
    candidates = [layer for layer in layers if not unsuitable(layer)]
    total = sum(np.prod(layer.shape) for layer in candidates)
    matmuls = sum(np.prod(layer.shape) for layer in candidates if layer.kind == "MatMul")
    kinds = {"MatMul", "Gemm"} if mode == "dynamic" or not calibrated else set()
    if mode == "auto" and 2 * matmuls > total:
        kinds.add("MatMul")
    return kinds
