"""Measured time of layers whose weights are products, beside that of the same layers whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.factors import Form, Ranks, kernel_of, write_factors
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.linalg.low_rank import Factors
from onnxcomp.model import Model
from onnxcomp.runtime.layer_times import ordinary_values
from onnxcomp.runtime.pieces import ATTRIBUTES, Builder, Neighbours
from onnxcomp.runtime.timings import TimingTable

__all__ = ["FactorTimes", "LayerTime", "ordinary_factors"]

Shapes = Mapping[str, tuple[int, ...]]

_SECONDS = 0.15  # of timed runs of a pair
_LEAST = 0.02  # of the layer's time: what is less is noise
_NAME = "layer"


@dataclass(frozen=True)
class LayerTime:
    """Of layers as products.

    Attributes:
        whole_ms: milliseconds of the layers as they were, without their neighbours.
        ratio: of that time over the time as products.
    """

    whole_ms: float
    ratio: float


class FactorTimes:
    """Times layers between others, as ``PanelTimes`` does.

    Args:
        shapes: of the model's tensors in one run.
        timings: where the times are kept, or come from.
        threads: intra-op threads.
    """

    def __init__(self, shapes: Shapes, timings: TimingTable, threads: int = 1) -> None:
        self._shapes = shapes
        self._timings = timings
        self._threads = threads

    def of(self, layers: Sequence[WeightedLayer], form: Form, ranks: Ranks) -> LayerTime | None:
        """Of one layer, or of several that share their first factor; None where it may not be measured.

        Args:
            layers: float32, of the main graph; the shape of their input is known.
            form: that they are to have.
            ranks: of the form.
        """
        piece = _Piece(layers, self._shapes[layers[0].node.inputs[0].name])
        whole, feeds = piece.model(), {"x": ordinary_values(piece.fed, np.float32)}
        names = " and ".join(layer.name for layer in layers)
        alone = self._timings.compare(names, whole, piece.empty(), feeds, self._threads, _SECONDS)
        what = f"{names} as {form.described(kernel_of(layers[0]), ranks)}"
        timed = self._timings.compare(what, whole, piece.factorized(form, ranks), feeds, self._threads, _SECONDS)
        if alone is None or timed is None:
            return None
        nothing = 1.0 / alone.ratio
        own = max(1.0 - nothing, _LEAST)
        # From the one comparison that all forms share: load comes and goes between measurements.
        return LayerTime(alone.before_ms * own, own / max(1.0 / timed.ratio - nothing, _LEAST))


class _Piece:
    """Layers of one input between narrow neighbours, with weights of ordinary size."""

    def __init__(self, layers: Sequence[WeightedLayer], shape: Sequence[int]) -> None:
        self._layers = layers
        self._beside = Neighbours(layers[0], shape)
        self.fed = self._beside.fed  # what the piece is fed

    def empty(self) -> Model:
        """The neighbours alone."""
        build = Builder()
        value = self._beside.before(build)
        outputs = [self._beside.after(build, value, self._beside.inputs) for _ in self._layers]
        return build.model(outputs, self.fed)

    def model(self) -> Model:
        """With the layers whole. Their names are the same whatever the model: equal layers are timed once."""
        build = Builder()
        value, outputs = self._beside.before(build), []
        for index, layer in enumerate(self._layers):
            attributes = {name: value for name, value in layer.node.attrs.items() if name in ATTRIBUTES}
            weight = build.values(*layer.shape)
            result = build.node(layer.node.op, [value, weight], f"{_NAME}{index}", **attributes)
            outputs.append(self._beside.after(build, result, layer.shape[layer.out_axis]))
        return build.model(outputs, self.fed)

    def factorized(self, form: Form, ranks: Ranks) -> Model:
        """With the layers as products."""
        model = self.model()
        layers = [layer for layer in weighted_layers(model) if layer.name.startswith(_NAME)]
        write_factors(model, layers, form, ordinary_factors(layers, form, ranks))
        return model


def ordinary_factors(layers: Sequence[WeightedLayer], form: Form, ranks: Ranks) -> Factors:
    """Factors of ordinary size, to time a model with."""
    kernel = kernel_of(layers[0])
    inputs = layers[0].matrix().shape[2]
    outputs = sum(layer.shape[layer.out_axis] for layer in layers)
    taps = form.taps(kernel)
    first = ordinary_values((ranks[0], inputs // taps), np.float32)
    if not form.middle:
        return Factors(first, ordinary_values((outputs, taps * ranks[0]), np.float32))
    middle = ordinary_values((ranks[1], taps * ranks[0]), np.float32)
    return Factors(first, ordinary_values((outputs, ranks[1]), np.float32), middle)
