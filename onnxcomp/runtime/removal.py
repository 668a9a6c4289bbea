"""What it costs to remove channels: in which order they go, and what that does to the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.evaluate import LOUDEST, outputs
from onnxcomp.evaluate import noise as noise_of
from onnxcomp.graph.affine import shift_outputs
from onnxcomp.graph.groups import Group
from onnxcomp.graph.importance import Removal, made_of_zeros, readers
from onnxcomp.linalg.moments import Moments
from onnxcomp.linalg.reconstruct import Reader, damping_for, removal_order, scaled
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.layouts import layout_of
from onnxcomp.runtime.regression import InputMoments
from onnxcomp.runtime.statistics import observe

__all__ = ["measured_removals"]

Array = np.ndarray[Any, Any]

MAX_BYTES = 256 * 2**20  # of covariances that are held at once
NOTHING = 1e-7  # relative losses below this are rounding errors
MEASURED_AT = (0.1, 0.4, 1.0)  # of the units that may go: there the noise of the outputs is measured


def measured_removals(
    model: Model,
    groups: Sequence[Group],
    most: Sequence[int],
    dataset: Dataset,
    probe: Dataset,
    progress: Progress = silent,
    original: Model | None = None,
) -> list[Removal]:
    """With data: the loss that is left when the layers that read the units make up for them.

    The loss in a group's readers is found for every unit; how much of it reaches the model's outputs is measured
    for each group, by removing a tenth, 40 % and all of the units that may go.

    Args:
        model: is left as it is.
        groups: that may lose units.
        most: how many each may lose.
        dataset: samples to observe.
        probe: samples to measure the outputs on.
        progress: shows the batches.
        original: whose outputs count, where the model has lost channels before.

    Raises:
        InputError: the model does not run on the data.
    """
    reference = list(outputs(original or model, probe)) if groups else []
    so_far = noise_of(reference, outputs(model, probe)) if groups and original is not None else 0.0
    so_far = so_far if math.isfinite(so_far) else 0.0
    found: list[tuple[Removal, list[tuple[int, float]]]] = []
    for chunk in _chunks(groups):
        moments = _observe(model, [groups[index] for index in chunk], dataset, progress)
        for index in progress(chunk, "measuring losses", len(chunk)):
            group = groups[index]
            seen = [moments[layer.name].moments for layer, _ in readers(group)]
            removal, weights = _order(group, seen, most[index])
            measured = _at_outputs(model, group, seen, weights, probe, reference)
            found.append((removal, [(count, noise - so_far) for count, noise in measured]))
    return _comparable(found)


def _comparable(found: Sequence[tuple[Removal, Sequence[tuple[int, float]]]]) -> list[Removal]:
    """Losses of the readers turned into losses of the model's outputs, as far as those were measured."""
    ratios = [
        noise / float(removal.losses[count]) for removal, measured in found for count, noise in measured if noise > 0.0
    ]
    known = [ratio for ratio in ratios if 0.0 < ratio < math.inf]
    usual = float(np.median(known)) if known else 1.0
    result = []
    for removal, measured in found:
        counts = [count for count, _ in measured]
        # What cannot be seen in the outputs is taken for what is usual: luck is not to be built upon.
        noises = [noise if noise > 0.0 else usual * float(removal.losses[count]) for count, noise in measured]
        losses = scaled(removal.losses, counts, noises) if measured else removal.losses * usual
        result.append(Removal(removal.order, losses))
    return result


def _chunks(groups: Sequence[Group]) -> Iterator[list[int]]:
    """Indices of consecutive groups whose readers' covariances fit in memory together."""
    chunk: list[int] = []
    size = 0
    for index, group in enumerate(groups):
        needed = sum(8 * layer.groups * layout_of(layer).size ** 2 for layer, _ in readers(group))
        if chunk and size + needed > MAX_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += needed
    if chunk:
        yield chunk


def _observe(model: Model, groups: Sequence[Group], dataset: Dataset, progress: Progress) -> dict[str, InputMoments]:
    """Covariances of the inputs of all readers, by layer."""
    moments: dict[str, InputMoments] = {}
    wanted: dict[str, list[InputMoments]] = {}
    for group in groups:
        for layer, _ in readers(group):
            if layer.name not in moments:
                moments[layer.name] = InputMoments(layout_of(layer))
                wanted.setdefault(layer.node.inputs[0].name, []).append(moments[layer.name])
    observe(model, dataset, wanted, progress)
    return moments


def _order(group: Group, seen: Sequence[Moments], most: int) -> tuple[Removal, dict[int, list[Array]]]:
    """The group's removal, and after some of them what the weights of its readers have become."""
    if not all(moments.finite for moments in seen):
        return Removal.impossible(most), {}
    idle = made_of_zeros(group)
    layers = []
    for (layer, columns), moments in zip(readers(group), seen, strict=True):
        sure = columns[idle].reshape(-1)  # of these zeros are all that there will be, if zeros were all that came
        H = moments.expected_covariance(sure[(moments.mean[:, sure] == 0.0).all(axis=0)])
        layers.append(Reader(layer.matrix(), H, columns, damping_for(moments.count, moments.mean.shape[1])))
    found = removal_order(layers, most, MEASURED_AT)
    removal = Removal(found.order, np.where(found.losses < NOTHING, 0.0, found.losses))
    return removal, {count: each for count, each in found.weights.items() if removal.losses[count] > 0.0}


def _at_outputs(
    model: Model,
    group: Group,
    seen: Sequence[Moments],
    weights: Mapping[int, Sequence[Array]],
    probe: Dataset,
    reference: Sequence[dict[str, Any]],
) -> list[tuple[int, float]]:
    """Noise of the model's outputs over their signal with these weights of the readers: how many units went, and the
    noise, where that can be told.
    """
    measured = []
    for count, each in weights.items():
        state = model.checkpoint()
        try:
            for (layer, _), moments, W in zip(readers(group), seen, each, strict=True):
                shift = ((layer.matrix() - W) @ moments.mean[:, :, None])[:, :, 0]
                layer.set_matrix(W)
                shift_outputs(model, layer, shift)
            noise = noise_of(reference, outputs(model, probe))
        finally:
            state.restore()
        if not math.isnan(noise):
            measured.append((count, min(noise, LOUDEST)))
    return measured
