"""Tiles of weights dropped: which channels each panel of a layer's outputs goes on reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import noise, outputs
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

__all__ = ["TilePlan", "TilePruning"]

Array = np.ndarray[Any, Any]

PAYS = 1.03  # a form must be that many times as fast as what it replaces
_NEARLY = 0.95  # more panels are taken where they are about as fast as fewer: their loss is less
_USUAL = 0.5  # density at which forms are timed before it is known
_STAGES = 12
_MACS, _PROBE_MACS = 2e11, 1e10
_BISECTIONS = 12
_ATTEMPTS = 3
_LEAST = 1e-12
_NOT_FINITE = "what it reads is not finite on the calibration data"
_WORTH = "its channels are worth more than they cost"


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
    _macs: dict[str, float] = field(default_factory=dict)
    _readers: dict[str, WeightedLayer] = field(default_factory=dict)
    _narrowing: dict[str, WeightedLayer] = field(default_factory=dict)

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
        shapes = observed(self.model, self.dataset.sample())
        self._macs = {name: float(entry.macs) for name, entry in cost(self.model, shapes).per_layer.items()}
        self._readers = _sole_readers(self.groups)
        counts = {layer: self._count(layer, density or _USUAL) for layer in self._candidates(layers)}
        chosen = {layer: count for layer, count in counts.items() if count is not None}
        if not chosen:
            return
        # What only panels read in several parts is read by one or the other, so it stays.
        several = {layer.name for layer, count in chosen.items() if count > 1}
        self._narrowing = {name: reader for name, reader in self._readers.items() if reader.name not in several}
        samples = affordable(self.model, shapes, self.dataset, _MACS)
        probe = affordable(self.model, shapes, self.dataset, _PROBE_MACS, 64)

        def pattern(layer: WeightedLayer, share: float) -> Panels:
            return Panels(chosen[layer], self._channels(layer, share), math.prod(layer.kernel))

        curves = loss_curves(self.model, list(chosen), pattern, samples, probe, self.progress)
        for layer in chosen:
            if layer.name not in curves.curves:
                self.reasons[layer.name] = _NOT_FINITE
        savings = {layer.name: self._saving(layer, count) for layer, count in chosen.items()}
        curves = curves.measured_in(savings)
        if density is not None or any(kept_mask(layer) is not None for layer in chosen):
            self._settle(chosen, curves, density, error)
            self._make_zero(chosen, samples)
        else:
            self._drop_within(error, chosen, curves, samples, probe)

    def _drop_within(
        self,
        error: float,
        chosen: Mapping[WeightedLayer, int],
        curves: LossCurves,
        samples: Dataset,
        probe: Dataset,
    ) -> None:
        """Drop what keeps the outputs within an error that is measured: where fewer tiles must go, less is planned.

        The curves alone do not tell: where outputs are saturated, say, no layer alone shows what all do together.
        """
        reference, state, planned = list(outputs(self.model, probe)), self.model.checkpoint(), error
        for _ in range(_ATTEMPTS):
            self._settle(chosen, curves, None, planned)
            if not self.plans:
                return
            self._make_zero(chosen, samples)
            found = noise(reference, outputs(self.model, probe))
            if found <= error:
                return
            state.restore()
            self.reasons |= dict.fromkeys(self.plans, f"the outputs would change by {found:.2g} of their variance")
            planned *= min(0.25, error / (2 * found)) if math.isfinite(found) else 0.25
        self.plans, self.errors = {}, {}

    def _make_zero(self, chosen: Mapping[WeightedLayer, int], samples: Dataset) -> None:
        """Carry out the plans."""
        patterns = {
            layer: Panels(self.plans[layer.name].panels, self.plans[layer.name].channels, math.prod(layer.kernel))
            for layer in chosen
            if layer.name in self.plans
        }
        self.errors = sparsify(self.model, patterns, "obs", samples, _STAGES, self.progress, fill=True)
        for name in [name for name in self.plans if name not in self.errors]:
            del self.plans[name]
            self.reasons[name] = _NOT_FINITE

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

    def _count(self, layer: WeightedLayer, density: float) -> int | None:
        """How many panels serve a layer best; None where none are faster than the layer is."""
        # Where outputs can go because their reader does not need them, there are no equal panels of them any more.
        most = 1 if layer.name in self._readers else min(most_panels(layer, self.multiple), self.panels or 4)
        if self.panels is not None:
            return most
        if self._reads_alone(layer):
            return 1  # what goes saves time before it, too
        channels, outputs = self._channels(layer, 1.0 - density), layer.shape[layer.out_axis]
        ratios = {}
        for count in (1, 2, 4):
            ratio = self.times.ratio(layer, count, channels, outputs) if count <= most else None
            if ratio is not None:
                ratios[count] = ratio
        best = max(ratios.values(), default=PAYS)
        if best < PAYS:
            self.reasons[layer.name] = _too_slow(channels, layer.shape[layer.in_axis], best)
            return None
        return max((count for count, ratio in ratios.items() if ratio >= _NEARLY * best), default=1)

    def _channels(self, layer: WeightedLayer, share: float) -> int:
        """That a panel goes on reading where so large a share goes; a multiple, and not none."""
        inputs = layer.shape[layer.in_axis]
        return min(inputs, max(1, round((1.0 - share) * inputs / self.multiple)) * self.multiple)

    def _reads_alone(self, layer: WeightedLayer) -> bool:
        return any(reader.node is layer.node for reader in self._readers.values())

    def _saving(self, layer: WeightedLayer, count: int) -> float:
        """What a share of 1 would save, in operations that take as much time.

        With a channel that a layer alone reads, its computation goes too; a Gather takes off from what is saved.
        """
        writers = [name for name, reader in self._readers.items() if reader.node is layer.node]
        if writers and count == 1:
            return self._macs[layer.name] + sum(self._macs.get(name, 0.0) for name in writers)
        channels = self._channels(layer, 1.0 - _USUAL)
        ratio = self.times.ratio(layer, count, channels, layer.shape[layer.out_axis])
        gone = 1.0 - channels / layer.shape[layer.in_axis]
        part = 1.0 if ratio is None or gone <= 0.0 else (1.0 - 1.0 / ratio) / gone
        return self._macs[layer.name] * max(part, 0.0)

    def _settle(
        self, chosen: Mapping[WeightedLayer, int], curves: LossCurves, density: float | None, error: float
    ) -> None:
        """Plan the layers, leaving out those whose panels turn out to be slower, until none does."""
        while True:
            shares = self._shares(chosen, curves, density, error)
            left = {layer.name: self._channels(layer, shares[layer.name]) for layer in chosen if layer.name in shares}
            self.plans = {}
            slow = set()
            for layer, count in chosen.items():
                inputs = layer.shape[layer.in_axis]
                if (channels := left.get(layer.name, inputs)) == inputs:
                    self.reasons.setdefault(layer.name, _WORTH)
                    continue
                single = count == 1 and self._reads_alone(layer)
                ratio = None if single else self.times.ratio(layer, count, channels, self._outputs(layer, left))
                if ratio is not None and ratio < PAYS:
                    self.reasons[layer.name] = _too_slow(channels, inputs, ratio)
                    slow.add(layer.name)
                self.plans[layer.name] = TilePlan(count, channels, inputs, ratio, single)
            if not slow:
                return
            curves = curves.without(slow)

    def _outputs(self, layer: WeightedLayer, left: Mapping[str, int]) -> int:
        """How many outputs a layer has when all layers read so many channels."""
        reader = self._narrowing.get(layer.name)
        if reader is None or reader.shape[reader.in_axis] != layer.shape[layer.out_axis]:
            return layer.shape[layer.out_axis]
        return left.get(reader.name, layer.shape[layer.out_axis])

    def _shares(
        self, chosen: Mapping[WeightedLayer, int], curves: LossCurves, density: float | None, error: float
    ) -> dict[str, float]:
        """Which part of each layer's tiles goes."""
        if density is not None:
            return _bisected(lambda sparsity: self._density(chosen, curves.shares(sparsity)) >= density, curves)
        sparse = {layer.name: 1.0 - float(mask.mean()) for layer in chosen if (mask := kept_mask(layer)) is not None}
        sparse = {name: zeros for name, zeros in sparse.items() if name in curves.curves}
        return sparse | self._cheap([layer for layer in chosen if layer.name not in sparse], curves, error)

    def _cheap(self, layers: Sequence[WeightedLayer], curves: LossCurves, error: float) -> dict[str, float]:
        """Shares that add up to so much error at most, taken one multiple of channels after the other.

        Greedy: the next one is where it loses least for what it saves.
        """
        shares = {layer.name: 0.0 for layer in layers if layer.name in curves.curves}
        steps = {layer.name: self.multiple / layer.shape[layer.in_axis] for layer in layers}

        def next_loss(name: str) -> float:
            more = shares[name] + steps[name]
            return (
                curves.loss(name, more) - curves.loss(name, shares[name]) if more < 1.0 - steps[name] / 2 else math.inf
            )

        losses, total = {name: next_loss(name) for name in shares}, 0.0
        while open_to_it := [name for name, loss in losses.items() if total + loss <= error]:
            saved = {name: curves.sizes[name] * steps[name] for name in open_to_it}
            name = min(open_to_it, key=lambda name: (losses[name] / max(saved[name], _LEAST), name))
            total += losses[name]
            shares[name] += steps[name]
            losses[name] = next_loss(name)
        return {name: share for name, share in shares.items() if share > 0.0}

    def _density(self, chosen: Mapping[WeightedLayer, int], shares: Mapping[str, float]) -> float:
        """The part of the layers' operations that is left."""
        left = {layer.name: self._channels(layer, shares[layer.name]) for layer in chosen if layer.name in shares}
        before = after = 0.0
        for layer in chosen:
            if layer.name in left:
                inputs, outputs = layer.shape[layer.in_axis], layer.shape[layer.out_axis]
                before += self._macs[layer.name]
                after += self._macs[layer.name] * left[layer.name] / inputs * self._outputs(layer, left) / outputs
        return after / before if before else 1.0


def _bisected(holds: Callable[[float], bool], curves: LossCurves) -> dict[str, float]:
    """The shares of the largest sparsity for which something holds; none where it holds for none."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return curves.shares(low) if low > 0.0 else {}


def _too_slow(channels: int, inputs: int, ratio: float) -> str:
    return f"with {channels} of {inputs} input channels it would run {ratio:.2f} times as fast"


def _sole_readers(groups: Sequence[Group]) -> dict[str, WeightedLayer]:
    """By the names of the layers that compute channels: the layer that alone reads them, where all could go."""
    found: dict[str, WeightedLayer] = {}
    for group in groups:
        readers = [slot for slot in group.slots if slot.role == "in"]
        if group.pinned or group.kept or len(readers) != 1:
            continue
        reader, positions = readers[0].layer, readers[0].positions
        # Of a channel that a Flatten spread over several inputs, only all of those together can go.
        if reader is not None and positions.shape == (reader.shape[reader.in_axis], 1):
            writers = [slot.layer for slot in group.slots if slot.role == "out" and slot.layer is not None]
            found.update((writer.name, reader) for writer in writers)
    return found
