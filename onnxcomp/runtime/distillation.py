"""Training a compressed model to answer as the original does (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.linalg.optimizers import Optimizer, OptimizerName, clipped, cosine
from onnxcomp.linalg.variables import Variables
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.checkpoint import Checkpoint
from onnxcomp.runtime.gradients import Gradients
from onnxcomp.runtime.lessons import Batches

__all__ = ["Course", "Outcome", "train"]

Array = np.ndarray[Any, Any]

SECTIONS = 20  # of the training, after each of which the held-out loss is measured
_OFTEN = 3.0  # norms of the gradient over the usual one are cut down to so much of it
_REMEMBERED = 64
_WORSE = 1.5  # a held-out loss this much over the first one: the rate is too high
_SLOWER = 0.3
_MIXING = 1  # tells draws of mixtures from those of orders
_NOISE = 1e-7  # of a loss: differences below it are rounding


@dataclass(frozen=True)
class Course:
    """How training goes.

    Attributes:
        epochs: how often each sample is used.
        batch: units in a step.
        rate: the highest learning rate.
        optimizer: adam or sgd.
        patience: measurements of the held-out loss without a better one after which it ends.
        seed: of the order of samples.
        mix: units of a step are mixed with each other.
    """

    epochs: int
    batch: int
    rate: float
    optimizer: OptimizerName = "adam"
    patience: int = SECTIONS
    seed: Sequence[int] = (0,)
    mix: bool = False


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        values: the variables with the least held-out loss.
        before, after: that loss with the first values and with these.
        steps: that were taken, of ``planned``.
    """

    values: dict[str, Array]
    before: float
    after: float
    steps: int
    planned: int


def train(
    gradients: Gradients,
    variables: Variables,
    kept: Mapping[str, Array],
    targets: Batches,
    split: tuple[Sequence[int], Sequence[int]],
    course: Course,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Change parameters so that the loss on held-out samples becomes small.

    The learning rate rises and falls once (see ``cosine``); where the held-out loss rises far above the first one, it
    goes on from the best values at a third of the rate.

    Args:
        gradients: of the student.
        variables: of which the student's parameters are made.
        kept: where a variable may change, by name; everywhere for the others.
        targets: what the student is to give.
        split: positions of the units to train on, and of the held-out ones.
        course: how.
        checkpoint: where the state is stored, to go on from after an interruption.
        progress: shows the steps.

    Raises:
        SessionError: ONNX Runtime fails on the graph.
        PassError: the checkpoint is of another training.
    """
    training = _Training(gradients, variables, kept, targets, split, course)
    if checkpoint is not None and (stored := checkpoint.load()) is not None:
        training.restore(stored)
    else:
        training.judge()
    for step in progress(training.steps_left(), "recovering"):
        training.take(step.index)
        if step.last:
            training.judge()
            if checkpoint is not None:
                checkpoint.store(training.state())
            if training.stale >= course.patience:
                break
    if checkpoint is not None:
        checkpoint.remove()
    return training.outcome()


@dataclass
class _Step:
    """A step: its number, whether the held-out loss is measured behind it, and how a progress bar calls it."""

    index: int
    last: bool
    training: _Training

    @property
    def name(self) -> str:
        return f"(loss {self.training.least:.3g} of {self.training.before:.3g})"


class _Training:
    """The variables on their way."""

    def __init__(
        self,
        gradients: Gradients,
        variables: Variables,
        kept: Mapping[str, Array],
        targets: Batches,
        split: tuple[Sequence[int], Sequence[int]],
        course: Course,
    ) -> None:
        self._gradients, self._targets, self._course = gradients, targets, course
        self._training, held_out = split
        self._batch = min(course.batch, len(self._training))
        self._held_out = [list(part) for part in _chunks(held_out, self._batch)]
        self._of_epoch = len(self._training) // self._batch
        self.planned = course.epochs * self._of_epoch
        self._section = math.ceil(self.planned / SECTIONS)
        self._variables = variables
        self._values = {name: value.copy() for name, value in variables.start.items()}
        self._optimizer = Optimizer(course.optimizer, self._values, kept)
        self._best = {name: value.copy() for name, value in self._values.items()}
        self.before = self.least = math.inf
        self.stale = self._done = 0
        self._slowdown = 1.0
        self._norms: list[float] = []

    def steps_left(self) -> list[_Step]:
        """Those to take."""
        ends = {*range(self._section - 1, self.planned, self._section), self.planned - 1}
        return [_Step(index, index in ends, self) for index in range(self._done, self.planned)]

    def take(self, index: int) -> None:
        """One step, on a mini-batch."""
        losses, gradients = [], []
        parameters = self._variables.parameters(self._values)
        mixing = np.random.default_rng([*self._course.seed, _MIXING, index]) if self._course.mix else None
        for batch in self._targets.batches(self._positions(index), mixing):
            found = self._gradients.step(parameters, batch.feeds, batch.targets)
            losses.append(found.loss)
            gradients.append(found.gradients)
        self._done = index + 1
        mean = {name: _mean([part[name] for part in gradients]) for name in gradients[0]}
        whole = self._variables.pull(self._values, mean)
        usual = float(np.median(self._norms)) if self._norms else math.inf
        cut, norm = clipped(whole, _OFTEN * usual)
        if math.isfinite(norm) and np.isfinite(losses).all():
            self._norms = [*self._norms, norm][-_REMEMBERED:]
            self._optimizer.step(cut, self._course.rate * self._slowdown * cosine((index + 0.5) / self.planned))

    def judge(self) -> None:
        """Measure the held-out loss, and keep the values if it is the least so far."""
        batches = (batch for chunk in self._held_out for batch in self._targets.batches(chunk))
        parameters = self._variables.parameters(self._values)
        losses = [self._gradients.loss(parameters, batch.feeds, batch.targets) for batch in batches]
        loss = float(np.mean(losses))
        if not self._done:
            self.before = loss
        if loss < self.least - _NOISE:
            self.least, self.stale = loss, 0
            self._best = {name: value.copy() for name, value in self._values.items()}
            return
        self.stale += 1
        if not loss <= _WORSE * self.before:  # or it is not a number
            self._slowdown *= _SLOWER
            for name, value in self._best.items():
                self._values[name][...] = value

    def outcome(self) -> Outcome:
        """With the best values."""
        return Outcome(self._best, self.before, self.least, self._done, self.planned)

    def state(self) -> dict[str, Array]:
        """All that the steps to come depend on, as arrays by name."""
        numbers = [self.before, self.least, self.stale, self._done, self._slowdown]
        arrays = {f"value/{name}": value for name, value in self._values.items()}
        arrays |= {f"best/{name}": value for name, value in self._best.items()}
        arrays |= {f"optimizer/{name}": value for name, value in self._optimizer.state().items()}
        return arrays | {"numbers": np.array(numbers), "norms": np.array(self._norms)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on where ``state`` was taken."""
        self.before, self.least, stale, done, self._slowdown = map(float, state["numbers"])
        self.stale, self._done = int(stale), int(done)
        self._norms = list(map(float, state["norms"]))
        for name, value in self._values.items():
            value[...] = state[f"value/{name}"]
            self._best[name][...] = state[f"best/{name}"]
        self._optimizer.restore(
            {name.removeprefix("optimizer/"): value for name, value in state.items() if name.startswith("optimizer/")}
        )

    def _positions(self, index: int) -> list[int]:
        """Of the units of a step: each epoch has an order of its own."""
        epoch, place = divmod(index, self._of_epoch)
        order = np.random.default_rng([*self._course.seed, epoch]).permutation(len(self._training))
        return [self._training[unit] for unit in order[place * self._batch : (place + 1) * self._batch]]


def _mean(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.asarray(np.mean(parts, axis=0, dtype=np.float32))


def _chunks(positions: Sequence[int], size: int) -> list[Sequence[int]]:
    """Whole ones only where there is one, so that they are all of one shape."""
    whole = max(1, len(positions) // size)
    return [positions[index * size : (index + 1) * size] for index in range(whole)]
