"""What a student is trained on: a network as a whole, or one part of it after the other."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.gradient import Term
from onnxcomp.graph.cuts import between, cuts, evenly, spread
from onnxcomp.graph.inferred import infer_types
from onnxcomp.model import Model
from onnxcomp.runtime.gradients import Gradients
from onnxcomp.runtime.heads import Head, LossName, heads, matched
from onnxcomp.runtime.session import Feeds, create, run, with_outputs
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.targets import Batch, Targets

__all__ = ["Batches", "Curriculum", "Lesson"]

Array = np.ndarray[Any, Any]
_VARIANCE_SAMPLES = 8
_TOLD = 2  # losses that are named
_RELATED = 1.0  # of the variance of the teacher's values: the mean alone would be as near
_CONSTANT = 1e-9  # of the mean square: less variance is rounding


class Batches(Protocol):
    """Gives feeds with what the student is to answer."""

    def batches(self, positions: Sequence[int], mixing: np.random.Generator | None = None) -> list[Batch]:
        """Of these units: one batch where they may be fed together, else one for each.

        ``mixing`` draws mixtures of units, see ``Targets``.
        """


@dataclass(frozen=True)
class Lesson:
    """A network, or a part of one, with its losses.

    Attributes:
        gradients: of its losses.
        targets: feeds and the teacher's answers.
        probe: one sample's feeds.
        what: the losses, and what they are of.
    """

    gradients: Gradients
    targets: Batches
    probe: Feeds
    what: str


@dataclass(frozen=True)
class Curriculum:
    """Teacher, student and samples.

    Attributes:
        student: its constants change between the lessons.
        original: the teacher.
        data: samples, of which any may be read at any time.
        loss: of the outputs.
        match: names of intermediate tensors to compare as well.
        hints: up to so many more, which are found by themselves.
    """

    student: Model
    original: Model
    data: Dataset
    loss: LossName
    match: Sequence[str] = ()
    hints: int = 0

    def whole(self, parameters: Sequence[str]) -> Lesson:
        """All of the network by the losses of its outputs.

        Raises:
            PassError: no output has such a loss, or a tensor of ``match`` is missing.
        """
        probe = self.data.sample()
        shapes = observed(self.student, probe)
        found = heads(self.student, shapes, self.loss)
        if self.match or self.hints:
            outputs = {head.tensor for head in found}
            names = [name for name in [*self.match, *self._hints(parameters, shapes)] if name not in outputs]
            found += matched(names, shapes, self._shapes_of_teacher)
        gradients = Gradients(self.student, parameters, self._terms(found))
        return Lesson(gradients, self._targets(found), probe, _told(found))

    def judge(self, positions: Sequence[Sequence[int]]) -> float:
        """The loss of the student's outputs as it is now, on these batches of units."""
        terms, targets = self._exam
        gradients = Gradients(self.student, (), terms)  # with the constants that the student has now
        batches = (batch for chunk in positions for batch in targets.batches(chunk))
        return float(np.mean([gradients.loss({}, batch.feeds, batch.targets) for batch in batches]))

    @functools.cached_property
    def _exam(self) -> tuple[list[Term], Targets]:
        """The losses of the outputs and the teacher's answers, which stay while the student learns."""
        found = heads(self.student, observed(self.student, self.data.sample()), self.loss)
        return self._terms(found), self._targets(found)

    def parts(self, count: int, parameters: Sequence[str]) -> Iterator[Lesson]:
        """The network in parts, each trained to continue what the student gives it as the teacher would.

        A part takes what the parts before it give once they are trained; all but the last are compared with the
        teacher's values by squared errors. Memory is needed for the values of one part.

        Args:
            count: at most so many; cuts are where one tensor holds all, which no pass has changed in shape.
            parameters: names of initializers of the student.
        """
        shapes, trained = observed(self.student, self.data.sample()), set(parameters)
        ends: list[str | None] = [*self._cuts(count, parameters, shapes), None]
        start: str | None = None
        for end in ends:
            part = between(self.student, start, end)
            found = heads(part, shapes, self.loss) if end is None else [Head(end, end, "mse")]
            names = [tensor.name for tensor in part.proto().graph.initializer if tensor.name in trained]
            targets: Batches = self._targets(found)
            if start is not None:
                targets = _Continued(targets, between(self.student, None, start), part, start)
            if names:
                feeds = targets.batches([0])[0].feeds
                yield Lesson(Gradients(part, names, self._terms(found)), targets, feeds, _told(found))
            start = end

    def _hints(self, parameters: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Late cuts where the student's values still mean what the teacher's do: their channels keep their order."""
        every = cuts(self.student, parameters) if self.hints else []
        second_half = every[max(0, len(every) - 1) // 2 :]
        places = self._unchanged([name for name in second_half if name not in self.match], shapes)
        apart = self._distances(places) if places else {}
        return spread([name for name in places if apart[name] < _RELATED], self.hints)

    def _distances(self, names: Sequence[str]) -> dict[str, float]:
        """Mean squared differences of student and teacher over the variance of the teacher's values."""
        apart, theirs = ({name: _Spread() for name in names} for _ in range(2))
        pairs = zip(self._values(self.student, names), self._values(self.original, names), strict=True)
        for found, wanted in pairs:
            for name in names:
                apart[name].add(found[name] - wanted[name])
                theirs[name].add(wanted[name])
        return {name: apart[name].mean_square / (theirs[name].variance or 1.0) for name in names}

    def _unchanged(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Of these tensors of the student, float ones that no pass made smaller."""
        types, theirs = infer_types(self.student), infer_types(self.original)
        return [
            name
            for name in names
            if name in shapes
            and self._shapes_of_teacher.get(name) == shapes[name]
            and all(name in known and known[name].element == onnx.TensorProto.FLOAT for known in (types, theirs))
        ]

    @functools.cached_property
    def _shapes_of_teacher(self) -> dict[str, tuple[int, ...]]:
        return observed(self.original, self.data.sample())

    def _cuts(self, count: int, parameters: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        places = self._unchanged(cuts(self.student, parameters), shapes)
        total, positions = 0.0, {}
        for node in self.student.proto().graph.node:
            total += sum(float(np.prod(shapes.get(name, (0,)))) for name in node.output)
            positions.update(dict.fromkeys(node.output, total))
        shares = {name: positions[name] / max(1.0, total) for name in places}
        return evenly(places, shares, count)

    def _targets(self, found: Sequence[Head]) -> Targets:
        labels = None
        if found[0].kind == "ce" and self.data.labels is not None:
            labels = _checked(self.data.labels, found, observed(self.student, self.data.sample()))
        return Targets(self.original, self.data, found, labels)

    def _terms(self, found: Sequence[Head]) -> list[Term]:
        variances = self._variances(found)
        return [head.term(1 / len(found), variances[head.output]) for head in found]

    def _variances(self, found: Sequence[Head]) -> dict[str, float]:
        """Of what the teacher gives, on a few samples."""
        theirs = {head.output: _Spread() for head in found}
        for values in self._values(self.original, list(theirs)):
            for name, value in values.items():
                theirs[name].add(value)
        return {name: each.variance for name, each in theirs.items()}

    def _values(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Of these tensors, on a few samples."""
        session = create(with_outputs(model.skeleton(), names))
        return (run(session, feeds, names) for feeds in self.data.take(_VARIANCE_SAMPLES).feeds())


@dataclass
class _Spread:
    """Sums over values."""

    squares: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, values: Array) -> None:
        self.squares += float(np.square(values, dtype=np.float64).sum())
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    @property
    def mean_square(self) -> float:
        return self.squares / max(1, self.count)

    @property
    def variance(self) -> float:
        """Of a constant, its square."""
        variance = self.mean_square - (self.total / max(1, self.count)) ** 2
        return variance if variance > _CONSTANT * self.mean_square else self.mean_square


def _told(found: Sequence[Head]) -> str:
    told = [f"{head.kind} of {head.output}" for head in found[:_TOLD]]
    return ", ".join(told) + (f" and {len(found) - _TOLD} more" if len(found) > _TOLD else "")


def _checked(labels: Array, found: Sequence[Head], shapes: Mapping[str, tuple[int, ...]]) -> Array:
    """Class numbers for the head of kind ``ce``, as they are.

    Raises:
        PassError: they are none of its classes, or one for each sample is not what it wants.
    """
    shape, axis = shapes[found[0].tensor], found[0].axis
    classes = shape[axis]
    positions = [size for place, size in enumerate(shape) if place not in (0, axis % len(shape))]
    if int(np.prod(positions)) != 1 or labels.ndim > 1:
        raise PassError("recover: loss='ce' learns one class number for each sample; leave labels out for others")
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
        raise PassError(
            f"recover: loss='ce' needs labels from 0 to {classes - 1}, as {found[0].output} has {classes} classes; "
            f"these go from {labels.min(initial=0)} to {labels.max(initial=0)}"
        )
    return labels


class _Continued:
    """Batches of a part of the student: what the parts before it give, and the teacher's answers.

    Args:
        targets: of the whole network's feeds.
        before: the parts before, as they are now.
        part: that is fed.
        start: the tensor between them.
    """

    def __init__(self, targets: Batches, before: Model, part: Model, start: str) -> None:
        self._targets = targets
        self._session: ort.InferenceSession = create(before)
        self._start = start
        self._inputs = {value.name for value in part.proto().graph.input}

    def batches(self, positions: Sequence[int], mixing: np.random.Generator | None = None) -> list[Batch]:
        """See ``Batches``."""
        return [self._continued(batch) for batch in self._targets.batches(positions, mixing)]

    def _continued(self, batch: Batch) -> Batch:
        taken = {value.name for value in self._session.get_inputs()}
        given = {name: value for name, value in batch.feeds.items() if name in taken}
        feeds = dict(batch.feeds) | run(self._session, given, [self._start])
        return Batch({name: value for name, value in feeds.items() if name in self._inputs}, batch.targets)
