"""Measured time of layers that read their input in panels, beside that of the same layers whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.model import Model
from onnxcomp.runtime.layer_times import ordinary_values
from onnxcomp.runtime.pieces import ATTRIBUTES, Builder, Neighbours
from onnxcomp.runtime.timings import TimingTable

__all__ = ["PanelTimes"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

_SECONDS = 0.15  # of timed runs of a pair
_LEAST = 0.02  # of the layer's time: what is less is noise


class PanelTimes:
    """Times layers between others, since ONNX Runtime keeps convolutions in a layout of its own from one to the next.

    A layer stands between convolutions of 1x1 (or, for matrix products, additions), whose own time is measured too and
    taken off. So a Gather that leaves the blocked layout is paid for where it would be.

    Args:
        shapes: of the model's tensors in one run.
        timings: where the times are kept, or come from.
        threads: intra-op threads.
    """

    def __init__(self, shapes: Shapes, timings: TimingTable, threads: int = 1) -> None:
        self._shapes = shapes
        self._timings = timings
        self._threads = threads

    def ratio(self, layer: WeightedLayer, panels: int, channels: int, outputs: int) -> float | None:
        """The layer's time over that of so many panels, each reading so many channels, both with so many outputs.

        None where it is not known and may not be measured, where the shape of the layer's input is not known, or where
        it does not compute in float32.
        """
        shape = self._shapes.get(layer.node.inputs[0].name)
        if shape is None or layer.weight_index != 1 or layer.array().dtype != np.float32:
            return None
        piece = _Piece(layer, shape, outputs)
        whole, feeds = piece.model(), {"x": ordinary_values(piece.fed, np.float32)}
        alone = self._timings.compare(layer.name, whole, piece.empty(), feeds, self._threads, _SECONDS)
        what = f"{layer.name} in {panels} panels of {channels} channels"
        smaller = self._timings.compare(what, whole, piece.model(panels, channels), feeds, self._threads, _SECONDS)
        if alone is None or smaller is None:
            return None
        nothing = 1.0 / alone.ratio
        return max(1.0 - nothing, _LEAST) / max(1.0 / smaller.ratio - nothing, _LEAST)


class _Piece:
    """A layer between narrow neighbours, with weights of ordinary size."""

    def __init__(self, layer: WeightedLayer, shape: Sequence[int], outputs: int) -> None:
        self._layer = layer
        self._outputs = outputs
        self._beside = Neighbours(layer, shape)
        self._inputs = self._beside.inputs
        self.fed = self._beside.fed  # what the piece is fed

    def empty(self) -> Model:
        """The neighbours alone."""
        build = Builder()
        return build.model([self._beside.after(build, self._beside.before(build), self._inputs)], self.fed)

    def model(self, panels: int = 1, channels: int | None = None) -> Model:
        """With the layer, whole or in panels."""
        build, layer = Builder(), self._layer
        value = self._beside.before(build)
        weight = list(layer.shape)
        weight[layer.out_axis] = self._outputs
        attributes = {name: value for name, value in layer.node.attrs.items() if name in ATTRIBUTES}
        if channels is not None:
            chosen = [np.sort((np.arange(channels) * 7 + start) % self._inputs) for start in range(panels)]
            value = build.node("Gather", [value, build.constant(np.concatenate(chosen))], axis=self._beside.axis)
            weight[layer.in_axis] = channels
            if layer.kind == "Conv":
                attributes["group"] = panels
        value = build.node(layer.node.op, [value, build.values(*weight)], **attributes)
        return build.model([self._beside.after(build, value, self._outputs)], self.fed)
