"""What recovery has to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from harness.figures import failed_row, figure_name, hundred, points_lost, usable_row
from harness.recover_results import RecoverResults, Steps
from harness.results import Row, Section
from harness.steps import BATCHES
from harness.targets import Target, limit
from harness.zoo import MODELS

__all__ = ["JOBS", "check_recover", "of_job"]

# What was done to the model, by the end of the rows' names.
JOBS = {
    ("fashion", "channels"): "-50 % FLOPs",
    ("fashion", "bits"): "2-bit weights",
    ("fashion", "zeros"): "90 % zeros",
    ("mobilenetv2", "channels30"): "-30 % FLOPs",
}
_LOST = {"channels": 0.5, "bits": 2.0, "zeros": 1.0}  # points
_SECONDS = 600.0
_ERROR = 1e-3
_TIMES = 2.0
_HALF = 0.5


def check_recover(results: RecoverResults) -> list[Target]:
    """Every target, in order; those of models that were not run are not measured."""
    return [
        *(part for name in BATCHES for part in _steps(name, results.steps.get(name))),
        *(part for (name, job) in JOBS for part in _job(name, job, results.recovery.get(name))),
    ]


def of_job(section: Section, job: str) -> list[Row]:
    """The rows that did this to the model."""
    return [row for row in section.rows if row.name.endswith(f"-{job}")]


def _steps(name: str, steps: Steps | None) -> Iterator[Target]:
    text = f"{name}, a training step"
    ours, torch = (steps.row("onnxcomp"), steps.row("torch")) if steps else (None, None)
    ratio = ours.times_torch.median if ours and ours.times_torch else None
    yield limit(f"{text}: time over torch's", ratio, "x", _TIMES)
    held = ours.peak_bytes / torch.peak_bytes if ours and torch and ours.peak_bytes and torch.peak_bytes else None
    yield limit(f"{text}: memory over torch's", held, "x", _TIMES)
    error = None if ours is None or ours.error is None else 1e6 * ours.error
    yield limit(f"{text}: relative error of the gradients", error, "millionths", 1e6 * _ERROR)


def _job(name: str, job: str, section: Section | None) -> Iterator[Target]:
    ours, text = f"onnxcomp-recover-{job}", f"{name}, {JOBS[name, job]}, recovered"
    if failed := failed_row(section, ours):
        yield Target(f"{text}: all targets", failed, False, "fails")
        return
    row = usable_row(section, ours)
    if job in _LOST:
        yield limit(f"{text}: points lost of {figure_name(name)}", points_lost(section, row), "points", _LOST[job])
        yield limit(f"{text}: seconds of recover, two cores", row.recovery_seconds if row else None, "s", _SECONDS)
    else:
        damaged = usable_row(section, f"onnxcomp-{job}")
        for figure in MODELS[name].figures:
            if figure.metric == "agreement":
                part = _part(_disagreement(row, figure.name), _disagreement(damaged, figure.name))
                yield limit(f"{text}: loss of {figure.name} over that before", part, "x", _HALF)
    if section is not None and row is not None:
        yield from _against_peers(text, section, job, row)


def _disagreement(row: Row | None, figure: str) -> float | None:
    return None if row is None or figure not in row.figures else 1 - row.figures[figure]


def _part(found: float | None, whole: float | None) -> float | None:
    return found / whole if found is not None and whole else None


def _against_peers(text: str, section: Section, job: str, row: Row) -> Iterator[Target]:
    """At least the accuracy of the most accurate peer, in at most its time."""
    figure = section.figures[0]
    peers = [peer for peer in of_job(section, job) if peer.tool != "onnxcomp" and peer.failure is None]
    if best := max(
        (peer for peer in peers if figure in peer.figures), key=lambda peer: peer.figures[figure], default=None
    ):
        bound = 100 * best.figures[figure]
        yield limit(f"{text}: {figure}, against {best.name}", hundred(row.figures.get(figure)), "%", bound, least=True)
        if best.seconds is not None:
            yield limit(f"{text}: seconds of the process, against {best.name}", row.seconds, "s", best.seconds)
