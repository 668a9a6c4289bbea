"""What happens around every pass: time, verification, the user's budget, a reproducer of failures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import BudgetError, SessionError, VerificationError
from onnxcomp.evaluate import Evaluation, Evaluator
from onnxcomp.manager import CheckRecord, Step
from onnxcomp.model import Model, one_line
from onnxcomp.runtime import session as runtime
from onnxcomp.runtime.values import is_float
from onnxcomp.storage.validation import quoted

__all__ = ["EXACT_TOLERANCE", "Measure", "Timing", "Verify"]

Feeds = Mapping[str, Any]

EXACT_TOLERANCE = 1e-3
"""Largest difference, relative to an output's largest value, that the order of float sums may cause in a deep net."""

_LEAST_SQNR_DB = 0.0  # below it the error is larger than the signal


class Timing:
    """Seconds of the pass alone: the innermost hook."""

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Time the pass, failed or not."""
        start = time.perf_counter()
        try:
            yield
        finally:
            step.record.seconds = time.perf_counter() - start


class Verify:
    """After each pass: inputs and outputs are the same, the model is valid, ONNX Runtime runs it, and what an exact
    pass computes is what was computed before.

    Args:
        original: the model that the compilation started from; what it fails itself is not held against a pass.
        probes: feeds to run.
    """

    def __init__(self, original: Model, probes: Sequence[Feeds]) -> None:
        self._probes = probes
        self._interface = _interface(original)
        self._outputs = _run(original, probes)
        self._invalid = _checker_says(original)

    @property
    def doubts(self) -> list[str]:
        """What the original's own outputs leave open, for the user."""
        undefined = {name for outputs in self._outputs for name, value in outputs.items() if _holds_nan(value)}
        return [
            f"the model's own output {quoted(name)} holds NaN: no figure counts these values"
            for name in sorted(undefined)
        ]

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Check what the pass made.

        Raises:
            VerificationError: a check failed.
        """
        before = _run(step.model, self._probes) if step.passed.keeps_outputs else []
        yield
        if not step.changed:
            step.record.checks.append(CheckRecord("unchanged", "passed"))
            return
        self._check(step, "interface", lambda: self._same_interface(step))
        self._check(step, "checker", lambda: self._valid(step))
        outputs = self._check(step, "runs", lambda: (None, self._runs(step)))
        if step.passed.keeps_outputs:
            self._check(step, "exact", lambda: (_equal(step.passed.name, before, outputs), None))

    def _check(self, step: Step, name: str, test: Any) -> Any:
        try:
            figure, value = test()
        except Exception as error:
            step.record.checks.append(CheckRecord(name, "failed", message=one_line(error)))
            if isinstance(error, VerificationError):
                raise
            raise VerificationError(f"{step.passed.name}: {one_line(error)}") from error
        step.record.checks.append(CheckRecord(name, "passed", figure))
        return value

    def _same_interface(self, step: Step) -> tuple[None, None]:
        for kind, reference, candidate in zip(
            ("inputs", "outputs"), self._interface, _interface(step.model), strict=True
        ):
            if reference != candidate:
                raise VerificationError(f"{step.passed.name} changed the {kind} from {reference} to {candidate}")
        return None, None

    def _valid(self, step: Step) -> tuple[None, None]:
        if self._invalid is None and (error := _checker_says(step.model)):
            raise VerificationError(f"{step.passed.name} made a model that onnx.checker refuses: {error}")
        return None, None

    def _runs(self, step: Step) -> list[dict[str, Any]]:
        outputs = _run(step.model, self._probes)
        for reference, candidate in zip(self._outputs, outputs, strict=True):
            for name, value in reference.items():
                _same_kind(step.passed.name, name, value, candidate.get(name))
        return outputs


class Measure:
    """After each pass: distance from the original, the metric, and the user's budget.

    Args:
        evaluator: of the original; its samples are the evaluation's.
        before: the original judged by itself.
        max_drop: how much the metric may drop, in its own unit; None for no limit.

    Attributes:
        latest: of the model as the latest pass left it.
    """

    def __init__(self, evaluator: Evaluator, before: Evaluation, max_drop: float | None = None) -> None:
        self._evaluator = evaluator
        self._max_drop = max_drop
        self.latest = before

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Evaluate the model.

        Raises:
            VerificationError: it does not run on every sample, or the outputs hold more error than signal.
            BudgetError: the metric has dropped by more than is allowed.
        """
        try:
            yield
            if step.changed:
                evaluation = self._evaluate(step)
                self._judge(step, evaluation)
                self.latest = evaluation
        finally:  # of the model that stands: after a failure, the one before the pass
            step.record.fidelity, step.record.metric = self.latest.fidelity, self.latest.metric_compressed

    def _evaluate(self, step: Step) -> Evaluation:
        try:
            return self._evaluator.evaluate(step.model)
        except (SessionError, VerificationError) as error:  # the original ran on every sample
            step.record.checks.append(CheckRecord("evaluated", "failed", message=one_line(error)))
            raise VerificationError(f"{step.passed.name}: on the evaluation samples, {one_line(error)}") from error

    def _judge(self, step: Step, evaluation: Evaluation) -> None:
        sqnr = evaluation.fidelity.sqnr_db
        if not sqnr >= _LEAST_SQNR_DB:
            message = f"its outputs hold more error than signal (SQNR {sqnr:.1f} dB)"
            step.record.checks.append(CheckRecord("signal", "failed", sqnr, message))
            raise VerificationError(f"{step.passed.name}: {message}; ask it for less")
        step.record.checks.append(CheckRecord("signal", "passed", sqnr))
        if math.isnan(evaluation.metric_compressed):
            raise VerificationError(f"after {step.passed.name} the metric {evaluation.metric} is not a number")
        if self._max_drop is not None and not evaluation.drop <= self._max_drop + 1e-12:
            raise BudgetError(
                f"after {step.passed.name} the metric {evaluation.metric} has dropped by {evaluation.drop:.4g}, more "
                f"than the {self._max_drop:g} allowed; ask it for less or allow more"
            )


def _equal(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float:
    """The largest relative difference.

    Raises:
        VerificationError: it is too large for a pass that promises the same outputs.
    """
    pairs = [(r[key], c[key]) for r, c in zip(before, after, strict=True) for key in r]
    errors = [_relative_error(*pair) for pair in pairs]
    for (reference, _), error in zip(pairs, errors, strict=True):
        if not error <= max(EXACT_TOLERANCE, 2 * _epsilon(reference)):
            raise VerificationError(
                f"{name} promises the same outputs but they differ by {error:.1e} of the largest value"
            )
    return max(errors, default=0.0)


def _epsilon(value: Any) -> float:
    """Distance from 1 to the next number of the value's type; a type as coarse as the error cannot show it."""
    if isinstance(value, list):
        return max(map(_epsilon, value), default=0.0)
    coarse = isinstance(value, np.ndarray) and is_float(value.dtype)
    return float(ml_dtypes.finfo(value.dtype).eps) if coarse else 0.0  # type: ignore[no-untyped-call]


def _run(model: Model, probes: Sequence[Feeds]) -> list[dict[str, Any]]:
    session = runtime.create(model)
    return [runtime.run(session, feeds) for feeds in probes]


def _interface(model: Model) -> tuple[list[str], list[str]]:
    """Names of the inputs, with the dimensions that callers may rely on, and of the outputs, in order."""
    inputs = [f"{value.name}{value.shape or ''}" for value in model.graph.inputs if not isinstance(value, gs.Constant)]
    return inputs, [value.name for value in model.graph.outputs]


def _checker_says(model: Model) -> str | None:
    skeleton = model.skeleton()  # the checker copies all that it is given
    try:
        onnx.checker.check_model(skeleton.weights_as_inputs() if skeleton.is_large else skeleton.whole())
    except (onnx.checker.ValidationError, ValueError) as error:
        return one_line(error)
    return None


def _same_kind(step: str, name: str, reference: Any, candidate: Any) -> None:
    """Same kind of value, same shape, and finite where the reference is."""
    if not isinstance(reference, np.ndarray):
        if type(candidate) is not type(reference):
            raise VerificationError(
                f"{step} changed output {name!r} from a {type(reference).__name__} to another value"
            )
        return
    if not isinstance(candidate, np.ndarray) or candidate.shape != reference.shape:
        found = f"shape {candidate.shape}" if isinstance(candidate, np.ndarray) else "nothing"
        raise VerificationError(f"{step} changed output {name!r} from shape {reference.shape} to {found}")
    if candidate.dtype != reference.dtype:
        raise VerificationError(f"{step} changed output {name!r} from {reference.dtype} to {candidate.dtype}")
    if is_float(reference.dtype) and np.any(np.isfinite(reference) & ~np.isfinite(candidate)):
        raise VerificationError(f"{step} made values of output {name!r} infinite or NaN")


def _holds_nan(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isnan(value).any())


def _relative_error(reference: Any, candidate: Any) -> float:
    """The largest difference over the reference's largest value; infinite where values that have no distance differ."""
    if isinstance(reference, list):
        if not isinstance(candidate, list) or len(candidate) != len(reference):
            return math.inf
        return max(map(_relative_error, reference, candidate), default=0.0)
    if not isinstance(reference, np.ndarray):
        return 0.0 if reference == candidate else math.inf
    if reference.shape != np.shape(candidate):
        return math.inf
    if not (is_float(reference.dtype) or reference.dtype.kind in "iub"):
        return 0.0 if np.array_equal(reference, candidate) else math.inf
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(r)
    if not (np.isfinite(c[finite]).all() and np.array_equal(r[~finite], c[~finite], equal_nan=True)):
        return math.inf
    scale = float(np.abs(r[finite]).max(initial=0.0))
    error = float(np.abs(r[finite] - c[finite]).max(initial=0.0))
    return error / scale if scale else (0.0 if error == 0 else math.inf)
