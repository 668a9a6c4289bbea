"""Reproducers: a folder that holds a failed pass with its input, and the function that runs it again."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from onnxcomp.context import Context, Progress, silent
from onnxcomp.data import Dataset
from onnxcomp.errors import BudgetError, InputError
from onnxcomp.evaluate import Evaluator
from onnxcomp.files import open_atomic, write_atomic
from onnxcomp.hooks import Measure, Timing, Verify
from onnxcomp.manager import Hook, PassManager, PassRecord, Step, passes_fault
from onnxcomp.model import Model, one_line
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimedComparison, TimingTable
from onnxcomp.version import installed_version

__all__ = ["Reproducer", "replay", "versions"]

Array = np.ndarray[Any, Any]

_MOST_DATA_BYTES = 64 * 2**20
_JOINED = "samples.npz"


class _Description(BaseModel):
    """The file ``reproducer.json``."""

    model_config = ConfigDict(extra="ignore")

    pipeline: str
    error: str
    seed: int
    target: str
    threads: int
    calibration_samples: int
    evaluation_samples: int
    timings: list[TimedComparison]
    measures_timings: bool = True
    versions: dict[str, str]


class Reproducer:
    """Writes a folder for every pass that fails: ``model.onnx`` before the pass, ``original.onnx``,
    ``reproducer.json`` (pass, options, seed, target, versions, error), and the samples that it was calibrated and
    judged on, up to 64 MB of each. A pass that merely cost more accuracy than the user allows did not fail.

    Where the folder cannot be written, a warning says so and the compilation goes on.

    Args:
        folder: where; created when a pass fails.
        evaluation: samples that passes are judged on.
    """

    def __init__(self, folder: Path, evaluation: Dataset | None = None) -> None:
        self._folder = folder
        self._evaluation = evaluation
        self._written: list[str] = []

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Let the pass fail, and write down how to repeat that."""
        try:
            yield
        except Exception as error:
            if passes_fault(error) and not isinstance(error, BudgetError):
                step.before.restore()
                self._keep(step, error)
            raise

    def _keep(self, step: Step, error: Exception) -> None:
        self._written.append(step.passed.name)
        count = self._written.count(step.passed.name)
        folder = self._folder / (step.passed.name if count == 1 else f"{step.passed.name}-{count}")
        try:
            self._write(folder, step, error)
            step.record.reproducer = str(folder)
        except Exception as problem:  # whatever it is, the pass's failure is the news
            reason = getattr(problem, "strerror", None) or problem
            step.ctx.warn(f"{folder}: the reproducer cannot be written: {reason}")

    def _write(self, folder: Path, step: Step, error: Exception) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ctx = step.ctx
        for name in ("reproducer.json", "original.onnx"):  # of an earlier failure
            (folder / name).unlink(missing_ok=True)
        step.model.save(folder / "model.onnx")
        if ctx.original is not None:
            ctx.original.save(folder / "original.onnx")
        description = _Description(
            pipeline=str(step.passed),
            error=f"{type(error).__name__}: {one_line(error)}",
            seed=ctx.seed,
            target=ctx.target.name,
            threads=ctx.target.threads,
            calibration_samples=_save_samples(ctx.data, folder / "calibration"),
            evaluation_samples=_save_samples(self._evaluation, folder / "evaluation"),
            timings=ctx.timings.used,
            measures_timings=ctx.timings.measures,
            versions=versions(),
        )
        write_atomic(folder / "reproducer.json", (description.model_dump_json(indent=2) + "\n").encode())


def replay(folder: Path, progress: Progress = silent) -> PassRecord:
    """Run the pass of a reproducer again, verified and measured as it was.

    Raises:
        InputError: the folder is not a whole reproducer.
        UsageError: its pass or its target is unknown here.
    """
    description = _read_description(folder)
    pipeline = Pipeline.parse(description.pipeline)
    target = Target.parse(description.target, description.threads)
    model = Model.load(folder / "model.onnx")
    original_path = folder / "original.onnx"
    original = Model.load(original_path if original_path.exists() else folder / "model.onnx")
    calibration = _read_samples(folder / "calibration", description.calibration_samples, original)
    evaluation = _read_samples(folder / "evaluation", description.evaluation_samples, original)
    judged_on = evaluation or calibration
    probe = made_up.synthetic(original, description.seed) if judged_on is None else judged_on.sample()
    evaluator = Evaluator(original, judged_on or Dataset.from_feeds([probe]))
    ctx = Context(
        target=target,
        data=calibration,
        seed=description.seed,
        original=original,
        progress=progress,
        timings=TimingTable(description.timings, str(folder), description.measures_timings),
    )
    hooks: list[Hook] = [Measure(evaluator, evaluator.evaluate(model)), Verify(original, [probe]), Timing()]
    return PassManager(pipeline, hooks).run(model, ctx)[0]


def _read_description(folder: Path) -> _Description:
    path = folder / "reproducer.json"
    try:
        return _Description.model_validate_json(path.read_bytes())
    except OSError as error:
        remedy = "give the folder that a failed pass left"
        raise InputError(f"{folder}: its {path.name} cannot be read ({error.strerror}); {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{path}: {'.'.join(map(str, first['loc']))}" if first["loc"] else str(path)
        raise InputError(f"{where}: is damaged: {one_line(ValueError(first['msg']))}; it cannot be replayed") from None


def _read_samples(folder: Path, count: int, model: Model) -> Dataset | None:
    if not count:
        return None
    joined = folder / _JOINED
    data = Dataset.open(str(joined if joined.exists() else folder), model)
    if len(data) != count:
        raise InputError(f"{folder}: holds {len(data)} samples of {count}; copy the whole reproducer again")
    return data


def versions() -> dict[str, str]:
    """Of everything that can change a result."""
    packages = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "scipy")
    own = {"onnxcomp": installed_version(), "python": platform.python_version()}
    return own | {name: version(name) for name in packages}


def _save_samples(data: Dataset | None, folder: Path) -> int:
    """The first samples; returns how many. Batches are joined, so that they are cut again in the same way."""
    for old in folder.glob("*.npz"):  # of an earlier failure
        old.unlink()
    if data is None:
        return 0
    folder.mkdir(exist_ok=True)
    kept: list[dict[str, Array]] = []
    size = 0
    for feeds in data.feeds():
        size += sum(np.asarray(value).nbytes for value in feeds.values())
        if size > _MOST_DATA_BYTES and kept:
            break
        kept.append(feeds)
    if data.batches == len(data):
        for index, feeds in enumerate(kept):
            _save_npz(folder / f"{index:05}.npz", feeds)
        return len(kept)
    joined = {
        name: np.concatenate([feeds[name] for feeds in kept]) if first.ndim else first
        for name, first in kept[0].items()
    }
    _save_npz(folder / _JOINED, joined)
    return max(len(value) for value in joined.values() if value.ndim)


def _save_npz(path: Path, arrays: dict[str, Array]) -> None:
    with open_atomic(path) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
