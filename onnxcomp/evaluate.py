"""How far a compressed model's outputs are from the original's, and what that costs in the user's metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from onnxcomp.data import Dataset
from onnxcomp.errors import InputError, UsageError, VerificationError
from onnxcomp.fidelity import Fidelity, FidelitySums, Outputs, class_output
from onnxcomp.model import Model, one_line
from onnxcomp.runtime import session as runtime
from onnxcomp.sources import load_function

__all__ = [
    "LOUDEST",
    "Evaluation",
    "Evaluator",
    "Fidelity",
    "FidelitySums",
    "Metric",
    "compare",
    "default_metric",
    "fidelity",
    "metric_named",
    "noise",
    "outputs",
]

Array = np.ndarray[Any, Any]
_KEPT_BYTES = 64 * 2**20  # of a reference's outputs

MetricFunction: TypeAlias = Callable[[list[dict[str, Any]], Array | None], float]
Runnable: TypeAlias = "Model | ort.InferenceSession"


def outputs(model: Runnable, dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The model's outputs for each feed of the dataset, computed when they are asked for.

    Raises:
        InputError: the model does not load, or does not run on the data.
    """
    session = _session(model)
    for feeds in dataset.feeds():
        yield runtime.run(session, feeds)


def fidelity(reference: Iterable[Outputs], candidate: Iterable[Outputs]) -> Fidelity:
    """The distance between two streams of outputs, of the same feeds in the same order.

    Raises:
        VerificationError: outputs are missing or of another shape.
    """
    sums = FidelitySums()
    for r, c in zip(reference, candidate, strict=True):
        sums.update(r, c)
    return sums.result()


# -- metrics -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number to judge a model by.

    Either ``of_outputs`` is set, and each model gets a number of its own; or ``of_fidelity`` is, and only the
    compressed model does, measured against the original (whose number is the perfect one).

    Attributes:
        name: as written on the command line.
        of_outputs: called with the model's outputs, a dict by name for each feed of the dataset in order
            (most feeds are batches), and the labels of all samples or None.
        of_fidelity: a figure of the fidelity.
        perfect: the number of a model that equals the original, where ``of_fidelity`` is set.
        higher_is_better: whether a larger number is a better model.
        needs_labels: it cannot do without.
    """

    name: str
    of_outputs: MetricFunction | None = None
    of_fidelity: Callable[[Fidelity], float] | None = None
    perfect: float = math.nan
    higher_is_better: bool = True
    needs_labels: bool = False


LOUDEST = 1e6
"""Noise that counts for outputs that are infinite or NaN, where it is compared or summed."""


def noise(reference: Iterable[Outputs], candidate: Iterable[Outputs]) -> float:
    """Mean square of the error of the outputs over the mean square of the outputs: 0.01 is 20 dB.

    That of the worst output; outputs that are zero throughout do not count.

    Returns:
        infinite where the candidate gives NaN or infinite values, NaN where it cannot be told, for outputs are of
        another shape (which may depend on the values).
    """
    sums = FidelitySums()
    try:
        for r, c in zip(reference, candidate, strict=True):
            sums.update(r, c)
    except VerificationError:
        return math.nan
    return sums.noise()


@dataclass(frozen=True)
class Evaluation:
    """A compressed model beside its original on the same samples.

    Attributes:
        metric: name of the metric.
        metric_original, metric_compressed: its values.
        higher_is_better: whether a larger value is better.
        fidelity: distance of the outputs.
        samples: measured on.
    """

    metric: str
    metric_original: float
    metric_compressed: float
    higher_is_better: bool
    fidelity: Fidelity
    samples: int

    @property
    def drop(self) -> float:
        """How much worse the compressed model is, in the metric's own unit; negative when it is better.

        Against sqnr it is infinite unless the outputs are equal: a budget needs another metric.
        """
        if self.metric_original == self.metric_compressed:
            return 0.0  # both may be infinite
        change = self.metric_original - self.metric_compressed
        return change if self.higher_is_better else -change

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {**asdict(self), "drop": self.drop}


class Evaluator:
    """Judges candidates against one reference on the same samples.

    The reference's outputs are kept for the next candidate when they are small, else computed again each
    time; a candidate's are dropped batch by batch, unless the metric needs them all.

    Args:
        reference: the original.
        dataset: samples that were not calibrated on, ideally.
        metric: None for ``default_metric``.
    """

    def __init__(self, reference: Runnable, dataset: Dataset, metric: Metric | None = None) -> None:
        self._dataset = dataset
        self._metric = metric
        self._reference: list[dict[str, Any]] = []  # empty: unknown, or large
        self._runnable = reference
        if isinstance(reference, Model) and reference.is_large:  # little room for its session beside the candidate's
            for _ in self._reference_outputs():
                pass
        else:
            self._runnable = _session(reference)
        self._original: float | None = None

    def evaluate(self, candidate: Runnable) -> Evaluation:
        """Run the candidate on every sample and measure it.

        Raises:
            InputError: a model does not run on the data, or the metric lacks labels or fails.
            VerificationError: outputs are missing or of another shape, or the metric fails on them alone.
        """
        metric = self.metric
        sums = FidelitySums()
        references: list[dict[str, Any]] = []  # for the metric, until the reference's is known
        candidates: list[dict[str, Any]] = []
        for pair in zip(self._reference_outputs(), outputs(candidate, self._dataset), strict=True):
            sums.update(*pair)
            if metric.of_outputs is not None:
                candidates.append(pair[1])
                if self._original is None:
                    references.append(pair[0])
        fidelity = sums.result()
        if metric.of_fidelity is not None:
            original, compressed = metric.perfect, metric.of_fidelity(fidelity)
        else:
            if self._original is None:
                self._original = _apply(metric, references, self._dataset)
                if not math.isfinite(self._original):
                    raise InputError(
                        f"metric {metric.name} is {self._original} for the original; correct it, or its data"
                    )
            try:
                original, compressed = self._original, _apply(metric, candidates, self._dataset)
            except InputError as error:  # it could judge the original
                raise VerificationError(f"the compressed model's outputs cannot be judged: {error}") from error
        samples = len(self._dataset)
        return Evaluation(metric.name, original, compressed, metric.higher_is_better, fidelity, samples)

    @property
    def metric(self) -> Metric:
        """The metric given, or the default for this model and these labels."""
        if self._metric is None:
            self._metric = default_metric(self._reference_outputs(), self._dataset.labels)
        return self._metric

    def _reference_outputs(self) -> Iterator[dict[str, Any]]:
        if self._reference:
            yield from self._reference
            return
        kept: list[dict[str, Any]] = []
        size = 0
        for values in outputs(self._runnable, self._dataset):
            size += sum(value.nbytes for value in values.values() if isinstance(value, np.ndarray))
            if size <= _KEPT_BYTES:
                kept.append(values)
            else:
                kept.clear()
            yield values
        if size <= _KEPT_BYTES:
            self._reference = kept


def compare(reference: Runnable, candidate: Runnable, dataset: Dataset, metric: Metric | None = None) -> Evaluation:
    """Run both models on every sample, side by side, and measure the candidate (see ``Evaluator``).

    Raises:
        InputError: a model does not run on the data, or the metric lacks labels or fails.
        VerificationError: outputs are missing or of another shape.
    """
    return Evaluator(reference, dataset, metric).evaluate(candidate)


def metric_named(name: str) -> Metric:
    """top1, top5, agreement, sqnr, cosine, max_error, or a function ``module:function``.

    A function is called as ``function(outputs, labels)`` (see ``Metric.of_outputs``) and returns a float. It
    may carry an attribute ``higher_is_better = False``.

    Raises:
        UsageError: another name.
        InputError: the function cannot be imported.
    """
    if name in _METRICS:
        return _METRICS[name]
    if ":" in name:
        function = load_function(name)
        return Metric(name, of_outputs=function, higher_is_better=getattr(function, "higher_is_better", True))
    raise UsageError(f"unknown metric {name!r}; the metrics are {', '.join(_METRICS)} and module:function")


def default_metric(reference: Iterable[Outputs], labels: Array | None) -> Metric:
    """top1 where the labels are the classes of the first output, else cosine.

    That is: the labels are a row of integers, the first output is (N, C) with C above every label, and its
    largest score names the label at least as often as always naming the commonest label would (of an
    embedding, it does not).

    Args:
        reference: the original's outputs for each feed.
        labels: of all samples.
    """
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        return _METRICS["cosine"]
    named: list[Array] = []
    for values in reference:
        scores = next(iter(values.values()), None)
        if not isinstance(scores, np.ndarray) or scores.ndim != 2 or scores.shape[1] <= labels.max():
            return _METRICS["cosine"]
        named.append(scores.argmax(axis=1))
    hits = np.concatenate(named)
    commonest = np.unique(labels, return_counts=True)[1].max()
    right = len(hits) == len(labels) and np.count_nonzero(hits == labels) >= commonest
    return _METRICS["top1" if right else "cosine"]


def _apply(metric: Metric, batches: list[dict[str, Any]], dataset: Dataset) -> float:
    assert metric.of_outputs is not None
    labels = dataset.labels
    if metric.needs_labels and labels is None:
        raise InputError(f"metric {metric.name} needs labels; add an array 'labels' to the data")
    try:
        value: Any = metric.of_outputs(batches, labels)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # it may be the user's code
        raise InputError(
            f"metric {metric.name} failed with {type(error).__name__}: {one_line(error)}; correct it, or its data"
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError):
        found = f"{type(value).__name__} {value!r:.40}"
        raise InputError(f"metric {metric.name} returns {found}, which is no number; let it return a float") from None


def _top(count: int) -> MetricFunction:
    def share_of_labels_in_top(batches: list[dict[str, Any]], labels: Array | None) -> float:
        name = class_output(batches[0])
        scores = None if name is None else np.concatenate([batch[name] for batch in batches])
        if labels is None or scores is None or scores.shape[:-1] != labels.shape:
            raise InputError(
                f"top{count} needs class scores and one integer label for each, "
                f"but scores are {_shape(scores)} and labels {_shape(labels)}; use another metric"
            )
        _check_classes(labels, scores.shape[-1], f"top{count}")
        own = np.take_along_axis(scores, labels[..., None].astype(np.int64), axis=-1)
        # Ties count against the label, except with itself: a constant output earns nothing.
        ahead = (scores >= own).sum(axis=-1) - 1
        return float(np.mean((ahead < count) & np.isfinite(own[..., 0])))

    return share_of_labels_in_top


def _check_classes(labels: Array, classes: int, name: str) -> None:
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name} needs integer labels, but they are {labels.dtype}; convert them to class numbers")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise InputError(
            f"{name} needs labels from 0 to {classes - 1}, but they go from {labels.min()} to {labels.max()}; "
            "number the classes as the model does"
        )


def _shape(array: Array | None) -> str:
    return "absent" if array is None else f"of shape {array.shape}"


def _agreement(result: Fidelity) -> float:
    if result.top1_agreement is None:
        raise InputError("metric agreement needs an output of class scores; use sqnr or cosine")
    return result.top1_agreement


_METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", of_outputs=_top(1), needs_labels=True),
        Metric("top5", of_outputs=_top(5), needs_labels=True),
        Metric("agreement", of_fidelity=_agreement, perfect=1.0),
        Metric("sqnr", of_fidelity=lambda result: result.sqnr_db, perfect=math.inf),
        Metric("cosine", of_fidelity=lambda result: result.cosine, perfect=1.0),
        Metric("max_error", of_fidelity=lambda result: result.max_error, perfect=0.0, higher_is_better=False),
    )
}


def _session(model: Runnable) -> ort.InferenceSession:
    return runtime.create(model) if isinstance(model, Model) else model
