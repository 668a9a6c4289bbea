"""Removing channels from a model: which may go, which go, and fitting what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.data import Dataset
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.cost import cost
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.importance import Removal, WeightScore, readers, weight_removals
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.remains import Kept, compose, remains, whole
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.refit import can_fit, refit
from onnxcomp.runtime.removal import measured_removals

__all__ = ["Candidates", "Shrinking", "affordable"]

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

LEAST_SHARE = 0.25  # of a group's channels that are kept whatever they cost
MAX_INPUTS = 4608  # of a layer: its covariance is a matrix of that size
MAX_STAGES = 8  # of the reconstruction, each of which runs the data once; more were not seen to help
MACS = 4e10  # that the calibration samples may take to run once
PROBE_MACS = 1e10


@dataclass
class Candidates:
    """The channels of a model as it is, and which of them may go.

    Attributes:
        every: all dependency groups.
        groups: those that may lose units.
        counts: for each of ``groups``, how many units are gone after 0, 1, 2, … steps.
        reasons: why the others may not, by ``id`` of the group.
        align: channels are left in multiples of this.
        first: sizes of groups by name, before the model lost any.
        through_norms: as of ``dependency_groups``.
    """

    model: Model
    shapes: Shapes
    every: list[Group]
    groups: list[Group]
    counts: list[list[int]]
    reasons: dict[int, str]
    align: int
    first: Mapping[str, int]
    through_norms: bool = False

    @classmethod
    def of(
        cls,
        model: Model,
        shapes: Shapes,
        align: int,
        first: Mapping[str, int] | None = None,
        through_norms: bool = False,
    ) -> Candidates:
        """All of a model.

        Args:
            model: that is to lose channels.
            shapes: of its tensors in one run.
            align: channels are left in multiples of this.
            first: sizes of groups by name, before the model lost any.
            through_norms: as of ``dependency_groups``.
        """
        every = dependency_groups(model, shapes, through_norms)
        sizes = first or {group.name: group.size for group in every}
        found = cls(model, shapes, every, [], [], {}, align, sizes, through_norms)
        for group in every:
            counts = _counts(group, align, sizes.get(group.name, group.size))
            reason = group.kept or _unfit(group)
            if reason is None and len(counts) == 1:
                reason = f"it has {group.size} channels, too few to remove {align} and keep a quarter"
            if reason is None:
                found.groups.append(group)
                found.counts.append(counts)
            else:
                found.reasons[id(group)] = reason
        return found

    def again(self, model: Model) -> Candidates:
        """The same of this model, after an edit, or of its copy."""
        return Candidates.of(model, self.shapes, self.align, self.first, self.through_norms)

    @property
    def most(self) -> list[int]:
        """How many units each group may lose."""
        return [counts[-1] for counts in self.counts]

    def removals(
        self,
        data: Dataset | None,
        progress: Progress = silent,
        original: Model | None = None,
        score: Literal["obs"] | WeightScore = "obs",
    ) -> list[Removal]:
        """In which order the units of each group go, and what it costs.

        Groups whose losses cannot be told get a reason.

        Args:
            data: calibration samples, if any.
            progress: shows the batches.
            original: whose outputs count, where the model has lost channels before.
            score: what orders them; the losses are measured with ``obs`` and data alone.
        """
        if data is None or score != "obs":
            return weight_removals(self.groups, self.most, "magnitude" if score == "obs" else score)
        samples, held_out = affordable(self.model, self.shapes, data, MACS).split(0.75)
        probe = affordable(self.model, self.shapes, held_out, PROBE_MACS, 64)
        removals = measured_removals(self.model, self.groups, self.most, samples, probe, progress, original)
        for group, removal in zip(self.groups, removals, strict=True):
            if not removal.measurable:
                self.reasons[id(group)] = "NaN or infinite values reach its readers on the calibration data"
        return removals


def affordable(model: Model, shapes: Shapes, data: Dataset, most_macs: float, most: int = 4096) -> Dataset:
    """As many samples as can be run for so many multiply-accumulates, 16 at least."""
    each = cost(model, shapes).flops / 2 / data.least
    return data.take(max(16, min(most, int(most_macs / max(1.0, each)))))


class Shrinking:
    """A model that loses channels, once or several times, and is fitted to what it was in the beginning.

    Attributes:
        model: edited in place.
        original: as it was; None where there is nothing to fit to.
        errors: the relative error of each layer that was fitted, by name.
    """

    def __init__(self, model: Model, shapes: Shapes, data: Dataset | None, progress: Progress = silent) -> None:
        self.model = model
        self.errors: dict[str, float] = {}
        self._data = None if data is None else affordable(model, shapes, data, MACS)
        self._progress = progress
        self.original = model.copy() if data is not None else None
        self._left: dict[str, Kept] = {}
        self._layers = weighted_layers(model)  # one may become so small that it would not be found again
        plain = [layer for layer in self._layers if layer.kind != "other" and not layer.nested]
        self._inputs = {layer.name: layout_of(layer).size for layer in plain}

    def remove(self, groups: Sequence[Group], gone: Sequence[Array], changed: Sequence[gs.Node] = ()) -> None:
        """Remove these units of each group, and fit what is left.

        Args:
            groups: of the model as it is.
            gone: units of each.
            changed: nodes that give something else than before.

        Raises:
            InputError: the model does not run on the data.
        """
        if not any(len(units) for units in gone) and not changed:
            return
        there = {id(node) for node in self.model.graph.nodes}
        self._layers = [layer for layer in self._layers if id(layer.node) in there]
        going = remains(groups, gone)
        for group, units in zip(groups, gone, strict=True):
            if len(units):
                select(group, np.setdiff1d(np.arange(group.size), units))
        self._left = compose(self._left, self._layers, going)
        if self._data is None or self.original is None:
            return
        narrowed = {name for name, left in self._left.items() if len(left.columns) < self._inputs[name]}
        kept = [self._left.get(layer.name) or whole(layer) for layer in self._behind(narrowed, changed)]
        self.errors |= refit(self.model, self.original, self._data, kept, MAX_STAGES, self._progress)

    def _behind(self, changed: set[str], nodes: Sequence[gs.Node]) -> list[WeightedLayer]:
        """The layers that can be fitted and have changed or compute from what has, and all that come after."""
        layers = {id(layer.node): layer for layer in self._layers if can_fit(layer, MAX_INPUTS)}
        touched = {id(tensor) for node in nodes for tensor in node.outputs}
        found: list[WeightedLayer] = []
        for node in self.model.graph.nodes:
            layer = layers.get(id(node))
            behind = any(id(tensor) in touched for tensor in node.inputs)
            if behind or (layer is not None and layer.name in changed):
                touched.update(id(tensor) for tensor in node.outputs)
                if layer is not None:
                    found.append(layer)
        return found


def _counts(group: Group, align: int, first: int) -> list[int]:
    """How many units are gone after 0, 1, 2, … steps, so that channels are multiples of ``align`` from 1 on.

    A quarter of those that the group had at ``first`` stays.
    """
    producers = [slot.positions.shape[1] for slot in group.slots if slot.role == "out"]
    step = align // math.gcd(align, *(producers or [1]))
    least = max(step, -(-math.ceil(LEAST_SHARE * first) // step) * step)
    highest = (group.size - 1) // step * step
    return [0, *(group.size - left for left in range(highest, least - 1, -step))]


def _unfit(group: Group) -> str | None:
    """Why its readers cannot make up for lost channels."""
    layers = [layer for layer, _ in readers(group)]
    if not layers:
        return "no layer reads its channels"
    for layer in layers:
        if layer.kind == "other":
            return f"{layer.name} reads its channels, and no {layer.op} can be fitted to do without some"
        if (size := layout_of(layer).size) > MAX_INPUTS:
            return f"{layer.name} reads {size} inputs, more than the {MAX_INPUTS} that can be fitted"
    for slot in group.slots:
        if not np.isfinite(np.asarray(value_of(slot.tensor), dtype=np.float64)).all():
            return f"{slot.tensor.name} holds NaN or infinite values"
    return None
