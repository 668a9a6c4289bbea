"""How sparse each layer is to become: more where the model's outputs lose little by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import LOUDEST, noise, outputs
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.bias import takes_constants
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.allocate import equal_marginal_shares
from onnxcomp.linalg.gptq import damped, output_error
from onnxcomp.linalg.masked import masked_least_squares
from onnxcomp.linalg.patterns import Pattern
from onnxcomp.linalg.sparsify import Splitting
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.fits import Fit, observe_stage, parts_of
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import Regression

__all__ = ["LossCurves", "PatternOf", "chunks", "error_alone", "loss_curves"]

Array = np.ndarray[Any, Any]
PatternOf: TypeAlias = Callable[[WeightedLayer, float], Pattern]

_MEASURED = (0.3, 0.5, 0.65, 0.8, 0.9)
# No layer gets less than this part of the average share of zeros, or keeps less than that part of the average rest:
# figures are of the samples given, and a layer that they show to be needless may matter for others.
_LEAST_ZEROS, _LEAST_KEPT = 0.4, 0.6
_LEAST_REACH = 0.5  # over the median; where errors seem to average out, those of unlike samples may not
# Variance that inputs are expected to have in directions that the samples do not show, in units of their mean variance.
_UNSEEN = 1.0
_PROBED = 0.01  # relative loss of a layer at which its reach to the outputs is measured, about
_ITERATIONS, _GROWTH, _STEPS = 20, 1.3, 10  # a curve needs no more
_POINTS = 401
_MAX_BYTES = 256 * 2**20  # of moments that are held at once
_LEAST_LOSS = 1e-9


@dataclass(frozen=True)
class LossCurves:
    """What layers lose as they become sparse, and how much of that reaches the model's outputs.

    Attributes:
        sizes: of each layer by name, what a share is of: weights, say, or multiply-accumulates.
        curves: relative losses of its outputs at the measured shares.
        reaches: relative error of the model's outputs for each unit of that.
    """

    sizes: Mapping[str, float]
    curves: Mapping[str, Array]
    reaches: Mapping[str, float]

    def shares(self, sparsity: float) -> dict[str, float]:
        """The share of each layer that is to go so that ``sparsity`` of all goes at the least loss."""
        if not self.curves:
            return {}
        grid = np.linspace(_LEAST_ZEROS * sparsity, 1.0 - _LEAST_KEPT * (1.0 - sparsity), _POINTS)
        losses = np.stack([self._reach(name) * _at(grid, curve) for name, curve in self.curves.items()])
        sizes = np.array([self.sizes[name] for name in self.curves])
        found = equal_marginal_shares(losses, grid, sizes, sparsity * float(sizes.sum()))
        return dict(zip(self.curves, found.tolist(), strict=True))

    def loss(self, name: str, share: float) -> float:
        """Relative error of the model's outputs to expect of one layer; those of several are taken to add up."""
        return self._reach(name) * _loss(share, self.curves[name])

    def measured_in(self, sizes: Mapping[str, float]) -> LossCurves:
        """The same, with shares of these sizes."""
        return replace(self, sizes=sizes)

    def without(self, names: Collection[str]) -> LossCurves:
        """Of the other layers."""
        curves = {name: curve for name, curve in self.curves.items() if name not in names}
        return replace(self, curves=curves)

    def _reach(self, name: str) -> float:
        return max(self.reaches[name], _LEAST_REACH * self._usual_reach)

    @cached_property
    def _usual_reach(self) -> float:
        return float(np.median([reach for reach in self.reaches.values() if reach > 0] or [1.0]))


def loss_curves(
    model: Model,
    layers: Sequence[WeightedLayer],
    pattern: PatternOf,
    dataset: Dataset,
    probe: Dataset,
    progress: Progress = silent,
) -> LossCurves:
    """Measure how each layer bears to become sparse.

    For each layer the loss of its outputs is found for a few shares, on inputs that vary more than the samples do.
    How much of it reaches the model's outputs is measured with that layer alone made sparse.

    Args:
        model: left as it is.
        layers: of its main graph, those that ``can_be_observed``.
        pattern: for a layer and a share.
        dataset: samples to observe.
        probe: samples to measure the outputs on.
        progress: shows the batches.

    Raises:
        InputError: the model does not run on the data.
    """
    reference = list(outputs(model, probe))
    curves: dict[str, Array] = {}
    reaches: dict[str, float] = {}
    own = {layer.name: layer for layer in layers}
    for chunk in chunks(layers):
        seen = observe_stage(model, model, [(0, layer) for layer in chunk], -1, own, dataset, progress)
        for layer, regression in seen:
            if not (regression.fitting.finite and regression.held_out.finite):
                continue
            curve, candidates, fit = _curve(model, layer, regression, pattern)
            losses = [fit.loss(W) for W in candidates]
            index = int(np.argmin(np.abs(np.log(np.maximum(losses, _LEAST_LOSS) / _PROBED))))
            error = error_alone(model, layer, fit, candidates[index], probe, reference)
            curves[layer.name], reaches[layer.name] = curve, error / max(losses[index], _LEAST_LOSS)
    return LossCurves({name: float(layer.array().size) for name, layer in own.items()}, curves, reaches)


def chunks(layers: Sequence[WeightedLayer]) -> Iterator[list[WeightedLayer]]:
    """Consecutive layers whose moments fit in memory together."""
    chunk: list[WeightedLayer] = []
    size = 0
    for layer in layers:
        layout = layout_of(layer)
        needed = 16 * layout.groups * layout.size**2 + 16 * layer.array().size
        if chunk and size + needed > _MAX_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(layer)
        size += needed
    if chunk:
        yield chunk


def _curve(
    model: Model, layer: WeightedLayer, regression: Regression, pattern: PatternOf
) -> tuple[Array, list[Array], Fit]:
    """Relative losses at the measured shares, the weights there, and what they were fitted to."""
    fitting, held_out = parts_of(regression, takes_constants(model.graph, layer))
    fit = Fit.to(regression.target.astype(np.float64), fitting + held_out)
    expected = damped(fit.seen.covariance, _UNSEEN)
    splitting = Splitting(fit.W, fit.H)
    losses, candidates = [], []
    for share in _MEASURED:
        kept = splitting.mask(pattern(layer, share), _ITERATIONS, _GROWTH)
        W = masked_least_squares(fit.W, fit.H, kept, steps=_STEPS)
        error = float(output_error(fit.W, expected, W).sum())
        losses.append(error / (float(fit.seen.output_variance.sum()) or 1.0))
        candidates.append(W)
    return np.maximum.accumulate(np.maximum(losses, _LEAST_LOSS)), candidates, fit


def error_alone(
    model: Model, layer: WeightedLayer, fit: Fit, W: Array, probe: Dataset, reference: Sequence[dict[str, Any]]
) -> float:
    """Relative error of the model's outputs when this layer alone has weights W."""
    state = model.checkpoint()
    try:
        layer.set_matrix(W)
        if takes_constants(model.graph, layer):
            shift_outputs(model, layer, fit.shift(W).reshape(W.shape[:2]))
        error = noise(reference, outputs(model, probe))
    finally:
        state.restore()
    return 0.0 if math.isnan(error) else min(error, LOUDEST)


def _loss(share: float, curve: Array) -> float:
    """The loss at one share: beneath the measured ones it goes to zero, as the square of the share."""
    least = _MEASURED[0]
    return float(_at(np.array(max(share, least)), curve)) * min(1.0, share / least) ** 2


def _at(shares: Array, curve: Array) -> Array:
    """The loss at these shares; its logarithm is nearly linear in the share."""
    logs = np.log(curve)
    below = logs[0] - _MEASURED[0] * (logs[1] - logs[0]) / (_MEASURED[1] - _MEASURED[0])
    above = logs[-1] + (1.0 - _MEASURED[-1]) * (logs[-1] - logs[-2]) / (_MEASURED[-1] - _MEASURED[-2])
    losses: Array = np.exp(np.interp(shares, (0.0, *_MEASURED, 1.0), (below, *logs, above)))
    return losses
