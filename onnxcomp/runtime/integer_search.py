"""Which layers to run on integers, and on which grids their activations lie: found by building and measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.evaluate import Evaluator, metric_named
from onnxcomp.graph.bodies import addresses
from onnxcomp.graph.cost import cost
from onnxcomp.graph.integer_grids import unequal_concats
from onnxcomp.graph.integer_plan import IntegerPlan, make_plans
from onnxcomp.graph.integer_writer import Written, write_plans
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.rounding import RoundedLayer
from onnxcomp.linalg import ranges
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.calibration import Calibration, spread
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.replay import best_grids
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.simulate import Simulation

__all__ = ["IntegerSearch", "RangeChoice", "integer_kernels"]

Array = np.ndarray[Any, Any]
Grids: TypeAlias = dict[int, ranges.Grid]  # by ``id`` of a root
RangeChoice: TypeAlias = Literal["auto", ranges.Method]

# Below it, outputs have little to do with the original's.
LEAST_SQNR_DB = 6.0
_MEASURED_SAMPLES = 32
# What the search for ranges may spend, in multiply-accumulates, and on how many samples.
_REPLAYED_MACS = 4e11
_REPLAYED_SAMPLES = (2, 16)
_EVALUATIONS = 2  # whole runs of the model for each tensor: four grids, and half of the model behind it
_METHODS: tuple[ranges.Method, ...] = ("percentile", "mse", "minmax")
_MEASURED = "least output error"
_STRETCHES = 8  # of the network, that are switched from one method to another
# Layers that are tried in float, and how much of the multiply-accumulates may return to it.
_TRIALS = 8
_MOST_FLOAT = 0.15
# What returning a layer to float has to bring, in dB of the outputs: something, and more for each share of the work.
_LEAST_GAIN = 0.3
_GAIN_FOR_ALL = 10.0
# Layers whose damage is measured one by one.
_SUSPECTS = 24


@dataclass
class IntegerSearch:
    """Builds a model with some of its layers on integers, from the state that it has at the start, and measures it.

    Attributes:
        model: edited in place.
        data: calibration samples.
        calibration: of all activations that may be held as integers.
        rounded: weights of all layers that may be quantized, by name.
        progress: shows what takes long.
        grids: chosen for activations, by ``id`` of the root.
        noise: by ``id`` of a root, what rounding it alone adds to the outputs; see ``replay.Best``.
    """

    model: Model
    data: Dataset
    calibration: Calibration
    rounded: Mapping[str, RoundedLayer]
    progress: Progress = silent
    grids: Grids = field(default_factory=dict)
    noise: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = self.model.checkpoint()
        self._evaluator = Evaluator(self.model.copy(), spread(self.data, _MEASURED_SAMPLES), metric_named("sqnr"))
        shapes = observed(self.model, self.data.sample())
        self._macs = {name: layer.macs for name, layer in cost(self.model, shapes).per_layer.items()}

    def restore(self) -> None:
        """Put the model back into the state that it had at the start."""
        self._state.restore()

    def build(self, layers: Sequence[WeightedLayer]) -> dict[str, Written]:
        """Quantize exactly these layers."""
        plans = self._plans(layers)
        grids = self._grids_of(plans)
        if barred := unequal_concats(plans, grids):
            plans = make_plans(self.model.graph, layers, barred)
            grids = self._grids_of(plans)
        return write_plans(self.model.graph, plans, grids, self.rounded)

    def sqnr(self, layers: Sequence[WeightedLayer]) -> float:
        """SQNR of the outputs in dB with these layers quantized."""
        self.build(layers)
        return self._evaluator.evaluate(self.model).fidelity.sqnr_db

    def fused(self, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
        """Only the layers for which ONNX Runtime makes an integer kernel; dropping one may unfuse another."""
        layers = list(layers)
        while layers:
            kernels = integer_kernels(self.model, self.build(layers))
            fused = [layer for layer in layers if kernels[layer.name]]
            if len(fused) == len(layers):
                break
            layers = fused
        return layers

    # -- grids ---------------------------------------------------------------------------------------------

    def choose_grids(self, layers: Sequence[WeightedLayer], choice: RangeChoice) -> str:
        """Find the grid of every activation around these layers; returns how, for people.

        ``auto`` takes the method that gives the outputs the highest SQNR when it serves for all tensors, weights
        in float. One of the methods chooses tensor by tensor, by the error of the outputs when that tensor alone is
        rounded (not in bodies, nor in models that are too large for it). Such errors do not just add up, so
        stretches of tensors are then switched over to these grids one by one, where that raises the SQNR.
        """
        roots = [root for plan in self._plans(layers) for root in plan.distinct_roots()]
        if choice != "auto":
            self.grids = self._uniform(roots, choice)
            return f"{choice} ranges"
        places = addresses(self.model.graph)
        self._main = {id(root): str(root.name) for root in roots if not places[id(root)].steps}
        self._simulation = Simulation(self.model, spread(self.data, _MEASURED_SAMPLES))
        tried: dict[str, Grids] = {method: self._uniform(roots, method) for method in _METHODS}
        if alone := self._measure([root for root in roots if id(root) in self._main]):
            tried[_MEASURED] = {**tried[_METHODS[0]], **alone}
        results = {name: self._simulated(grids) for name, grids in tried.items()}
        best = max(results, key=lambda name: results[name])
        self.grids = tried[best]
        if best == _MEASURED or not alone:
            return f"{best} ranges"
        switched = self._switch(alone, results[best])
        return f"{best} ranges, {switched} of {len(roots)} of {_MEASURED}" if switched else f"{best} ranges"

    def _switch(self, grids: Grids, sqnr: float) -> int:
        """Use these grids in stretches of the network where they raise the SQNR; returns for how many tensors."""
        switched = 0
        keys = list(grids)
        length = -(-len(keys) // _STRETCHES)
        for start in range(0, len(keys), length):
            stretch = {key: grids[key] for key in keys[start : start + length]}
            changed = {**self.grids, **stretch}
            if changed != self.grids and (found := self._simulated(changed)) > sqnr:
                self.grids, sqnr, switched = changed, found, switched + len(stretch)
        return switched

    def _simulated(self, grids: Grids) -> float:
        return self._simulation.sqnr({self._main[key]: grid for key, grid in grids.items() if key in self._main})

    def _measure(self, roots: Sequence[gs.Tensor]) -> Grids:
        """The grids that do least damage alone, of tensors of the main graph."""
        samples = self._affordable(len(roots))
        if not samples:
            return {}
        proposals = {str(root.name): self.calibration.candidates(root) for root in roots}
        best = best_grids(self.model, spread(self.data, samples), proposals, self.progress)
        found = {id(root): best[str(root.name)] for root in roots if str(root.name) in best}
        self.noise = {key: each.noise for key, each in found.items()}
        return {key: each.grid for key, each in found.items()}

    def _affordable(self, tensors: int) -> int:
        """How many samples to measure errors on; 0 where two would take too long."""
        work = _EVALUATIONS * tensors * max(1, sum(self._macs.values()))
        least, most = _REPLAYED_SAMPLES
        samples = int(_REPLAYED_MACS // work) if work else 0
        return 0 if samples < least or self.model.is_large else min(samples, most)

    def _uniform(self, roots: Sequence[gs.Tensor], method: ranges.Method) -> Grids:
        return {id(root): self.calibration.grid(root, method) for root in roots}

    def _grids_of(self, plans: Sequence[IntegerPlan]) -> Grids:
        return {id(root): self._grid(root) for plan in plans for root in plan.distinct_roots()}

    def _grid(self, root: gs.Tensor) -> ranges.Grid:
        return self.grids.get(id(root)) or self.calibration.grid(root, _METHODS[0])

    def _plans(self, layers: Sequence[WeightedLayer]) -> list[IntegerPlan]:
        self._state.restore()
        return make_plans(self.model.graph, layers)

    # -- layers that stay in float --------------------------------------------------------------------------

    def relieve(self, layers: Sequence[WeightedLayer], wanted: float) -> tuple[list[WeightedLayer], dict[str, str]]:
        """Return to float what costs the outputs most, until they have the SQNR wanted.

        Layers are tried in the order of the noise that is expected to go with them, relative to their work. One
        stays in float when the measured SQNR rises enough for its share of the work.

        Args:
            layers: to be quantized.
            wanted: dB.

        Returns:
            the layers to quantize, and by name why others are not.
        """
        layers, reasons = list(layers), dict[str, str]()
        sqnr = self.sqnr(layers)
        budget = _MOST_FLOAT * sum(self._macs.values())
        for layer in self._order(layers)[:_TRIALS] if sqnr < wanted else ():
            macs = self._macs.get(layer.name, 0)
            left = [other for other in layers if other is not layer]
            if macs > budget or not left:
                continue
            gain = (found := self.sqnr(left)) - sqnr
            if gain >= _LEAST_GAIN + _GAIN_FOR_ALL * self._share(layer):
                reasons[layer.name] = (
                    f"in float the outputs' SQNR rises from {sqnr:.1f} to {found:.1f} dB, "
                    f"for {self._share(layer):.1%} of the multiply-accumulates"
                )
                layers, sqnr, budget = left, found, budget - macs
                if sqnr >= wanted:
                    break
        return layers, reasons

    def _order(self, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
        """First those whose return saves most noise for the work; without any that save none."""
        total = self._noise_of(layers)
        saved = {
            layer.name: total - self._noise_of([other for other in layers if other is not layer]) for layer in layers
        }
        useful = [layer for layer in layers if saved[layer.name] > 0.01 * total]
        return sorted(useful, key=lambda layer: -saved[layer.name] / (0.01 + self._share(layer)))

    def _noise_of(self, layers: Sequence[WeightedLayer]) -> float:
        roots = {id(root) for plan in self._plans(layers) for root in plan.distinct_roots()}
        return sum(self.noise.get(root, 0.0) for root in roots)

    def _share(self, layer: WeightedLayer) -> float:
        return self._macs.get(layer.name, 0) / max(1, sum(self._macs.values()))

    def protect(self, layers: Sequence[WeightedLayer]) -> tuple[list[WeightedLayer], dict[str, str]]:
        """Return layers to float whatever it costs, until the outputs have ``LEAST_SQNR_DB``.

        Returns:
            the layers to quantize, and by name why others are not.

        Raises:
            PassError: that is not reached.
        """
        layers = list(layers)
        if (sqnr := self.sqnr(layers)) >= LEAST_SQNR_DB:
            return layers, {}
        alone = {layer.name: self.sqnr([layer]) for layer in self._suspects(layers)}
        worst = sorted(alone, key=lambda name: alone[name])
        count = 1
        while count <= len(worst):
            left = [layer for layer in layers if layer.name not in worst[:count]]
            if not left:
                break
            if (sqnr := self.sqnr(left)) >= LEAST_SQNR_DB:
                reason = "too sensitive: quantized alone it leaves an SQNR of {:.1f} dB"
                return left, {name: reason.format(alone[name]) for name in worst[:count]}
            count = count + 1 if count < 4 else 2 * count
        raise PassError(
            f"quant leaves an SQNR of {sqnr:.1f} dB even without its most sensitive layers; give calibration "
            "data like the model's real inputs, or name more layers in option keep"
        )

    def _suspects(self, layers: Sequence[WeightedLayer]) -> list[WeightedLayer]:
        """The layers whose activations lose most by rounding."""
        lost: dict[str, float] = {}
        for plan in self._plans(layers):
            for site in plan.sites:
                root = plan.roots[id(site.source)]
                lost[site.layer.name] = 0.0 if plan.is_known(root) else self._lost(root)
        return sorted(layers, key=lambda layer: -lost[layer.name])[:_SUSPECTS]

    def _lost(self, root: gs.Tensor) -> float:
        """What rounding an activation does to the outputs, or else to the activation."""
        return self.noise.get(id(root), self.calibration.noise(root, self._grid(root)))


def integer_kernels(model: Model, written: Mapping[str, Written]) -> dict[str, str]:
    """By layer, the operator of the optimized graph that reads its 8-bit weight, or nothing."""
    if not written:
        return {}
    readers: dict[str, str] = {}
    for kernel in optimized_kernels(model):
        if kernel.op not in ("DequantizeLinear", "Cast"):
            readers.update(dict.fromkeys(kernel.inputs, kernel.op))
    return {name: readers.get(item.constant, "") for name, item in written.items()}
