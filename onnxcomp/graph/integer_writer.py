"""A graph rewritten to an integer plan: grids of activations, weights, biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.bias import shift_added_bias
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import Names, output_ids
from onnxcomp.graph.integer_plan import COMBINES, GATE_LEVELS, IntegerPlan, Site
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.qdq import QdqWriter
from onnxcomp.linalg.int8 import Int8Weights, least_scales, quantize_bias, quantize_weights

__all__ = ["Written", "mean_output_error", "write_plans"]

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
    means: Mapping[int, Array],
    avoid_saturation: bool,
) -> dict[str, Written]:
    """Put plans into the graph and its bodies.

    Args:
        root: the main graph.
        plans: from ``make_plans`` of it.
        grids: scale and zero point by ``id`` of the plans' roots.
        means: by ``id`` of an activation, its mean in each input channel, float64. The mean of the error that
            rounding the weights makes is taken out of the bias (Nagel et al. 2019, "Data-free quantization
            through weight equalization and bias correction", arXiv:1906.04721, section 4.2).
        avoid_saturation: see ``quantize_weights``.

    Returns:
        by name of the layer, what was written.
    """
    names, outputs = Names(root), output_ids(root)
    written = {}
    for plan in plans:
        writer = QdqWriter(plan.graph, names)
        for site in plan.sites:
            scale, mean = _grid_of(site.source, plan, grids)[0], means.get(id(site.source))
            written[site.layer.name] = _write_site(writer, site, scale, mean, avoid_saturation, outputs)
        _write_activations(writer, plan, grids)
        writer.finish()
    root.cleanup()
    return written


def _write_activations(writer: QdqWriter, plan: IntegerPlan, grids: Mapping[int, Grid]) -> None:
    for tensor in plan.tensors:
        grid = _grid_of(tensor, plan, grids)
        if id(tensor) in plan.gates:
            writer.gate(plan.gates[id(tensor)])
        elif id(tensor) in plan.fused:
            writer.result(tensor, *grid)
        else:
            writer.reading(tensor, *grid, plan.readers)
    for node in plan.graph.nodes:
        if id(node) in plan.readers and node.op in COMBINES:
            for index, tensor in enumerate(list(node.inputs)):
                if is_constant(tensor):
                    writer.operand(node, index)


def mean_output_error(layer: WeightedLayer, weights: Int8Weights, means: Array) -> Array:
    """Mean of what rounded weights add to each output, shape (out,), for inputs of these means.

    Padding is left out of account.
    """
    matrix = layer.matrix()
    groups, outs, columns = matrix.shape
    error = weights.codes.astype(np.float64) * weights.scales.astype(np.float64)[:, None]
    error = error.reshape(matrix.shape) - matrix
    per_input = means.reshape(groups, -1)
    kernel = columns // per_input.shape[1]
    summed = error.reshape(groups, outs, per_input.shape[1], kernel).sum(axis=3)
    result: Array = np.einsum("goi,gi->go", summed, per_input).reshape(-1)
    return result


def _grid_of(tensor: gs.Tensor, plan: IntegerPlan, grids: Mapping[int, Grid]) -> Grid:
    root = plan.roots[id(tensor)]
    return (1.0 / GATE_LEVELS, 0) if id(root) in plan.gates else grids[id(root)]


def _write_site(
    writer: QdqWriter,
    site: Site,
    scale: float,
    means: Array | None,
    avoid_saturation: bool,
    outputs: set[int],
) -> Written:
    layer = site.layer
    matrix = layer.matrix()
    rows = matrix.reshape(-1, matrix.shape[-1])
    bias = np.zeros(len(rows))
    if layer.bias is not None:
        bias = np.asarray(value_of(layer.bias), np.float64).reshape(-1)
    weights = quantize_weights(rows, avoid_saturation, least_scales(bias, scale))
    shift = np.zeros(len(rows)) if means is None else -mean_output_error(layer, weights, means)
    if layer.kind == "MatMul":
        shift_added_bias(layer, shift, outputs)
    name = writer.weight(layer, weights)
    if layer.kind != "MatMul" and (layer.bias is not None or np.any(shift)):
        writer.bias(layer, *quantize_bias(bias + shift, scale, weights.scales))
    return Written(name, len(rows), weights.limited)
