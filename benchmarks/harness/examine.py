"""What passes make of one model whose outputs are known: the checks of the collection."""

from __future__ import annotations

import json
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx

from harness.cases import Case
from harness.differences import field_difference, kind_of_sentence, output_difference
from onnxcomp import Model, Pass, Pipeline, compress
from onnxcomp.compiler import prepare_samples
from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import InputError, OnnxcompError, OnnxcompWarning, PassError
from onnxcomp.evaluate import Evaluator
from onnxcomp.hooks import Measure, Verify
from onnxcomp.manager import PassManager
from onnxcomp.registry import pass_class, pass_names
from onnxcomp.runtime import latency, session
from onnxcomp.runtime.target import Target

__all__ = ["EVERY_PASS", "LOAD_AND_SAVE", "Finding", "examine", "mild", "passes_alone", "without_timing"]

EVERY_PASS, LOAD_AND_SAVE = "all passes", "load and save"

# By name of the option, for whatever pass has it: too much asked of a small model is no finding.
_MILD = {"flops": 0.1, "epochs": 1}
_SAMPLES, _FEWER, _LARGE = 8, 2, 100_000  # of samples; fewer where one has more numbers than that
_JITTER = 0.01  # of the spread of an input
_LONGEST_SENTENCE = 1000


@dataclass(frozen=True)
class Finding:
    """What a check of one model found.

    Attributes:
        case: the model.
        check: a pipeline, or ``load and save``.
        outcome: ``transformed``, ``left alone``, ``undone`` (a pass lost too much or gave up, and was rolled back),
            ``refused`` (an error on purpose), ``not runnable`` (ONNX Runtime does not run the original, and the
            compiler says so) or ``failed``.
        detail: why; of a failure, what is wrong or where it was raised.
        reasons: why weighted layers were left alone, with how many there were.
    """

    case: str
    check: str
    outcome: str
    detail: str = ""
    reasons: Mapping[str, int] = field(default_factory=dict)


class BrokenPromiseError(Exception):
    """A model came out otherwise than it must."""


def passes_alone() -> list[Pipeline]:
    """A pipeline for every registered pass: with the passes that it requires, at mild settings."""
    return [Pipeline([mild(name)]).scheduled() for name in pass_names()]


def mild(name: str) -> Pass:
    """The pass with options that ask for little, where it has such options."""
    cls = pass_class(name)
    return cls.with_options({option: value for option, value in _MILD.items() if option in cls.model_fields})


@contextmanager
def without_timing() -> Iterator[None]:
    """Within, latencies are of as few runs as can be: they are no part of what is examined."""
    compare = latency.compare

    def compare_quickly(a: Any, b: Any, feeds: Any, threads: int = 1, *_: float, **__: float) -> Any:
        return compare(a, b, feeds, threads, seconds=0.0, warmup=0.0)

    with mock.patch.object(latency, "compare", compare_quickly):
        yield


def examine(case: Case) -> list[Finding]:
    """Load and save it; run every pass alone on it, and all together through ``compress``; judge what comes out.

    Nothing is raised: what goes wrong is a finding.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)  # in one operator there may be little to gain
        path = Path(folder) / "model.onnx"
        path.write_bytes(case.proto.SerializeToString())
        findings = [_found(case, LOAD_AND_SAVE, lambda: _load_and_save(case, path))]
        original = _Original.of(case)
        if original is None:
            return [*findings, _found(case, EVERY_PASS, lambda: _not_runnable(path))]
        alone: list[_Alone] = []
        refusal = _found(case, EVERY_PASS, lambda: _prepare(alone, case, original, path))
        if not alone:
            return [*findings, refusal]
        checks: list[tuple[str, Any]] = [(p.passes[-1].name, lambda p=p: alone[0].check(p)) for p in passes_alone()]
        checks.append((EVERY_PASS, lambda: _all_passes(case, original, path, alone[0].data)))
        return findings + [_found(case, *check) for check in checks]


def _found(case: Case, title: str, check: Callable[[], tuple[str, str, Mapping[str, int]]]) -> Finding:
    try:
        return Finding(case.name, title, *check())
    except BrokenPromiseError as error:
        return Finding(case.name, title, "failed", str(error))
    except OnnxcompError as error:
        try:
            return Finding(case.name, title, "refused", _sentence(error))
        except BrokenPromiseError as broken:
            return Finding(case.name, title, "failed", str(broken))
    except Exception:  # that no user may ever see
        return Finding(case.name, title, "failed", traceback.format_exc(limit=-4))


def _load_and_save(case: Case, path: Path) -> tuple[str, str, Mapping[str, int]]:
    copy = path.with_name("copy.onnx")
    Model.load(path).save(copy)
    if difference := field_difference(case.proto, onnx.load(copy)):
        raise BrokenPromiseError(f"loading and saving changes {difference}")
    return "left alone", "equal field by field", {}


def _prepare(made: list[_Alone], case: Case, original: _Original, path: Path) -> tuple[str, str, Mapping[str, int]]:
    """Leaves in ``made`` what runs single passes, unless the model is refused."""
    made.append(_Alone.of(case, original, path))
    return "left alone", "", {}


def _not_runnable(path: Path) -> tuple[str, str, Mapping[str, int]]:
    """It has to be refused, unless it runs on inputs that are made up for it."""
    output = path.with_name("out.onnx")
    try:
        compress(path, _every_pass(), output=output)
    except InputError as error:
        if output.exists():
            raise BrokenPromiseError(f"an error left a file behind: {error}") from error
        return "not runnable", _sentence(error), {}
    return "not runnable", "runs on inputs made up for it, not on those of the collection", {}


def _all_passes(
    case: Case, original: _Original, path: Path, data: Dataset | None
) -> tuple[str, str, Mapping[str, int]]:
    output = path.with_name("out.onnx")
    report = compress(path, _every_pass(), data=data, output=output, reproducer_dir=path.with_name("failed")).report
    reasons: Counter[str] = Counter()
    undone = []
    for step in report.passes:
        found = step.verification
        if found.error is not None:
            undone.append(_undone(step.name, found.error, _cause(found.reproducer), found.checks))
        reasons.update(_skipped(step.decisions))
    original.judge(case, onnx.load(output), exact=False)
    return _outcome([step.status for step in report.passes], undone, reasons)


def _every_pass() -> Pipeline:
    return Pipeline(map(mild, pass_names())).scheduled()


def _cause(reproducer: str | None) -> str:
    """The class of the error that a reproducer was written for."""
    if reproducer is None:
        return "an error without a reproducer"
    described = json.loads((Path(reproducer) / "reproducer.json").read_text(encoding="utf-8"))
    return str(described["error"]).partition(":")[0]


# -- passes alone ------------------------------------------------------------------------------------------


@dataclass
class _Alone:
    """Single passes on one model: what several of them require is run once."""

    case: Case
    original: _Original
    model: Model
    data: Dataset | None
    hooks: list[Any]
    made: dict[str, tuple[Model, list[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, original: _Original, path: Path) -> _Alone:
        model = Model.load(path)
        data = _calibration(case)
        samples = prepare_samples(model, data, None, 0)
        evaluator = Evaluator(model, samples.evaluation or Dataset.from_feeds([samples.probe]))
        hooks = [Measure(evaluator, evaluator.evaluate(model)), Verify(model, [samples.probe])]
        return cls(case, original, model, data, hooks)

    def check(self, pipeline: Pipeline) -> tuple[str, str, Mapping[str, int]]:
        model, records = self._run(pipeline.passes)
        undone, reasons = [], _skipped(records[-1].decisions)  # those of the passes before it are told of them
        for record in records:
            if record.error is not None:
                cause = "" if record.cause is None else record.cause.__name__
                undone.append(_undone(record.passed.name, record.error, cause, record.checks))
        proto = model.proto()
        self.original.judge(self.case, proto, all(step.exact for step in pipeline.passes))
        outcome = _outcome([records[-1].status], undone, reasons)
        unchanged = all(record.status == "unchanged" for record in records)
        if unchanged and (difference := field_difference(self.model.proto(), proto)):
            raise BrokenPromiseError(f"no pass changed the model, but {difference}")
        return outcome

    def _run(self, passes: Sequence[Pass]) -> tuple[Model, list[Any]]:
        """The model after these passes, and their records."""
        if not passes:
            return self.model, []
        text = str(Pipeline(passes))
        if text not in self.made:
            before, records = self._run(passes[:-1])
            work = Model.from_proto(before.proto())
            context = Context(Target.host(), self.data, original=self.model)
            more = PassManager(Pipeline(passes[-1:]), self.hooks).run(work, context)
            self.made[text] = work, [*records, *more]
        return self.made[text]


def _outcome(statuses: Sequence[str], undone: Sequence[str], reasons: Counter[str]) -> tuple[str, str, Counter[str]]:
    if undone:
        return "undone", "; ".join(undone), reasons
    if "applied" in statuses:
        return "transformed", "", reasons
    return "left alone", "" if reasons else "it has no weighted layers", reasons


def _undone(name: str, error: str, cause: str, checks: Sequence[Any]) -> str:
    """Why a pass was rolled back.

    Raises:
        BrokenPromiseError: neither did it lose too much, nor did it say that it cannot do its work.
    """
    lost = any(check.name == "signal" and check.outcome == "failed" for check in checks)
    if not (lost or cause == PassError.__name__):
        raise BrokenPromiseError(f"{name} was undone: {cause}: {error}")
    return kind_of_sentence(error)


def _skipped(decisions: Sequence[Any]) -> Counter[str]:
    found = Counter(kind_of_sentence(decision.reason) for decision in decisions if decision.action == "skipped")
    for reason in ("", "the pass gave no reason"):
        if reason in found:
            raise BrokenPromiseError(f"a layer was left alone without a reason: {decisions}")
    return found


def _sentence(error: Exception) -> str:
    """The kind of an error's message.

    Raises:
        BrokenPromiseError: it is not one sentence.
    """
    text = str(error)
    if "\n" in text or not 10 <= len(text) <= _LONGEST_SENTENCE:
        raise BrokenPromiseError(f"{type(error).__name__} is no sentence: {text!r}")
    return f"{type(error).__name__}: {kind_of_sentence(text)}"


# -- the original ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Original:
    """The model as ONNX Runtime runs it.

    Attributes:
        outputs: of each set of feeds, in order.
        steady: two sessions give the same.
        right: they are those that the collection expects, if it does.
        valid: onnx.checker accepts it.
    """

    outputs: list[list[Any]]
    steady: bool
    right: bool
    valid: bool

    @classmethod
    def of(cls, case: Case) -> _Original | None:
        """None when it does not run."""
        try:
            outputs = _outputs(case.proto, case)
            again = _outputs(case.proto, case)
        except InputError:
            return None
        expected = [outputs for _, outputs in case.sets]
        return cls(
            outputs,
            steady=output_difference(outputs, again, 1e-6, 0.0) is None,
            right=output_difference(expected, outputs, case.rtol, case.atol) is None,
            valid=_complaint(case.proto) is None,
        )

    def judge(self, case: Case, proto: onnx.ModelProto, exact: bool) -> None:
        """Check what passes made of it.

        Raises:
            BrokenPromiseError: it is not valid, does not run, or exact passes changed the outputs.
        """
        if self.valid and (complaint := _complaint(proto)):
            raise BrokenPromiseError(f"onnx.checker refuses the result: {complaint}")
        try:
            outputs = _outputs(proto, case)
        except InputError as error:
            raise BrokenPromiseError(f"the result does not run: {error}") from error
        if exact and self.steady:
            expected = [outputs for _, outputs in case.sets] if self.right else self.outputs
            if wrong := output_difference(expected, outputs, case.rtol, case.atol):
                raise BrokenPromiseError(f"exact passes changed the outputs: {wrong}")


def _outputs(proto: onnx.ModelProto, case: Case) -> list[list[Any]]:
    made = session.create(proto)
    return [list(session.run(made, feeds).values()) for feeds, _ in case.sets]


def _complaint(proto: onnx.ModelProto) -> str | None:
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return None


def _calibration(case: Case) -> Dataset | None:
    """The feeds of the collection, with noise on the floats where it runs on that too; None where there are none."""
    rng = np.random.default_rng(0)
    first = case.sets[0][0]
    if not first:
        return None
    large = sum(value.size for value in first.values() if isinstance(value, np.ndarray)) > _LARGE
    feeds = [case.sets[index % len(case.sets)][0] for index in range(_FEWER if large else _SAMPLES)]
    noisy = [{name: _jittered(value, rng) for name, value in entry.items()} for entry in feeds]
    made = session.create(case.proto)
    for candidate in (noisy, feeds):
        with suppress(InputError):
            for entry in candidate:
                session.run(made, entry)
            return Dataset.from_feeds(candidate)
    return None


def _jittered(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, list):
        return [_jittered(item, rng) for item in value]
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
        return value
    finite = value[np.isfinite(value)].astype(np.float64)
    spread = float(finite.std()) if finite.size else 0.0
    return np.asarray(value + _JITTER * spread * rng.standard_normal(value.shape), dtype=value.dtype)
