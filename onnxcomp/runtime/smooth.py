"""Activations of MatMuls smoothed before they are rounded in every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.bodies import graphs_of_nodes
from onnxcomp.graph.divisors import divide_channels
from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.smoothing import Treatment, treatments
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.statistics import observe_anywhere

__all__ = ["Spans", "smooth"]

Array = np.ndarray[Any, Any]

# Treating an activation costs time. A cheaper treatment may leave twice the least, or exceed it by this part of all.
_NEGLIGIBLE = 0.08


class Spans:
    """Least and largest value, mean and mean square of each channel, the last axis."""

    def __init__(self) -> None:
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)
        self.mean: Array = np.zeros(0)
        self.square: Array = np.zeros(0)
        self.count = 0

    def expect(self, updates: int) -> None:
        """Of no use here."""

    def update(self, array: Array) -> None:
        """Take in one batch."""
        rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if not len(rows):
            return
        low, high, mean, square = rows.min(axis=0), rows.max(axis=0), rows.mean(axis=0), np.square(rows).mean(axis=0)
        if self.count:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
            part = len(rows) / (self.count + len(rows))
            mean, square = self.mean + (mean - self.mean) * part, self.square + (square - self.square) * part
        self.low, self.high, self.mean, self.square, self.count = low, high, mean, square, self.count + len(rows)

    @property
    def usable(self) -> bool:
        """Whether values were seen, all of them finite."""
        return self.count > 0 and bool(np.isfinite(self.square).all())

    @property
    def variance(self) -> float:
        """Of all channels together."""
        return float((self.square - np.square(self.mean)).sum())


@dataclass
class _Shared:
    """An activation and the layers that read it."""

    layers: list[WeightedLayer]
    treatments: list[Treatment]
    variance: float

    def noise(self, treatment: Treatment) -> float:
        """Over the variance of the outputs, summed over the layers as if these were alike."""
        return treatment.error / self.variance * len(self.layers)

    @property
    def least(self) -> float:
        return min(self.noise(treatment) for treatment in self.treatments)


def smooth(
    model: Model, layers: Sequence[WeightedLayer], dataset: Dataset, progress: Progress = silent
) -> dict[str, str]:
    """Divide activations of MatMuls and Gemms by channel, and keep channels apart, where that leaves much less noise.

    It is exactly made up for. Layers that read one activation share the treatment, which is nodes of its own. Each
    activation gets the cheapest that is about as good, in the sum over all layers, as the best.

    Args:
        model: edited in place.
        layers: whose activations are to be rounded with one scale, each weight of which is its own.
        dataset: what to find the activations' spans on.
        progress: shows the batches.

    Returns:
        by name of the layers that read a treated activation, what was done.

    Raises:
        InputError: the model does not run on the data.
    """
    graph_of, outputs = graphs_of_nodes(model.graph), output_ids(model.graph)
    groups = _groups(layers, graph_of, _observed(model, layers, dataset, progress))
    allowed = _NEGLIGIBLE * sum(group.least for group in groups)
    done: dict[str, str] = {}
    for group in groups:
        limit = group.least + max(group.least, allowed)
        chosen = next(treatment for treatment in group.treatments if group.noise(treatment) <= limit)
        if chosen.is_none:
            continue
        graph = graph_of[id(group.layers[0].node)]
        divide_channels(model.graph, graph, group.layers, chosen.divisors, chosen.apart, outputs)
        what = _described(chosen, group.treatments[0])
        done.update(dict.fromkeys((layer.name for layer in group.layers), what))
    return done


def _groups(layers: Sequence[WeightedLayer], graph_of: dict[int, Any], spans: dict[int, Spans]) -> list[_Shared]:
    readers: dict[tuple[int, int], list[WeightedLayer]] = {}
    for layer in layers:
        readers.setdefault((id(graph_of[id(layer.node)]), id(layer.node.inputs[0])), []).append(layer)
    groups = []
    for (_, source), sharing in readers.items():
        inputs = spans[source]
        results = [spans[id(layer.node.outputs[0])] for layer in sharing]
        if not inputs.usable or not all(result.usable for result in results):
            continue
        variance = sum(result.variance for result in results)
        if variance > 0:
            W = np.concatenate([layer.matrix()[0] for layer in sharing])
            groups.append(_Shared(sharing, treatments(W, inputs.low, inputs.high, inputs.square), variance))
    return groups


def _described(chosen: Treatment, nothing: Treatment) -> str:
    gain = 10 * math.log10(nothing.error / chosen.error) if chosen.error > 0 else math.inf
    apart = f", {len(chosen.apart)} of them apart in float" if len(chosen.apart) else ""
    return f"channels of the activation smoothed{apart}, for {gain:.1f} dB less error"


def _observed(model: Model, layers: Sequence[WeightedLayer], dataset: Dataset, progress: Progress) -> dict[int, Spans]:
    """By ``id`` of the layers' activations and results."""
    spans = {id(tensor): Spans() for layer in layers for tensor in (layer.node.inputs[0], layer.node.outputs[0])}
    observe_anywhere(model, dataset, {key: [span] for key, span in spans.items()}, progress)
    return spans
