"""What reordering has to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from harness.reorder_results import ReorderResults, SearchRows
from harness.targets import Target, limit

__all__ = ["check_reorder"]

_PLANTED = 0.052
_REAL = 0.28
_CONTROL = 0.02
_ASSIGNMENT = 1.01
_SECONDS = {512: 2.0, 4096: 60.0}


def check_reorder(results: ReorderResults) -> list[Target]:
    """Every target, in order."""
    return [*_search(results.search.found if results.search else SearchRows())]


def _search(found: SearchRows) -> Iterator[Target]:
    planted = _worst([row.ours for row in found.of("planted")])
    yield _share("planted tiles: masked share", planted, _PLANTED)
    real = [row.ours for row in found.of("real")]
    yield _share("1x1 convolutions of ppocr_rec: masked share, mean", mean(real) if real else None, _REAL)
    controls = [row.one_axis - row.ours for row in found.of("control") if row.one_axis is not None]
    yield _share("controls: masked share, less than with one axis ordered alone by", _worst(controls), _CONTROL)
    over = _worst([max(row.ours, row.near) for row in found.assignments])
    yield limit("M-step: masked salience over that of the best assignment", over, "x", _ASSIGNMENT)
    for size, bound in _SECONDS.items():
        seconds = _worst([row.seconds for row in found.rows if row.size == size])
        yield limit(f"search of {size}x{size}: seconds, the longest", seconds, "s", bound)


def _share(text: str, found: float | None, bound: float) -> Target:
    """In per cent: targets are told to two digits."""
    return limit(text, None if found is None else 100 * found, "%", 100 * bound)


def _worst(found: Sequence[float]) -> float | None:
    return max(found, default=None)
