"""A graph rewritten to an integer plan: grids of activations, weights, biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.bias import shift_added_bias
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import Names, output_ids
from onnxcomp.graph.integer_grids import SettledGrids, settle
from onnxcomp.graph.integer_ops import COMBINES
from onnxcomp.graph.integer_plan import IntegerPlan, Site
from onnxcomp.graph.qdq import QdqWriter
from onnxcomp.graph.rounding import RoundedLayer
from onnxcomp.linalg.int8 import least_scales, quantize_bias, with_least_scales

__all__ = ["Written", "write_plans"]

Array = np.ndarray[Any, Any]
Grid = tuple[float, int]


@dataclass(frozen=True)
class Written:
    """What became of a layer.

    Attributes:
        constant: name of its 8-bit weight.
        channels, limited: output channels, and those with fewer levels so that sums cannot saturate.
    """

    constant: str
    channels: int
    limited: int


def write_plans(
    root: gs.Graph,
    plans: Sequence[IntegerPlan],
    grids: Mapping[int, Grid],
    rounded: Mapping[str, RoundedLayer],
) -> dict[str, Written]:
    """Put plans into the graph and its bodies.

    Args:
        root: the main graph.
        plans: from ``make_plans`` of it.
        grids: scale and zero point by ``id`` of the plans' roots.
        rounded: weights and corrections of biases, by name of the plans' layers.

    Returns:
        by name of the layer, what was written.
    """
    names, outputs = Names(root), output_ids(root)
    written = {}
    for plan in plans:
        writer, settled = QdqWriter(plan.graph, names), settle(plan, grids)
        for site in plan.sites:
            layer = _with_missing(rounded[site.layer.name], settled.missing.get(id(site.source), 0.0))
            scale = settled.grids[id(site.source)][0]
            written[site.layer.name] = _write_site(writer, site, scale, layer, outputs)
        _write_activations(writer, plan, settled)
        writer.finish()
    root.cleanup()
    return written


def _write_activations(writer: QdqWriter, plan: IntegerPlan, settled: SettledGrids) -> None:
    for tensor in plan.tensors:
        key, grid = id(tensor), settled.grids[id(tensor)]
        if key in plan.given:
            writer.given(tensor, plan.given[key], plan.readers)
        elif key in settled.shared:
            writer.reread(tensor, plan.rereads[key].source, *grid)
        elif key in plan.upsamplings:
            writer.upsample(tensor, plan.moves[key], plan.upsamplings[key], *grid)
        elif key in plan.gates and plan.gates[key].op == "HardSigmoid":
            writer.hard_sigmoid(plan.gates[key], *grid)
        elif key in plan.kernels:
            writer.result(tensor, *grid)
        else:
            writer.reading(tensor, *grid, plan.readers)
    for node in plan.graph.nodes:
        if id(node) in plan.readers and node.op in COMBINES:
            for index, tensor in enumerate(list(node.inputs)):
                if is_constant(tensor):
                    writer.operand(node, index)


def _with_missing(rounded: RoundedLayer, missing: float) -> RoundedLayer:
    """The layer for an activation that lacks a constant, which padding is left out of account for."""
    if not missing:
        return rounded
    sums = rounded.weights.codes.sum(axis=1, dtype=np.int64) * rounded.weights.scales.astype(np.float64)
    return replace(rounded, shift=rounded.shift + missing * sums)


def _write_site(writer: QdqWriter, site: Site, scale: float, rounded: RoundedLayer, outputs: set[int]) -> Written:
    layer, weights = site.layer, rounded.weights
    if layer.kind == "MatMul":
        shift_added_bias(layer, rounded.shift, outputs)
        return Written(writer.weight(layer, weights), len(weights.scales), weights.limited)
    bias = np.zeros(len(weights.scales))
    if layer.bias is not None:
        bias = np.asarray(value_of(layer.bias), np.float64).reshape(-1)
    weights = with_least_scales(weights, least_scales(bias + rounded.shift, scale))
    name = writer.weight(layer, weights)
    if layer.bias is not None or np.any(rounded.shift):
        writer.bias(layer, *quantize_bias(bias + rounded.shift, scale, weights.scales))
    return Written(name, len(weights.scales), weights.limited)
