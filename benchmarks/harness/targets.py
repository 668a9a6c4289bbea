"""What the first release has to show, checked against what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from harness.entries import FULL
from harness.results import Results, Row, Section

__all__ = ["Target", "check", "limit", "times_smaller"]

UNCHANGED = ("mobilenetv2", "ppocr_rec", "minilm")
_MISSING = "not measured"


@dataclass(frozen=True)
class Target:
    """A target and what became of it.

    Attributes:
        text: what is asked for.
        measured: the figure, with its unit.
        met: None when it was not measured.
        miss: by how much it was missed, in the unit; empty when it was met.
    """

    text: str
    measured: str
    met: bool | None
    miss: str = ""


def check(results: Results) -> list[Target]:
    """Every target, in order; those of models that were not run are not measured."""
    return [*_fashion(results.sections.get("fashion")), *(_unchanged(name, results) for name in UNCHANGED)]


def _fashion(section: Section | None) -> list[Target]:
    row = section.row(FULL) if section else None
    latency = row.latency.median if row and row.latency else None
    megabytes = None if row is None or row.peak_bytes is None else row.peak_bytes / 1e6
    return [
        limit("fashion: points lost of 100, all 10,000 test images", _points_lost(section, row), "points", 1.0),
        limit("fashion: file, times smaller", times_smaller(section, row), "x", 4.0, least=True),
        limit("fashion: speed against fp32 ONNX Runtime, one thread", latency, "x", 2.0, least=True),
        limit("fashion: seconds to compile", row.seconds if row else None, "s", 60.0),
        limit("fashion: peak memory", megabytes, "MB", 1000.0),
    ]


def limit(text: str, value: float | None, unit: str, bound: float, least: bool = False) -> Target:
    """A target for one number: ``bound`` is the most that it may be, or the least that it has to be."""
    wanted = f"{text}: {'at least' if least else 'at most'} {bound:g} {unit}"
    if value is None:
        return Target(wanted, _MISSING, None)
    excess = bound - value if least else value - bound
    met = excess <= 1e-9
    return Target(wanted, f"{value:.2f} {unit}", met, "" if met else f"{excess:.2f} {unit}")


def _unchanged(name: str, results: Results) -> Target:
    text = f"{name}: the same command line works, every pass verified, every weighted layer with an action or a reason"
    section = results.sections.get(name)
    row = section.row(FULL) if section else None
    if row is None:
        return Target(text, _MISSING, None)
    if row.failure is not None or row.passes is None:
        return Target(text, row.failure or _MISSING, False, "fails")
    measured = f"{row.verified} of {row.passes} passes verified, {row.undecided} layers undecided"
    met = row.verified == row.passes and row.undecided == 0
    return Target(text, measured, met, "" if met else "see there")


def _points_lost(section: Section | None, row: Row | None) -> float | None:
    if section is None or row is None or section.figures[0] not in row.figures:
        return None
    name = section.figures[0]
    return 100 * (section.original.figures[name] - row.figures[name])


def times_smaller(section: Section | None, row: Row | None) -> float | None:
    """The original's size over the row's; None when one is not known."""
    if section is None or row is None or not row.bytes or not section.original.bytes:
        return None
    return section.original.bytes / row.bytes
