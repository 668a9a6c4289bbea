"""Which layers read channels whose scale may change, and what noise in these channels means to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.integer_plan import make_plans, unsuitable
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rescaling import ScaleUnits
from onnxcomp.model import Model

__all__ = ["Reading", "Source", "readings", "sources"]

Array = np.ndarray[Any, Any]

_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer that can be rounded to 8 bits, its activation, the axis of the channels there, and their units."""

    layer: WeightedLayer
    tensor: gs.Tensor
    axis: int
    units: Array


@dataclass(frozen=True, eq=False)
class Source:
    """A tensor that is rounded, the axis of its channels, their units, and the readings that its noise reaches.

    Noise of variance 1 there has the variance ``gain`` when it gets to a reading.
    """

    tensor: gs.Tensor
    axis: int
    units: Array
    reached: tuple[tuple[int, float], ...]


def readings(layers: Sequence[WeightedLayer], units: ScaleUnits) -> list[Reading]:
    """Layers of the main graph that read channels whose scale may change."""
    found = []
    for layer in layers:
        if layer.nested or unsuitable(layer):
            continue
        tensor = layer.node.inputs[0]
        axis = 1 if layer.kind.startswith("Conv") else units.rank(tensor) - 1
        along = units.along(tensor, axis)
        if along is not None and units.free[along].any():
            found.append(Reading(layer, tensor, axis, along))
    return found


def sources(
    model: Model,
    layers: Sequence[WeightedLayer],
    reading: Sequence[Reading],
    units: ScaleUnits,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[Source]:
    """Tensors that ``quant`` holds as integers, and what else those layers read, where scales may change."""
    suitable = [layer for layer in layers if not layer.nested and not unsuitable(layer)]
    plans = make_plans(model.graph, suitable)
    roots = [root for plan in plans if plan.graph is model.graph for root in plan.distinct_roots()]
    tensors = {id(tensor): tensor for tensor in [*roots, *(item.tensor for item in reading)]}
    found = []
    for tensor in tensors.values():
        wide = [axis for axis, size in enumerate(units.of(tensor).shape) if size > 1]
        along = units.along(tensor, wide[0]) if len(wide) == 1 else None
        if along is not None and units.free[along].any():
            reached = _reached(tensor, set(along[units.free[along]].tolist()), reading, units, shapes)
            found.append(Source(tensor, wide[0], along, tuple(reached)))
    return found


def _reached(
    source: gs.Tensor,
    own: set[int],
    reading: Sequence[Reading],
    units: ScaleUnits,
    shapes: Mapping[str, tuple[int, ...]],
) -> list[tuple[int, float]]:
    """Readings that a tensor's channels come to unrounded by other layers; averages make noise smaller."""
    index_of = {id(item.layer.node): index for index, item in enumerate(reading)}
    found, queue, seen = [], [(source, 1.0)], {id(source)}
    while queue:
        tensor, gain = queue.pop(0)
        for node in tensor.outputs:
            if id(node) in index_of and node.inputs[0] is tensor:
                found.append((index_of[id(node)], gain))
                continue
            for output in node.outputs:
                if id(output) not in seen and own & set(units.of(output).reshape(-1).tolist()):
                    seen.add(id(output))
                    queue.append((output, gain * _averaging(node, tensor, output, shapes)))
    return found


def _averaging(node: gs.Node, before: gs.Tensor, after: gs.Tensor, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Variance of independent noise behind an operator."""
    if node.op not in _AVERAGES:
        return 1.0
    if node.op == "AveragePool":
        kernel: list[int] = node.attrs.get("kernel_shape") or [1]
        return 1.0 / math.prod(kernel)
    return float(math.prod(shapes[after.name]) / max(1, math.prod(shapes[before.name])))
