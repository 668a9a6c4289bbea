"""Figures of rows in the units of the targets, and targets that peers set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.results import Row, Section
from harness.targets import Target, limit
from harness.zoo import MODELS

__all__ = ["against_peers", "at_least_the_best", "failed_row", "figure_name", "hundred", "percent", "points_lost"]
__all__ += ["speed", "usable_row"]


def failed_row(section: Section | None, name: str) -> str:
    """Why the row of that name has no result; empty when it has one, or was not run."""
    row = section.row(name) if section else None
    return "" if row is None or row.failure is None else row.failure


def usable_row(section: Section | None, name: str) -> Row | None:
    """The row of that name, when it has a result."""
    row = section.row(name) if section else None
    return None if row is None or row.failure is not None else row


def figure_name(model: str) -> str:
    """The figure of merit that counts."""
    return MODELS[model].figures[0].name


def points_lost(section: Section | None, row: Row | None) -> float | None:
    """Percentage points of the first figure; None where it is in decibels."""
    if section is None or row is None:
        return None
    figure = MODELS[section.model].figures[0]
    if figure.unit != "points" or figure.name not in row.figures:
        return None
    lost = 100 * (section.original.figures[figure.name] - row.figures[figure.name])
    return lost if figure.higher_is_better else -lost


def speed(row: Row | None, length: str = "") -> float | None:
    """Time of the original over the row's, at this length of the input."""
    found = None if row is None else row.latencies.get(length) if length else row.latency
    return None if found is None else found.median


def percent(row: Row | None, attribute: str) -> float | None:
    """A share that the row has, in per cent."""
    return None if row is None else hundred(getattr(row, attribute))


def hundred(found: float | None) -> float | None:
    """A share in per cent."""
    return None if found is None else 100 * found


def against_peers(text: str, section: Section, row: Row | None, peers: list[Row]) -> Iterator[Target]:
    """The first figure, the agreement and the SQNR are those of the best peer at least, each on its own."""
    figure = MODELS[section.model].figures[0]
    columns: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("agreement", "%", lambda item: hundred(item.agreement)),
        ("SQNR", "dB", lambda item: item.sqnr_db),
    ]
    if figure.name not in ("agreement", "SQNR"):
        columns.insert(0, (figure.name, "%", lambda item: hundred(item.figures.get(figure.name))))
    for title, unit, read in columns:
        yield from at_least_the_best(f"{text}: {title}", unit, read, row, peers)


def at_least_the_best(
    text: str, unit: str, read: Callable[[Row], float | None], row: Row | None, peers: list[Row]
) -> Iterator[Target]:
    """At least the highest value of the peers, if one of them has any."""
    values = {peer.name: found for peer in peers if (found := read(peer)) is not None}
    if values:
        best = max(values, key=lambda name: values[name])
        yield limit(f"{text}, against {best}", read(row) if row else None, unit, values[best], least=True)
