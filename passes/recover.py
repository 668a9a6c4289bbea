"""The pass ``recover``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.stored import dtype_name
from onnxcomp.graph.trainable import Trainable, made_layers, name_of_weight
from onnxcomp.linalg.optimizers import OptimizerName
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.checkpoint import Checkpoint
from onnxcomp.runtime.distillation import Course, Outcome, train
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.heads import LossName, float_outputs
from onnxcomp.runtime.lessons import Curriculum, Lesson
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target

__all__ = ["Recover"]

Array = np.ndarray[Any, Any]

_HELD_OUT = 0.1
_MOST_HELD_OUT = 1024
_MEMORY = 4e9  # bytes of samples of a function
_STEPS = 1000  # where nothing else is said
# What a sample of a step takes, in runs of the model, and each of its values in bytes: it is kept, with its gradient.
_RUNS_PER_SAMPLE = 4
_BYTES_PER_VALUE = 8
_LEFT = "it is to be left alone"
_LEFT_SOURCE = "what its weight is made of is to be left alone"


class Recover(Pass):
    """Win accuracy back: train the compressed model to answer as the original does.

    Nothing but ONNX takes part. The gradients of the model's weights are a graph of plain operators that ONNX Runtime
    runs (see ``onnxcomp.gradient``); the steps are taken in NumPy. The teacher is the model before the first pass, so
    samples need no labels; the more of them there are, the better: some thousands, if they can be had.

    1. Each output is compared with the teacher's: class scores and probabilities by their Kullback-Leibler divergence,
       others by the square of the error (``loss``). Intermediate tensors can be compared as well: named ones
       (``match``), or late ones through which all goes, whose channels no pass took or moved (``hints``; Romero et al.
       2015, arXiv:1412.6550; of use where samples are few: Wang et al. 2022, arXiv:2201.02620).
    2. Mini-batches in random order, Adam, a learning rate that rises and falls once. A tenth of the samples, at most
       1,024, are held out; the weights that are best on those are kept, and where none are better, nothing changes.
       Where samples are few, mixtures of them (``mix``) keep the model from learning them by heart.
    3. With ``parts``, each part of the network is trained on its own, on what the trained parts before it give, to have
       the original's values at its end (block-wise distillation). That takes the memory of one part.
    4. What earlier passes made stays: zeros of sparse weights are zero, channels that are gone are gone, factors and
       codebooks are trained as they are. Weights in codes stay on their grids: behind each code stands a real number,
       which the gradient moves as if it were not rounded, and scales are trained too (learned step sizes, Esser et al.
       2020, arXiv:1902.08153).

    Weights and biases of Conv, ConvTranspose, Gemm and MatMul are trained, and what normalizations scale and shift by.
    A layer behind an operator without a derivative stays as it is, with that reason; so do tables, recurrent layers,
    and layers in the bodies of If, Loop and Scan.
    """

    name: ClassVar[str] = "recover"
    stage: ClassVar[Stage] = Stage.RECOVER
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    epochs: int | None = Field(
        None, ge=1, le=100_000, description="how often each sample is used; by default as often as makes 1,000 steps"
    )
    batch: int = Field(32, ge=1, le=65_536, description="samples in a step; of a model with a fixed batch, runs")
    lr: float = Field(1e-3, gt=0, le=10, description="highest learning rate; with adam about what a weight changes by")
    loss: LossName = Field(
        "auto",
        description="kl: divergence of class probabilities; mse: squared errors of the outputs; ce: cross entropy with "
        "the labels; auto: kl for class scores (two axes, computed by a layer: give mse for a regression, and where "
        "samples are few), else mse",
    )
    match: tuple[str, ...] = Field(
        (), description="names of intermediate tensors whose values are to be the original's too, by squared errors"
    )
    hints: int = Field(
        0,
        ge=0,
        le=1000,
        description="up to so many intermediate tensors more to match, late ones, which are found by themselves: of a "
        "network's features there is more to learn than of its class scores, where samples are few",
    )
    parts: int = Field(
        1,
        ge=1,
        le=1000,
        description="train the network in so many parts, one after the other, each by what the original has at its "
        "end: less memory, for large models",
    )
    mix: bool = Field(
        False,
        description="train on mixtures of two samples of a step, to which the original answers anew: slower, but few "
        "samples go further",
    )
    optimizer: OptimizerName = Field("adam", description="adam, or sgd with Nesterov's momentum")
    patience: int = Field(
        10, ge=1, description="the held-out loss is measured 20 times; so many without a better one end the training"
    )
    freeze: tuple[str, ...] = Field(
        (), description="names of layers to leave alone; what their weights share with other layers stays too"
    )
    checkpoint: str | None = Field(
        None, description="file to keep the state in 20 times, and to go on from after an interruption"
    )

    @model_validator(mode="after")
    def _agree(self) -> Recover:
        if self.mix and self.loss == "ce":
            raise ValueError("a mixture of samples has no label: give mix or loss='ce', not both")
        if self.parts > 1 and (self.checkpoint is not None or self.match or self.hints):
            raise ValueError("parts are trained without checkpoint, match and hints; leave those out, or parts")
        return self

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            PassError: there is no calibration data, or nothing of the model can be trained on it.
        """
        made = made_layers(model)
        layers = [layer for layer in weighted_layers(model) if layer.name not in made]
        if unknown := set(self.freeze).difference((layer.name for layer in layers), made):
            raise PassError(f"recover: option freeze names {min(unknown)!r}, which is no weighted layer of this model")
        if not float_outputs(model):
            every: list[WeightedLayer | str] = [*layers, *made]
            for layer in every:
                ctx.skip(layer, "no output of the model is of float32, so no loss tells what to change")
            return
        trainable = Trainable.of(model, self.freeze)
        if not trainable.parameters:
            _log(ctx, layers, made, {}, {})
            return
        curriculum = self._curriculum(trainable, ctx)
        before = self._judge(curriculum)
        names = [parameter.name for parameter in trainable.parameters]
        lessons = curriculum.parts(self.parts, names) if self.parts > 1 else iter([curriculum.whole(names)])
        learnt, outcomes, frozen = dict[str, Array](), dict[str, _Result](), dict[str, str]()
        for lesson in lessons:
            frozen |= lesson.gradients.frozen(lesson.probe)
            moving = [name for name in lesson.gradients.parameters if name not in frozen]
            if moving:
                outcome = self._train(lesson, trainable, moving, curriculum.data, ctx)
                outcomes.update(dict.fromkeys(moving, _Result(outcome, lesson.what)))
                if outcome.after < outcome.before:
                    learnt |= outcome.values
                    trainable.learn(outcome.values)  # for the parts to come
        if (after := self._judge(curriculum)) > before:  # values between parts may mean something else than they did
            reason = (
                f"what is inside came closer to the original's, but not the outputs: their loss rose to {after:.3g}"
            )
            _log(ctx, layers, made, {}, frozen | dict.fromkeys(outcomes, f"{reason} from {before:.3g}"))
            return
        trainable.write(model, learnt)
        _log(ctx, layers, made, outcomes, frozen)

    def _judge(self, curriculum: Curriculum) -> float:
        """The held-out loss of the outputs, where more than that is trained on; else the training knows it."""
        if self.parts == 1 and not (self.match or self.hints):
            return 0.0
        _, held_out = _split(curriculum.data.units)
        size = min(self.batch, len(held_out))
        return curriculum.judge([held_out[start : start + size] for start in range(0, len(held_out), size)])

    def _curriculum(self, trainable: Trainable, ctx: Context) -> Curriculum:
        data = ctx.require_data().at_random(_MEMORY)
        if ctx.original is None:
            raise PassError("recover needs the original model to learn from; run it through compress or the command")
        if self.mix and (not data.joins or self.batch == 1):
            raise PassError("recover: mix needs samples that can be fed together, several in a step; leave it out")
        if self.loss == "ce" and data.labels is None:
            raise PassError("recover: loss='ce' needs labels; add an array 'labels' to the data")
        return Curriculum(trainable.student, ctx.original, data, self.loss, self.match, self.hints)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        names = {parameter.name for parameter in Trainable.of(model).parameters}
        sources = made_layers(model)
        layers = [layer for layer in weighted_layers(model) if layer.name not in sources]
        made = sum(not names.isdisjoint(each) for each in sources.values())
        trained = [layer for layer in layers if name_of_weight(layer) in names]
        reasons = [_reason(layer) for layer in layers if layer not in trained]
        return f"weights of {len(trained) + made} of {len(layers) + made} layers could be trained{because(reasons)}"

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:
        """See the base class."""
        if dataset is None:
            return None
        steps, batch = self._epochs(dataset.units) * max(1, dataset.units // self.batch), min(self.batch, dataset.units)
        found = effort_of_runs(model, dataset, _RUNS_PER_SAMPLE * steps * batch)
        values = sum(math.prod(shape) for shape in observed(model, dataset.sample()).values()) / max(1, dataset.least)
        return replace(found, bytes=found.bytes + _BYTES_PER_VALUE * batch * values)

    def _epochs(self, count: int) -> int:
        return self.epochs or math.ceil(_STEPS / max(1, count // min(self.batch, count)))

    def _train(
        self, lesson: Lesson, trainable: Trainable, moving: Sequence[str], data: Dataset, ctx: Context
    ) -> Outcome:
        training, held_out = _split(data.units)
        course = Course(
            epochs=self._epochs(len(training)),
            batch=self.batch,
            rate=self.lr,
            optimizer=self.optimizer,
            patience=self.patience,
            mix=self.mix,
            seed=[int(part) for part in ctx.rng().integers(0, 2**31, 4)],
        )
        checkpoint = None
        if self.checkpoint is not None:
            assert ctx.original is not None
            identity = _digest([trainable.student, ctx.original], data, [str(self), str(ctx.seed)])
            checkpoint = Checkpoint(Path(self.checkpoint), identity)
        return train(
            lesson.gradients,
            trainable.variables(moving),
            {name: mask for name, mask in trainable.kept.items() if name in moving},
            lesson.targets,
            (training, held_out),
            course,
            checkpoint,
            ctx.progress,
        )


class _Result(NamedTuple):
    outcome: Outcome
    what: str  # the loss


def _split(count: int) -> tuple[list[int], list[int]]:
    """Positions of the units to train on, and of those that are held out."""
    held = min(max(1, round(count * _HELD_OUT)), _MOST_HELD_OUT)
    order = np.random.default_rng(0).permutation(count)
    return sorted(map(int, order[held:])) or [0], sorted(map(int, order[:held]))


def _digest(models: Sequence[Model], data: Dataset, options: Sequence[str]) -> str:
    """Of all that a training depends on."""
    digest = hashlib.sha256("\0".join(options).encode())
    for model in models:
        digest.update(model.serialize())
    digest.update(data.describe()["sha256"].encode())
    return digest.hexdigest()


def _log(
    ctx: Context,
    layers: Sequence[WeightedLayer],
    made: Mapping[str, Sequence[str]],
    outcomes: Mapping[str, _Result],
    frozen: Mapping[str, str],
) -> None:
    """Decide about every layer.

    Args:
        made: what the weights of further layers are made of, see ``made_layers``.
        outcomes: by name of the parameters that were trained.
        frozen: reasons by name of the others.
    """
    for layer in layers:
        weight = name_of_weight(layer)
        _decide(ctx, layer, outcomes.get(weight), frozen.get(weight) or _reason(layer))
    for name, sources in made.items():
        result = next((outcomes[source] for source in sources if source in outcomes), None)
        _decide(ctx, name, result, next((frozen[source] for source in sources if source in frozen), _LEFT_SOURCE))


def _decide(ctx: Context, layer: WeightedLayer | str, result: _Result | None, reason: str) -> None:
    if result is None:
        ctx.skip(layer, reason)
    else:
        outcome, what = result.outcome, result.what
        if outcome.after < outcome.before:
            told = f"{outcome.before:.3g} to {outcome.after:.3g} in {outcome.steps} steps"
            ctx.act(layer, "trained", f"held-out loss ({what}) from {told}")
        else:
            ctx.skip(layer, f"no training step made the held-out loss ({what}) smaller than {outcome.before:.3g}")


def _reason(layer: WeightedLayer) -> str:
    if layer.nested:
        return f"it lies {layer.place}, which is not differentiated"
    if layer.quantized:
        return "its weight is made of integers in a way that training does not follow"
    if layer.kind == "other":
        return f"the weight of {layer.op} is not trained"
    if (dtype := dtype_name(layer.weight)) != "float32":
        return f"its weight is {dtype}, and only float32 is trained"
    return _LEFT
