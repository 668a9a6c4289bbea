"""The pass ``recover``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import PassError
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.parameters import Parameter
from onnxcomp.graph.trainable import Trainable, name_of_weight
from onnxcomp.linalg.optimizers import OptimizerName
from onnxcomp.linalg.variables import Variables
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage, because
from onnxcomp.runtime.checkpoint import Checkpoint
from onnxcomp.runtime.distillation import Course, Outcome, train
from onnxcomp.runtime.effort import Effort, effort_of_runs
from onnxcomp.runtime.gradients import Gradients
from onnxcomp.runtime.heads import Head, LossName, heads, matched
from onnxcomp.runtime.session import create, run, with_outputs
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.targets import Targets

__all__ = ["Recover"]

Array = np.ndarray[Any, Any]

_HELD_OUT = 0.1
_MOST_HELD_OUT = 1024
_MEMORY = 4e9  # bytes of samples of a function
_VARIANCE_SAMPLES = 8
_STEPS = 1000  # where nothing else is said
# What a sample of a step takes, in runs of the model, and each of its values in bytes: it is kept, with its gradient.
_RUNS_PER_SAMPLE = 4
_BYTES_PER_VALUE = 8


class Recover(Pass):
    """Win accuracy back: train the compressed model to answer as the original does.

    Nothing but ONNX takes part. The gradients of the model's weights are a graph of plain operators that ONNX Runtime
    runs (see ``onnxcomp.gradient``); the steps are taken in NumPy. The teacher is the model before the first pass, so
    samples need no labels; the more of them there are, the better: some thousands, if they can be had.

    1. Each output is compared with the teacher's: class scores and probabilities by their Kullback-Leibler divergence,
       others by the square of the error (``loss``). Intermediate tensors can be compared as well (``match``).
    2. Mini-batches in random order, Adam, a learning rate that rises and falls once. A tenth of the samples, at most
       1,024, are held out; the weights that are best on those are kept, and where none are better, nothing changes.
    3. What earlier passes made stays: zeros of sparse weights are zero, channels that are gone are gone, factors and
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
    batch: int = Field(32, ge=1, le=65_536, description="samples in a step")
    lr: float = Field(1e-3, gt=0, le=10, description="highest learning rate; with adam about what a weight changes by")
    loss: LossName = Field(
        "auto",
        description="kl: divergence of class probabilities; mse: squared errors of the outputs; ce: cross entropy with "
        "the labels; auto: kl for class scores, mse for other outputs",
    )
    match: tuple[str, ...] = Field(
        (), description="names of intermediate tensors whose values are to be the original's too, by squared errors"
    )
    optimizer: OptimizerName = Field("adam", description="adam, or sgd with Nesterov's momentum")
    patience: int = Field(
        10, ge=1, description="the held-out loss is measured 20 times; so many without a better one end the training"
    )
    freeze: tuple[str, ...] = Field((), description="names of layers to leave alone")
    checkpoint: str | None = Field(
        None, description="file to keep the state in 20 times, and to go on from after an interruption"
    )

    def run(self, model: Model, ctx: Context) -> None:
        """See the class.

        Raises:
            PassError: there is no calibration data, or nothing of the model can be trained on it.
        """
        layers = weighted_layers(model)
        if unknown := set(self.freeze).difference(layer.name for layer in layers):
            raise PassError(f"recover: option freeze names {min(unknown)!r}, which is no weighted layer of this model")
        data = ctx.require_data().at_random(_MEMORY)
        if ctx.original is None:
            raise PassError("recover needs the original model to learn from; run it through compress or the command")
        if self.loss == "ce" and data.labels is None:
            raise PassError("recover: loss='ce' needs labels; add an array 'labels' to the data")
        trainable = Trainable.of(model, self.freeze)
        work = _Work.of(trainable, ctx.original, data, self.loss, self.match)
        frozen = work.gradients.frozen(work.probe)
        moving = [parameter for parameter in trainable.parameters if parameter.name not in frozen]
        if moving:
            outcome = self._train(work, moving, ctx)
            if outcome.after < outcome.before:
                trainable.write(model, outcome.values)
            _log(ctx, layers, moving, frozen, outcome)
        else:
            _log(ctx, layers, [], frozen, None)

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """See the base class."""
        layers, names = weighted_layers(model), {parameter.name for parameter in Trainable.of(model).parameters}
        trained = [layer for layer in layers if name_of_weight(layer) in names]
        reasons = [_reason(layer) for layer in layers if layer not in trained]
        return f"weights of {len(trained)} of {len(layers)} layers could be trained{because(reasons)}"

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

    def _train(self, work: _Work, moving: Sequence[Parameter], ctx: Context) -> Outcome:
        training, held_out = work.split
        course = Course(
            epochs=self._epochs(len(training)),
            batch=self.batch,
            rate=self.lr,
            optimizer=self.optimizer,
            patience=self.patience,
            seed=[int(part) for part in ctx.rng().integers(0, 2**31, 4)],
        )
        checkpoint = None
        if self.checkpoint is not None:
            checkpoint = Checkpoint(Path(self.checkpoint), work.identity([str(self), str(ctx.seed)]))
        return train(
            work.gradients,
            work.variables(moving),
            {parameter.name: parameter.kept for parameter in moving if parameter.kept is not None},
            work.targets,
            (training, held_out),
            course,
            checkpoint,
            ctx.progress,
        )


class _Work:
    """Student, teacher and samples, ready to train on."""

    def __init__(self, trainable: Trainable, data: Dataset, gradients: Gradients, targets: Targets, probe: Any) -> None:
        self._trainable = trainable
        self._data = data
        self.gradients = gradients
        self.targets = targets
        self.probe: Mapping[str, Array] = probe
        count = data.units
        held = min(max(1, round(count * _HELD_OUT)), _MOST_HELD_OUT)
        order = np.random.default_rng(0).permutation(count)
        self.split: tuple[list[int], list[int]] = (
            sorted(map(int, order[held:])) or [0],
            sorted(map(int, order[:held])),
        )

    @classmethod
    def of(cls, trainable: Trainable, original: Model, data: Dataset, loss: LossName, match: Sequence[str]) -> _Work:
        probe, student = data.sample(), trainable.student
        shapes = observed(student, probe)
        found = heads(student, shapes, loss)
        labels = data.labels if found[0].kind == "ce" else None
        if match:
            outputs = {head.tensor for head in found}
            found += matched([name for name in match if name not in outputs], shapes, observed(original, probe))
        variances = _variances(original, data, found)
        terms = [head.term(1 / len(found), variances[head.output]) for head in found]
        gradients = Gradients(student, [parameter.name for parameter in trainable.parameters], terms)
        return cls(trainable, data, gradients, Targets(original, data, found, labels), probe)

    def variables(self, moving: Sequence[Parameter]) -> Variables:
        """Of which these parameters are made."""
        values = {parameter.name: parameter.value for parameter in moving}
        return Variables(values, {name: grid for name, grid in self._trainable.grids.items() if name in values})

    def identity(self, options: Sequence[str]) -> str:
        """A digest of all that the training depends on."""
        digest = hashlib.sha256("\0".join(options).encode())
        digest.update(self._trainable.student.serialize())
        digest.update(self._data.describe()["sha256"].encode())
        return digest.hexdigest()


def _variances(original: Model, data: Dataset, found: Sequence[Head]) -> dict[str, float]:
    """Mean squares of what the teacher gives, on a few samples."""
    sums = {head.output: [0.0, 0] for head in found}
    session = create(with_outputs(original.skeleton(), list(sums)))
    for feeds in data.take(_VARIANCE_SAMPLES).feeds():
        values = run(session, feeds, list(sums))
        for name, entry in sums.items():
            entry[0] += float(np.square(values[name], dtype=np.float64).sum())
            entry[1] += values[name].size
    return {name: total / max(1, count) for name, (total, count) in sums.items()}


def _log(
    ctx: Context,
    layers: Sequence[WeightedLayer],
    moving: Sequence[Parameter],
    frozen: Mapping[str, str],
    outcome: Outcome | None,
) -> None:
    """Decide about every layer."""
    names = {parameter.name for parameter in moving}
    for layer in layers:
        weight = name_of_weight(layer)
        if outcome is not None and weight in names:
            if outcome.after < outcome.before:
                told = f"{outcome.before:.3g} to {outcome.after:.3g} in {outcome.steps} steps"
                ctx.act(layer, "trained", f"held-out loss from {told}")
            else:
                ctx.skip(layer, f"no training step made the held-out loss smaller than {outcome.before:.3g}")
        else:
            ctx.skip(layer, frozen.get(weight) or _reason(layer))


def _reason(layer: WeightedLayer) -> str:
    if layer.nested:
        return f"it lies {layer.place}, which is not differentiated"
    if layer.quantized:
        return "its weight is made of integers"
    if layer.kind == "other":
        return f"the weight of {layer.op} is not trained"
    return "it is to be left alone"
