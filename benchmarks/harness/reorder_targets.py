"""What reordering has to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from harness.figures import figure_name, points_lost, speed, usable_row
from harness.reorder_results import ReorderResults, SearchRows
from harness.results import Section
from harness.targets import Target, limit

__all__ = ["check_reorder"]

_PLANTED = 0.052
_REAL = 0.28
_CONTROL = 0.02
_ASSIGNMENT = 1.01
_SECONDS = {512: 2.0, 4096: 60.0}

# Model, row, most points lost, least speed.
_AIMS = (
    ("fashion", "onnxcomp-tiles-half", 1.5, 1.4),
    ("fashion", "onnxcomp-tiles-half-quant", None, 2.2),
    ("fashion", "onnxcomp-tiles-half-recover", 0.3, None),
    ("ppocr_rec", "onnxcomp-tiles-60", 1.0, 1.25),
    ("minilm", "onnxcomp-tiles-65", 1.0, 1.25),
)
# Model, row, and rows that are about as fast, or have the same density.
_RIVALS = (
    ("fashion", "onnxcomp-tiles-half", ("onnxcomp-channels-half", "onnxcomp-blocks-half")),
    ("fashion", "onnxcomp-tiles-channels", ("onnxcomp-channels-half", "onnxcomp-blocks-half")),
    ("ppocr_rec", "onnxcomp-tiles-60", ("onnxcomp-channels-34", "onnxcomp-blocks-60")),
    ("minilm", "onnxcomp-tiles-70", ("onnxcomp-channels-20", "onnxcomp-blocks-70")),
)


def check_reorder(results: ReorderResults) -> list[Target]:
    """Every target, in order."""
    return [*_search(results.search.found if results.search else SearchRows()), *_tiles(results.tiles)]


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


def _tiles(sections: dict[str, Section]) -> Iterator[Target]:
    for name, aimed, lost, least in _AIMS:
        section = sections.get(name)
        found = usable_row(section, aimed)
        text = f"{name}, {found.setting if found else aimed}"
        if lost is not None:
            text_lost = f"{text}: points lost of {figure_name(name)}"
            yield limit(text_lost, points_lost(section, found), "points", lost)
        if least is not None:
            yield limit(f"{text}: speed", speed(found), "x", least, least=True)
    for name, ours, rivals in _RIVALS:
        section = sections.get(name)
        row = usable_row(section, ours)
        own, setting = points_lost(section, row), row.setting if row else ours
        for rival in rivals:
            other = usable_row(section, rival)
            against = points_lost(section, other)
            text = f"{name}, {setting}: points lost less than with {other.setting if other else rival}"
            gained = None if own is None or against is None else against - own
            yield limit(text, gained, "points", 0.0, least=True)


def _share(text: str, found: float | None, bound: float) -> Target:
    """In per cent: targets are told to two digits."""
    return limit(text, None if found is None else 100 * found, "%", 100 * bound)


def _worst(found: Sequence[float]) -> float | None:
    return max(found, default=None)
