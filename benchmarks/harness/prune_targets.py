"""What pruning has to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.entries import SPEEDUP
from harness.figures import against_peers, failed_row, figure_name, percent, points_lost, speed, usable_row
from harness.prune_results import Discovery, PruneResults
from harness.quant_results import Costs
from harness.results import Row, Section
from harness.targets import Target, limit

__all__ = ["check_prune", "removed"]

LESS = 1.0  # percentage points of FLOPs or zeros below ours up to which a peer is compared
PATTERNS = {"half": "50 % zeros", "2of4": "2:4", "blocks": "blocks of 8x8, 50 %"}


@dataclass(frozen=True)
class _Aim:
    """Limits on one result: points lost and points of agreement in per cent, the ratio of times as it is."""

    lost: float | None = None
    agreement: float | None = None
    speed: float | None = None


_CHANNELS = {
    ("fashion", 30): _Aim(lost=0.5, speed=1.25),
    ("fashion", 50): _Aim(lost=2.0, speed=1.7),
    ("mobilenetv2", 15): _Aim(agreement=85.0, speed=1.1),
    ("ppocr_rec", 15): _Aim(lost=1.0, speed=1.1),
    ("minilm", 15): _Aim(lost=1.0, speed=1.1),
    ("mnist", 30): _Aim(),
    ("mnist", 50): _Aim(),
    ("ppocr_det", 15): _Aim(),
}
_ELEMENTS = {
    ("fashion", "half"): _Aim(lost=0.3),
    ("ppocr_rec", "half"): _Aim(lost=1.0),
    ("minilm", "half"): _Aim(lost=1.0),
    ("mobilenetv2", "half"): _Aim(agreement=80.0),
    ("mnist", "half"): _Aim(),
    ("ppocr_det", "half"): _Aim(),
    ("fashion", "2of4"): _Aim(lost=1.5),
    **{(name, "2of4"): _Aim() for name in ("mnist", "mobilenetv2", "ppocr_rec", "minilm", "ppocr_det")},
}
_SPEEDUPS = ("fashion", "mobilenetv2", "ppocr_rec", "minilm")
_SPEEDUP = 1.5
_ZEROS = 50.0


def check_prune(results: PruneResults) -> list[Target]:
    """Every target, in order; those of models that were not run are not measured."""
    return [
        *(part for (name, cut), aim in _CHANNELS.items() for part in _channels(name, cut, aim, results.channels)),
        *(_speedup(name, results.channels.get(name)) for name in _SPEEDUPS),
        *(part for (name, kind), aim in _ELEMENTS.items() for part in _elements(name, kind, aim, results.elements)),
        *_costs(results.costs, results.discovery),
    ]


def removed(section: Section | None, row: Row | None) -> float | None:
    """FLOPs that a result has less than the original, in per cent of those."""
    if section is None or row is None or row.flops is None or not section.original.flops:
        return None
    return 100 * (1 - row.flops / section.original.flops)


def _channels(name: str, cut: int, aim: _Aim, sections: dict[str, Section]) -> Iterator[Target]:
    section, ours, text = sections.get(name), f"onnxcomp-{cut}", f"{name}, -{cut} % FLOPs"
    if failed := failed_row(section, ours):
        yield Target(f"{text}: all targets", failed, False, "fails")
        return
    row = usable_row(section, ours)
    yield limit(f"{text}: FLOPs removed", removed(section, row), "%", cut - 0.05, least=True)
    yield from _limits(text, name, aim, section, row)
    if section is not None:
        least = (removed(section, row) or 0.0) - LESS
        peers = [peer for peer in _rivals(section, cut, ours) if (removed(section, peer) or 0.0) >= least]
        yield from against_peers(text, section, row, peers)


def _speedup(name: str, section: Section | None) -> Target:
    text = f"{name}, speedup=1.5: speed"
    if failed := failed_row(section, SPEEDUP):
        return Target(text, failed, False, "fails")
    return limit(text, speed(usable_row(section, SPEEDUP)), "x", _SPEEDUP, least=True)


def _elements(name: str, kind: str, aim: _Aim, sections: dict[str, Section]) -> Iterator[Target]:
    section, ours, text = sections.get(name), f"onnxcomp-{kind}", f"{name}, {PATTERNS[kind]}"
    if failed := failed_row(section, ours):
        yield Target(f"{text}: all targets", failed, False, "fails")
        return
    row = usable_row(section, ours)
    if kind == "half":
        yield limit(f"{text}: zeros", percent(row, "zeros"), "%", _ZEROS - 0.05, least=True)
    yield from _limits(text, name, aim, section, row)
    if section is not None:
        least = (percent(row, "zeros") or 0.0) - LESS
        peers = [peer for peer in _rivals(section, kind, ours) if (percent(peer, "zeros") or 0.0) >= least]
        yield from against_peers(text, section, row, peers)


def _limits(text: str, name: str, aim: _Aim, section: Section | None, row: Row | None) -> Iterator[Target]:
    if aim.lost is not None:
        yield limit(f"{text}: points lost of {figure_name(name)}", points_lost(section, row), "points", aim.lost)
    if aim.agreement is not None:
        yield limit(f"{text}: agreement", percent(row, "agreement"), "%", aim.agreement, least=True)
    if aim.speed is not None:
        length = next(iter(section.original.latencies), "") if section else ""
        longer = f" at {length}" if length else ""
        yield limit(f"{text}: speed", speed(row), "x", aim.speed, least=True)
        if length:
            yield limit(f"{text}: speed{longer}", speed(row, length), "x", aim.speed, least=True)


def _rivals(section: Section, group: int | str, ours: str) -> list[Row]:
    """Results of the same budget: those of peers, and of onnxcomp without data."""
    rows = [row for row in section.rows if row.name.endswith(f"-{group}") and row.failure is None]
    return [row for row in rows if row.name != ours]


def _costs(costs: Costs | None, discovery: Discovery | None) -> Iterator[Target]:
    for name, what in (("onnxcomp-channels", "channels"), ("onnxcomp-elements", "elements")):
        text = f"mobilenetv2, 256 images, two cores, {what}"
        if failed := next((row.failure for row in costs.rows if row.name == name and row.failure), "") if costs else "":
            yield Target(f"{text}: all targets", failed, False, "fails")
            continue
        row = costs.row(name) if costs else None
        yield limit(f"{text}: seconds of the process", row.seconds if row else None, "s", 120.0)
        peak = None if row is None or row.peak_bytes is None else row.peak_bytes / 1e6
        yield limit(f"{text}: peak memory", peak, "MB", 2000.0)
    nodes = f"{discovery.nodes:,}" if discovery else "10,000"
    median = sorted(discovery.seconds)[len(discovery.seconds) // 2] if discovery else None
    yield limit(f"dependency groups of a graph of {nodes} nodes: seconds", median, "s", 2.0)
