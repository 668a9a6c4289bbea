"""What an error in one tensor does to the outputs of a model: the part of it behind the tensor, run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcomp.data import Dataset
from onnxcomp.linalg.ranges import Grid
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.session import create, run, with_outputs
from onnxcomp.runtime.values import is_float
from onnxcomp.storage.messages import reads_of
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Best", "best_grids", "rounded"]

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]

_RECORDED = 64 * 2**20  # bytes of recorded values that are held at once


@dataclass(frozen=True)
class Best:
    """The grid that serves a tensor best.

    Attributes:
        grid: scale and zero point.
        noise: mean square of the error that rounding this tensor alone makes in the outputs, over the mean
            square of the outputs; summed over the outputs.
    """

    grid: Grid
    noise: float


def best_grids(
    model: Model, dataset: Dataset, proposals: Mapping[str, Sequence[Grid]], progress: Progress = silent
) -> dict[str, Best]:
    """For each tensor of the main graph, the grid with the least error in the model's float outputs.

    Each tensor is rounded alone, with everything else in float. The error is measured on all samples; errors of
    different tensors add up as long as they are small. Grids are tried from the middle of their list towards the
    side where the error falls, as long as it does.

    Args:
        model: any model that runs.
        dataset: a few samples.
        proposals: grids by name of the tensor, the widest first.

    Returns:
        by name. A tensor that the outputs do not show an error of is missing (there are no float outputs, the error
        is not finite, or what depends on the tensor reads a sequence besides).

    Raises:
        InputError: the model does not run on the data.
    """
    whole = model.skeleton()
    outputs = _float_outputs(whole, dataset)
    found: dict[str, Best] = {}
    if not outputs:
        return found
    cuts = {name: _cut(whole, name) for name in proposals}
    for names in progress(list(_portions(whole, dataset, cuts)), "choosing ranges"):
        wanted = [*names, *(other for name in names for other in cuts[name]), *outputs]
        recorded = _record(whole, dataset, wanted)
        for name in names:
            best = _descend(_Suffix(whole, name, cuts[name], outputs, recorded), proposals[name])
            if np.isfinite(best.noise):
                found[name] = best
    return found


def rounded(values: Array, grid: Grid) -> Array:
    """Values on the nearest of the 256 levels of a grid, float32."""
    scale, zero = np.float32(grid[0]), grid[1]
    codes = np.rint(values / scale)
    np.clip(codes, -zero, 255 - zero, out=codes)
    codes *= scale
    return codes.astype(np.float32, copy=False)


def _descend(trial: _Suffix, grids: Sequence[Grid]) -> Best:
    """The grid at the bottom of the valley that the middle one lies in."""
    noise: dict[int, float] = {}

    def at(index: int) -> float:
        if not 0 <= index < len(grids):
            return np.inf
        if index not in noise:
            noise[index] = trial.noise(grids[index])
        return noise[index]

    index = len(grids) // 2
    for step in (-1, 1):
        while at(index + step) < at(index):
            index += step
    return Best(grids[index], at(index))


class _Suffix:
    """The part of a model that depends on one tensor; all else that it reads is recorded."""

    def __init__(
        self, model: Skeleton, name: str, cut: Sequence[str], outputs: Sequence[str], recorded: list[Batch]
    ) -> None:
        self._name, self._cut, self._recorded = name, cut, recorded
        fed = _fed(model, {other: recorded[0][other] for other in (name, *cut)})
        dependent = _dependents(model, name)
        self._judged = [output for output in outputs if output in dependent]
        self._outputs = [output for output in self._judged if output != name]
        self._session = create(with_outputs(fed, self._outputs)) if self._outputs else None
        self._signal = {output: _energy(batch[output] for batch in recorded) for output in self._judged}

    def noise(self, grid: Grid) -> float:
        """See ``Best``."""
        noise = dict.fromkeys(self._judged, 0.0)
        for batch in self._recorded:
            feeds = {other: batch[other] for other in self._cut}
            feeds[self._name] = rounded(batch[self._name], grid)
            values = {**feeds, **(run(self._session, feeds, self._outputs) if self._session else {})}
            for output in noise:
                noise[output] += _energy([values[output].astype(np.float64) - batch[output]])
        return sum(noise[output] / signal for output, signal in self._signal.items() if signal > 0)


def _energy(arrays: Iterable[Array]) -> float:
    return float(sum(np.square(array, dtype=np.float64).sum() for array in arrays))


def _cut(model: Skeleton, name: str) -> list[str]:
    """What the nodes that depend on a tensor read besides, computed or fed."""
    dependent = _dependents(model, name)
    known = {entry.name for entry in model.proto.graph.input}
    known.update(output for node in model.proto.graph.node if node.op_type != "Constant" for output in node.output)
    cut = dict.fromkeys(
        other
        for node in model.proto.graph.node
        if dependent.intersection(node.output) - {name}
        for other in reads_of(node)
        if other in known and other not in dependent
    )
    return list(cut)


def _dependents(model: Skeleton, name: str) -> set[str]:
    """A tensor and all that is computed from it."""
    dependent = {name}
    for node in model.proto.graph.node:
        if not dependent.isdisjoint(reads_of(node)):
            dependent.update(output for output in node.output if output)
    return dependent


def _fed(model: Skeleton, values: Batch) -> Skeleton:
    """The model with some of its tensors as its only inputs."""
    proto = model.copied()
    for node in proto.graph.node:
        for index, output in enumerate(node.output):
            if output in values:
                node.output[index] = f"{output} (unused)"
    del proto.graph.input[:]
    for name, value in values.items():
        entry = proto.graph.input.add(name=name)
        entry.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return Skeleton(proto, model.payloads)


def _record(model: Skeleton, dataset: Dataset, names: Iterable[str]) -> list[Batch]:
    """The values of these tensors."""
    wanted = list(dict.fromkeys(names))
    computed = [name for name in wanted if not _is_input(model, name)]
    session = create(with_outputs(model, computed)) if computed else None
    batches = []
    for feeds in dataset.feeds():
        values = {**feeds, **(run(session, feeds, computed) if session else {})}
        batches.append({name: values[name] for name in wanted})
    return batches


def _portions(model: Skeleton, dataset: Dataset, cuts: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """The tensors in their order, as many at a time as may be recorded with their cuts."""
    (values,) = _record(model, dataset.take(1), [*cuts, *(other for cut in cuts.values() for other in cut)])[:1]
    scale = len(dataset) / dataset.least
    portion: dict[str, None] = {}
    held: set[str] = set()
    for name, cut in cuts.items():
        if not all(isinstance(values[other], np.ndarray) for other in (name, *cut)):
            continue  # sequences cannot be fed
        held |= {name, *cut}
        if portion and scale * sum(values[other].nbytes for other in held) > _RECORDED:
            yield list(portion)
            portion, held = {}, {name, *cut}
        portion[name] = None
    if portion:
        yield list(portion)


def _float_outputs(model: Skeleton, dataset: Dataset) -> list[str]:
    values = run(create(model), dataset.sample())
    return [name for name, value in values.items() if isinstance(value, np.ndarray) and is_float(value.dtype)]


def _is_input(model: Skeleton, name: str) -> bool:
    return any(entry.name == name for entry in model.proto.graph.input)
