"""What layers lose as products of each form and rank, and how much of that reaches the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.factors import Form, Ranks, columns_of, forms_of, kernel_of, macs_of
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.low_rank import Truncation, first_factors, nested_fits
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.fits import Fit, observe_stage, parts_of
from onnxcomp.runtime.sensitivity import Weighting
from onnxcomp.runtime.sparsity_plan import chunks, error_alone

__all__ = ["Option", "Unit", "layer_units", "measured_units"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

_MOST_RANKS = 12  # of a first factor with several taps, that are looked at
_WORTHWHILE = 0.97  # of the operations of a layer, that a product may have at most
_PROBED = 0.01  # relative loss of a layer at which its reach to the outputs is measured, about
_LEAST_REACH = 0.5  # over the median; where errors seem to average out, those of unlike samples may not
_LEAST_LOSS = 1e-9
_NOTHING = 1e-7
_GAIN = 0.9  # of the loss as layers of their own, that layers of a shared first factor may have at most


@dataclass(frozen=True)
class Option:
    """One product that layers could be.

    Attributes:
        form, ranks: of it.
        macs: multiply-accumulates in one run.
        loss: of the layers' outputs, over their variance; of several layers, weighted by how far it reaches.
    """

    form: Form
    ranks: Ranks
    macs: int
    loss: float


@dataclass(eq=False)
class Unit:
    """Layers that become products together: one, or several that share their first factor.

    Attributes:
        layers: of the main graph.
        macs: multiply-accumulates as they are.
        options: what they could be, of each form from the most operations to the least.
        weightings: of the outputs of each, by what their errors do to the model's.
        reach: relative error of the model's outputs for each unit of loss.
        energy: the loss when nothing is left of the outputs.
    """

    layers: list[WeightedLayer]
    macs: int
    options: list[Option]
    weightings: list[Weighting] = field(default_factory=lambda: [Weighting()])
    reach: float = 1.0
    energy: float = 1.0

    @property
    def name(self) -> str:
        """Of its layers."""
        return " and ".join(layer.name for layer in self.layers)

    def loss(self, option: Option | None) -> float:
        """Relative error of the model's outputs to expect."""
        return 0.0 if option is None else self.reach * option.loss


@dataclass
class _Seen:
    """What is known of a layer: its weighted weight and the moment of its inputs, (outputs, d) and (d, d)."""

    layer: WeightedLayer
    W: Array
    H: Array
    variance: float
    weighting: Weighting = field(default_factory=Weighting)
    reach: float = 1.0

    @cached_property
    def truncation(self) -> Truncation:
        return Truncation.of(self.W, self.H)


@dataclass(frozen=True)
class _Sizes:
    """Shapes of tensors, and of which channels ranks are multiples."""

    shapes: Shapes
    multiple: int

    def options(self, layers: Sequence[WeightedLayer], form: Form, losses: Mapping[Ranks, float]) -> list[Option]:
        """Those that save operations, none of which is beaten by one with fewer operations."""
        node = layers[0].node
        read, given = self.shapes[node.inputs[0].name], self.shapes[node.outputs[0].name]
        most = _WORTHWHILE * self.macs(layers)
        found = [Option(form, ranks, macs_of(layers, form, ranks, read, given), loss) for ranks, loss in losses.items()]
        kept: list[Option] = []
        # What is less than rounding errors is no loss: fewer operations are better then.
        found = [replace(option, loss=0.0) if option.loss < _NOTHING else option for option in found]
        for option in sorted(found, key=lambda option: (option.macs, option.loss, option.ranks)):
            if option.macs <= most and (not kept or option.loss < kept[-1].loss):
                kept.append(option)
        return kept[::-1]

    def most_rank(self, layers: Sequence[WeightedLayer], form: Form) -> int:
        """Below which a form of two factors saves operations."""
        node = layers[0].node
        one = macs_of(layers, form, (1,), self.shapes[node.inputs[0].name], self.shapes[node.outputs[0].name])
        return self.macs(layers) // one + 1

    def macs(self, layers: Sequence[WeightedLayer]) -> int:
        """Of layers as they are."""
        return sum(
            int(np.prod(self.shapes[layer.node.outputs[0].name], dtype=np.int64))
            * int(np.prod(layer.shape, dtype=np.int64))
            // layer.shape[layer.out_axis]
            for layer in layers
        )

    def ranks(self, most: int) -> Array:
        """All that may be, below so many."""
        return np.arange(self.multiple, most, self.multiple)

    def by_rank(self, losses: Array) -> dict[Ranks, float]:
        """Those of losses of ranks 0, 1, 2, … that may be."""
        return {(rank,): float(losses[rank]) for rank in self.ranks(len(losses) - 1).tolist()}


def layer_units(layers: Sequence[WeightedLayer], shapes: Shapes, multiple: int) -> list[Unit]:
    """Units of single layers, judged by their weights alone.

    Args:
        layers: that can be factorized.
        shapes: of the model's tensors in one run.
        multiple: of channels that ranks are.
    """
    sizes = _Sizes(shapes, multiple)
    units = []
    for layer in layers:
        W = layer.matrix()[0]
        variance = float(np.square(W).sum())
        units.append(_unit(_Seen(layer, W, np.eye(W.shape[1]), variance), sizes))
    return units


def measured_units(
    model: Model,
    layers: Sequence[WeightedLayer],
    groups: Sequence[Sequence[WeightedLayer]],
    shapes: Shapes,
    multiple: int,
    dataset: Dataset,
    probe: Dataset,
    sensitivities: Mapping[str, Array],
    progress: Progress = silent,
) -> list[Unit]:
    """Units judged by what their outputs lose on samples, and by how far a loss reaches, each measured alone.

    Layers whose inputs are not finite are missing.

    Args:
        model: left as it is.
        layers: that can be factorized and observed.
        groups: of these, that could share a first factor; they do where that costs less.
        shapes: of the model's tensors in one run.
        multiple: of channels that ranks are.
        dataset: samples to observe.
        probe: samples to measure the outputs on.
        sensitivities: by layer, G as ``output_moments`` finds it; outputs of others count alike.
        progress: shows the batches.

    Raises:
        InputError: the model does not run on the data.
    """
    sizes = _Sizes(shapes, multiple)
    reference = list(outputs(model, probe))
    grouped = {id(layer): index for index, group in enumerate(groups) for layer in group}
    waiting: dict[int, list[_Seen]] = {}
    units: list[Unit] = []
    for chunk in chunks(sorted(layers, key=lambda layer: grouped.get(id(layer), -1))):
        for seen in progress(
            _observed(model, chunk, dataset, progress, reference, probe, sensitivities), "measuring losses"
        ):
            units.append(_unit(seen, sizes))
            if (index := grouped.get(id(seen.layer))) is not None:
                waiting.setdefault(index, []).append(seen)
    usual = float(np.median([unit.reach for unit in units if unit.reach > 0] or [1.0]))
    for unit in units:
        unit.reach = max(unit.reach, _LEAST_REACH * usual)
    order = {id(layer): place for place, layer in enumerate(layers)}
    units = _shared(units, [each for each in waiting.values() if len(each) > 1], sizes)
    return sorted(units, key=lambda unit: order[id(unit.layers[0])])


def _observed(
    model: Model,
    chunk: Sequence[WeightedLayer],
    dataset: Dataset,
    progress: Progress,
    reference: Sequence[dict[str, Any]],
    probe: Dataset,
    sensitivities: Mapping[str, Array],
) -> list[_Seen]:
    own = {layer.name: layer for layer in chunk}
    result = []
    for layer, regression in observe_stage(model, model, [(0, layer) for layer in chunk], -1, own, dataset, progress):
        if not (regression.fitting.finite and regression.held_out.finite):
            continue
        fitting, held_out = parts_of(regression, takes_constants(model.graph, layer))
        fit = Fit.to(regression.target.astype(np.float64), fitting + held_out)
        G = sensitivities.get(layer.name)
        weighting = Weighting.of(G, None if G is None else fit.W[0] @ fit.seen.covariance[0] @ fit.W[0].T)
        variance = float(fit.seen.output_variance.sum()) or 1.0
        seen = _Seen(layer, weighting.applied(fit.W[0]), fit.H[0], variance, weighting)
        losses = seen.truncation.losses()[1:] / seen.variance
        rank = 1 + int(np.argmin(np.abs(np.log(np.maximum(losses, _LEAST_LOSS) / _PROBED))))
        lossy = weighting.undone(seen.truncation.factors(rank).product())[None]
        error = error_alone(model, layer, fit, lossy, probe, reference)
        result.append(replace(seen, reach=error / max(float(losses[rank - 1]), _LEAST_LOSS)))
    return result


def _unit(seen: _Seen, sizes: _Sizes) -> Unit:
    layer = seen.layer
    options: list[Option] = []
    for form in forms_of(layer):
        if form.taps(kernel_of(layer)) == 1:
            losses = seen.truncation.losses()
            found = sizes.by_rank(losses)
        elif form.middle:
            continue  # with the form of its first factor
        else:
            found, with_middle = _tapped_losses(seen, form, sizes)
            if not any(form.spans):
                tucker = replace(form, middle=True)
                options += sizes.options([layer], tucker, {r: v / seen.variance for r, v in with_middle.items()})
        options += sizes.options([layer], form, {ranks: loss / seen.variance for ranks, loss in found.items()})
    return Unit([layer], sizes.macs([layer]), options, [seen.weighting], seen.reach)


def _tapped_losses(seen: _Seen, form: Form, sizes: _Sizes) -> tuple[dict[Ranks, float], dict[Ranks, float]]:
    """Losses by ranks of two factors, the second with several taps, and with a middle one besides."""
    columns = columns_of(seen.layer, form)
    W, H = seen.W[:, columns], seen.H[np.ix_(columns, columns)]
    whole = first_factors(W, H, form.taps(kernel_of(seen.layer)))
    # With a middle factor all channels of the first one may be left. More than W has rows for all taps are of no use.
    most = len(whole) + 1 if not any(form.spans) else sizes.most_rank([seen.layer], form)
    most = min(most, len(W) * form.taps(kernel_of(seen.layer)) + 1)
    ranks = sizes.ranks(most)
    ranks = ranks[np.unique(np.linspace(0, len(ranks) - 1, _MOST_RANKS).astype(int))] if len(ranks) else ranks
    two: dict[Ranks, float] = {}
    three: dict[Ranks, float] = {}
    for rank, (loss, truncation) in zip(ranks.tolist(), nested_fits(W, H, whole, ranks.tolist()), strict=True):
        two[(rank,)] = loss
        if not any(form.spans):
            losses = truncation.losses()
            for outer in sizes.ranks(len(losses) - 1).tolist():
                three[rank, outer] = loss + float(losses[outer])
    return two, three


def _shared(units: Sequence[Unit], groups: Sequence[Sequence[_Seen]], sizes: _Sizes) -> list[Unit]:
    """Single layers replaced by sets of them, where these lose less for as many operations."""
    of_layer = {id(unit.layers[0]): unit for unit in units}
    kept = list(units)
    for group in groups:
        alone = [of_layer[id(seen.layer)] for seen in group]
        scales = [(unit.reach / seen.variance) ** 0.5 for unit, seen in zip(alone, group, strict=True)]
        stacked = np.concatenate([scale * seen.W for scale, seen in zip(scales, group, strict=True)])
        weightings = [seen.weighting.scaled(scale) for scale, seen in zip(scales, group, strict=True)]
        losses = Truncation.of(stacked, group[0].H).losses()
        layers = [seen.layer for seen in group]
        options = sizes.options(layers, forms_of(layers[0])[0], sizes.by_rank(losses))
        together = Unit(layers, sizes.macs(layers), options, weightings, energy=sum(unit.reach for unit in alone))
        if _loses_less(together, alone):
            kept = [unit for unit in kept if unit not in alone]
            kept.append(together)
    return kept


def _loses_less(together: Unit, alone: Sequence[Unit]) -> bool:
    """With half of the operations; where they lose the same, with how many they lose no more."""
    loss, macs = _at_half(together)
    others = [_at_half(unit) for unit in alone]
    least = sum(other for other, _ in others)
    return loss < _GAIN * least or (loss <= least and macs < _GAIN * sum(own for _, own in others))


def _at_half(unit: Unit) -> tuple[float, int]:
    """The least loss with half of the operations, and the operations that it takes."""
    found = [(unit.loss(option), option.macs) for option in unit.options if 2 * option.macs <= unit.macs]
    return min(found, default=(unit.reach * unit.energy, 0))
