"""A model with some tensors rounded to 256 levels and all else in float."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from onnxcomp.data import Dataset
from onnxcomp.fidelity import FidelitySums
from onnxcomp.linalg.ranges import Grid
from onnxcomp.model import Model
from onnxcomp.runtime.session import create, run
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Simulation", "simulated"]

# Pairs of QuantizeLinear and DequantizeLinear run as they are. (Where a layer reads one and feeds another, ONNX Runtime
# would round its weights too.)
_UNFUSED = {"session.disable_quant_qdq": "1"}


class Simulation:
    """Tells what rounding tensors of the main graph does to the outputs, weights staying as they are."""

    def __init__(self, model: Model, dataset: Dataset) -> None:
        self._whole, self._dataset = model.skeleton(), dataset
        session = create(self._whole)
        self._wanted = [run(session, feeds) for feeds in dataset.feeds()]

    def sqnr(self, grids: Mapping[str, Grid]) -> float:
        """SQNR of the outputs in dB, the least of all, with these tensors rounded; by their names."""
        session = create(simulated(self._whole, grids), config=_UNFUSED)
        sums = FidelitySums()
        for feeds, wanted in zip(self._dataset.feeds(), self._wanted, strict=True):
            sums.update(wanted, run(session, feeds))
        sqnr = sums.result().sqnr_db
        return -math.inf if math.isnan(sqnr) else sqnr


def simulated(model: Skeleton, grids: Mapping[str, Grid]) -> Skeleton:
    """The model with these tensors rounded, by QuantizeLinear and DequantizeLinear behind each."""
    proto = model.copied()
    graph = proto.graph
    inputs = {entry.name for entry in graph.input}
    rounded = {name: f"{name} (rounded)" if name in inputs else name for name in grids}
    exact = {name: name if name in inputs else f"{name} (exact)" for name in grids}
    pairs = {name: _pair(graph, exact[name], rounded[name], grid) for name, grid in grids.items()}
    ordered = [node for name in grids if name in inputs for node in pairs[name]]
    for node in graph.node:
        changed = onnx.NodeProto.FromString(node.SerializeToString())
        for index, name in enumerate(node.input):
            changed.input[index] = rounded.get(name, name)
        for index, name in enumerate(node.output):
            changed.output[index] = exact.get(name, name)
        ordered.append(changed)
        ordered += [new for name in node.output if name in pairs for new in pairs[name]]
    del graph.node[:]
    graph.node.extend(ordered)
    return Skeleton(proto, model.payloads)


def _pair(graph: onnx.GraphProto, source: str, target: str, grid: Grid) -> list[onnx.NodeProto]:
    scale, zero, codes = (f"{target} ({suffix})" for suffix in ("scale", "zero point", "codes"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(grid[0], np.float32), scale))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(grid[1], np.uint8), zero))
    return [
        onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [codes]),
        onnx.helper.make_node("DequantizeLinear", [codes, scale, zero], [target]),
    ]
