"""Tiles of weights dropped: which channels each panel of a layer's outputs goes on reading."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.cost import cost
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.masks import kept_mask
from onnxcomp.graph.panels import most_panels
from onnxcomp.graph.tiling import untileable
from onnxcomp.linalg.patterns import Panels
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.panel_times import PanelTimes
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.sparsify import Sparsified, sparsify
from onnxcomp.runtime.sparsity_plan import LossCurves, loss_curves

__all__ = ["TilePruning", "TilePlan"]

Array = np.ndarray[Any, Any]

PAYS = 1.03  # a form must be that many times as fast as what it replaces
_NEARLY = 0.95  # more panels are taken where they are about as fast as fewer: their loss is less
_USUAL = 0.5  # density at which forms are timed before it is known
_STAGES = 12
_MACS, _PROBE_MACS = 2e11, 1e10
_BISECTIONS = 12


@dataclass(frozen=True)
class TilePlan:
    """What a layer becomes.

    Attributes:
        panels: of its outputs.
        channels: that each panel reads, of ``inputs``.
        ratio: measured time of the layer over that of the panels; None where the channels that it does not read are
            no longer computed either, or nothing was measured.
        alone: it alone reads its input channels, so those that go are gone from the model.
    """

    panels: int
    channels: int
    inputs: int
    ratio: float | None
    alone: bool

    @property
    def density(self) -> float:
        return self.channels / self.inputs


@dataclass
class TilePruning:
    """Chooses, for the layers of a model, panels and the channels they read, and makes the rest of the weights zero.

    Attributes:
        model: edited in place; its layers keep their shapes.
        groups: of the model.
        dataset: samples to observe.
        times: of layers in panels.
        multiple: channels that a panel reads are multiples of this.
        panels: 1, 2 or 4 where all layers are to have so many (as far as they can), else None.
        progress: shows what takes long.
        plans: what became of layers, by name.
        errors: relative errors of their outputs.
        reasons: why the others stay whole.
    """

    model: Model
    groups: Sequence[Group]
    dataset: Dataset
    times: PanelTimes
    multiple: int
    panels: int | None = None
    progress: Progress = silent
    plans: dict[str, TilePlan] = field(default_factory=dict)
    errors: dict[str, Sparsified] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def run(self, layers: Sequence[WeightedLayer], density: float | None, error: float) -> None:
        """Drop tiles of these layers.

        Args:
            layers: all weighted layers of the model.
            density: part of the multiply-accumulates of the layers that change which is to be left; None for what
                the zeros of sparse layers say, and in others what costs little.
            error: that dropping tiles may add to the model's outputs where ``density`` is None, over their variance.

        Raises:
            InputError: the model does not run on the data.
        """
        alone = _alone(self.groups)
        counts = {layer: self._count(layer, density or _USUAL, alone) for layer in self._candidates(layers)}
        chosen = {layer: count for layer, count in counts.items() if count is not None}
        shapes = observed(self.model, self.dataset.sample())
        samples = affordable(self.model, shapes, self.dataset, _MACS)
        probe = affordable(self.model, shapes, self.dataset, _PROBE_MACS, 64)

        def pattern(layer: WeightedLayer, share: float) -> Panels:
            return Panels(chosen[layer], self._channels(layer, share), _kernel(layer))

        curves = loss_curves(self.model, list(chosen), pattern, samples, probe, self.progress)
        macs = {name: float(entry.macs) for name, entry in cost(self.model, shapes).per_layer.items()}
        curves = curves.measured_in(macs)
        for layer in set(chosen).difference(_named(chosen, curves.curves)):
            self.reasons[layer.name] = "what it reads is not finite on the calibration data"
        self._settle(chosen, alone, curves, density, error)
        patterns = {
            layer: Panels(self.plans[layer.name].panels, self.plans[layer.name].channels, _kernel(layer))
            for layer in chosen
            if layer.name in self.plans
        }
        self.errors = sparsify(self.model, patterns, "obs", samples, _STAGES, self.progress, fill=True)

    def _candidates(self, layers: Sequence[WeightedLayer]) -> Iterator[WeightedLayer]:
        for layer in layers:
            reason = untileable(layer)
            if reason is None and layer.kind == "ConvTranspose":
                reason = "transposed convolutions have no panels"
            if reason is None and layer.shape[layer.in_axis] < 2 * self.multiple:
                reason = f"it reads {layer.shape[layer.in_axis]} channels, too few to choose from"
            if reason is None and not can_be_observed(layer):
                reason = "what it reads cannot be observed on the calibration data, or is too wide"
            if reason is None:
                yield layer
            else:
                self.reasons[layer.name] = reason

    def _count(self, layer: WeightedLayer, density: float, alone: Collection[int]) -> int | None:
        """How many panels serve a layer best; None where none are faster than the layer is."""
        most = min(most_panels(layer, self.multiple), self.panels or 4)
        if id(layer.node) in alone and self.panels is None:
            return 1  # what goes saves time before it, too
        channels = self._channels(layer, 1.0 - density)
        ratios = {count: self.times.ratio(layer, count, channels) for count in (1, 2, 4) if count <= most}
        if self.panels is not None:
            ratios = {most: ratios[most]}
        known = {count: ratio for count, ratio in ratios.items() if ratio is not None}
        if not known:
            return most if self.panels is not None else 1
        best = max(known.values())
        if best < PAYS:
            self.reasons[layer.name] = (
                f"with {channels} of {layer.shape[layer.in_axis]} input channels it would run {best:.2f} times as fast"
            )
            return None
        return max(count for count, ratio in known.items() if ratio >= _NEARLY * best)

    def _channels(self, layer: WeightedLayer, share: float) -> int:
        """That a panel goes on reading where so large a share goes; a multiple, and not none."""
        inputs = layer.shape[layer.in_axis]
        return min(inputs, max(1, round((1.0 - share) * inputs / self.multiple)) * self.multiple)

    def _settle(
        self,
        chosen: Mapping[WeightedLayer, int],
        alone: Collection[int],
        curves: LossCurves,
        density: float | None,
        error: float,
    ) -> None:
        """Plan the layers, leaving out those whose panels turn out to be slower, until none does."""
        while True:
            shares = self._shares(chosen, curves, density, error)
            slow = set()
            self.plans = {}
            for layer, count in chosen.items():
                if layer.name not in shares:
                    continue
                channels, inputs = self._channels(layer, shares[layer.name]), layer.shape[layer.in_axis]
                if channels == inputs:
                    self.reasons[layer.name] = "its channels are worth more than they cost"
                    continue
                single = id(layer.node) in alone and count == 1
                ratio = None if single else self.times.ratio(layer, count, channels)
                if ratio is not None and ratio < PAYS:
                    self.reasons[layer.name] = (
                        f"with {channels} of {inputs} input channels it would run {ratio:.2f} times as fast"
                    )
                    slow.add(layer.name)
                self.plans[layer.name] = TilePlan(count, channels, inputs, ratio, single)
            if not slow:
                return
            curves = curves.without(slow)

    def _shares(
        self, chosen: Mapping[WeightedLayer, int], curves: LossCurves, density: float | None, error: float
    ) -> dict[str, float]:
        """Which part of each layer's tiles goes."""
        if density is not None:
            return curves.shares(1.0 - density)
        sparse = {layer.name: 1.0 - float(mask.mean()) for layer in chosen if (mask := kept_mask(layer)) is not None}
        sparse = {name: zeros for name, zeros in sparse.items() if name in curves.curves}
        dense = curves.without(sparse)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if dense.error(dense.shares(middle)) <= error else (low, middle)
        return sparse | (dense.shares(low) if low > 0.0 else {})


def _kernel(layer: WeightedLayer) -> int:
    return math.prod(layer.shape[2:]) if layer.kind == "Conv" else 1


def _named(layers: Collection[WeightedLayer], names: Collection[str]) -> list[WeightedLayer]:
    return [layer for layer in layers if layer.name in names]


def _alone(groups: Sequence[Group]) -> set[int]:
    """Ids of nodes that alone read the channels of their input, all of which could go."""
    found = set()
    for group in groups:
        readers = [slot for slot in group.slots if slot.role == "in"]
        if group.pinned or group.kept or len(readers) != 1 or readers[0].layer is None:
            continue
        layer = readers[0].layer
        if np.array_equal(readers[0].positions[:, :1], np.arange(group.size)[:, None]) or layer.kind != "Conv":
            found.add(id(layer.node))
    return found
