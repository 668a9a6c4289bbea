"""How long work on calibration samples will take and how much memory, estimated from a run of one sample."""

from __future__ import annotations

import time
from dataclasses import dataclass

from onnxcomp.data import Dataset
from onnxcomp.model import Model
from onnxcomp.runtime.session import create, run

__all__ = ["Effort", "effort_of_runs"]

_MEASURED_RUNS = 3
# What is held besides the model: ONNX Runtime and Python themselves, one batch of observed values, recorded ones.
_BASE_BYTES = 320 * 2**20
_COPIES = 4  # of the weights: the model, the one before, a session's, one that is being written


@dataclass(frozen=True)
class Effort:
    """About how much something takes, right to a factor of two or so.

    Attributes:
        seconds: on this machine, as busy as it is now.
        bytes: of memory, at the peak.
    """

    seconds: float
    bytes: float

    def __str__(self) -> str:
        spent = f"{self.seconds:.0f} s" if self.seconds < 90 else f"{self.seconds / 60:.0f} min"
        return f"about {spent} and {self.bytes / 1e9:.1f} GB of memory"


def effort_of_runs(model: Model, dataset: Dataset, runs: float) -> Effort:
    """Of work that takes as long as so many runs of one sample.

    Raises:
        InputError: the model does not run on the data.
    """
    feeds = dataset.sample()
    session = create(model)
    run(session, feeds)
    start = time.perf_counter()
    for _ in range(_MEASURED_RUNS):
        run(session, feeds)
    each = (time.perf_counter() - start) / _MEASURED_RUNS / max(1, dataset.least)
    return Effort(runs * each, _BASE_BYTES + _COPIES * model.skeleton().size)
