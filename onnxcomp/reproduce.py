"""Reproducers: a folder that holds a failed pass with its input, and the function that runs it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.context import Context, Progress, silent
from onnxcomp.data import Dataset
from onnxcomp.errors import InputError
from onnxcomp.hooks import Timing, Verify
from onnxcomp.manager import PassManager, PassRecord, Step
from onnxcomp.model import Model, one_line, write_atomic
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import feeds as made_up
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimedComparison, TimingTable
from onnxcomp.version import installed_version

__all__ = ["Reproducer", "replay", "versions"]

_MOST_DATA_BYTES = 64 * 2**20


class Reproducer:
    """Writes a folder for every pass that fails: ``model.onnx`` before the pass, ``original.onnx``,
    ``reproducer.json`` (pass, options, seed, target, versions, error) and the calibration feeds, up to 64 MB.

    Args:
        folder: where; created when a pass fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Let the pass fail, and write down how to repeat that."""
        try:
            yield
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            step.before.restore()
            step.record.reproducer = str(self._write(step, error))
            raise

    def _write(self, step: Step, error: Exception) -> Path:
        folder = self._folder / step.passed.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise InputError(f"{folder}: the reproducer cannot be written: {problem.strerror}") from error
        ctx = step.ctx
        step.model.save(folder / "model.onnx")
        if ctx.original is not None:
            ctx.original.save(folder / "original.onnx")
        kept = 0 if ctx.data is None else _save_feeds(ctx.data, folder / "data")
        description = {
            "pipeline": str(step.passed),
            "error": f"{type(error).__name__}: {one_line(error)}",
            "seed": ctx.seed,
            "target": ctx.target.name,
            "threads": ctx.target.threads,
            "data": None if ctx.data is None else {**ctx.data.describe(), "feeds_kept": kept},
            "timings": [entry.describe() for entry in ctx.timings.used],
            "versions": versions(),
        }
        write_atomic(folder / "reproducer.json", (json.dumps(description, indent=2) + "\n").encode())
        return folder


def replay(folder: Path, progress: Progress = silent) -> PassRecord:
    """Run the pass of a reproducer again, with verification.

    Raises:
        InputError: the folder is not a reproducer.
    """
    try:
        description = json.loads((folder / "reproducer.json").read_text(encoding="utf-8"))
        pipeline = Pipeline.parse(description["pipeline"])
        target = Target.parse(description["target"], description["threads"])
        seed = int(description["seed"])
        timed = [TimedComparison(**entry) for entry in description["timings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: is not a reproducer: {one_line(error)}") from None
    model = Model.load(folder / "model.onnx")
    original_path = folder / "original.onnx"
    original = Model.load(original_path if original_path.exists() else folder / "model.onnx")
    data = Dataset.open(str(folder / "data"), model) if (folder / "data").is_dir() else None
    probes = [data.sample() if data is not None else made_up.synthetic(model, seed)]
    timings = TimingTable(timed, source=str(folder))
    ctx = Context(target=target, data=data, seed=seed, original=original, progress=progress, timings=timings)
    manager = PassManager(pipeline, [Verify(model, probes), Timing()])
    return manager.run(model, ctx)[0]


def versions() -> dict[str, str]:
    """Of everything that can change a result."""
    packages = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "scipy")
    own = {"onnxcomp": installed_version(), "python": platform.python_version()}
    return own | {name: version(name) for name in packages}


def _save_feeds(data: Dataset, folder: Path) -> int:
    """The first feeds, each in a file; returns how many."""
    folder.mkdir(exist_ok=True)
    size = count = 0
    for feeds in data.feeds():
        size += sum(_bytes(value) for value in feeds.values())
        if size > _MOST_DATA_BYTES and count:
            break
        np.savez_compressed(folder / f"{count:05}.npz", allow_pickle=False, **feeds)
        count += 1
    return count


def _bytes(value: Any) -> int:
    return int(np.asarray(value).nbytes)
