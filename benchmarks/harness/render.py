"""Results of whole pipelines as Markdown."""

from __future__ import annotations

from harness.collection import Collection
from harness.markdown import (
    NONE,
    facts,
    megabytes,
    ratio,
    seconds,
    setting_cell,
    size_ratio,
    table,
    targets_table,
    value,
)
from harness.render_collection import collection_section
from harness.results import Results, Row, Section
from harness.targets import check
from harness.zoo import MODELS, Figure

__all__ = ["render"]


def render(results: Results, collection: Collection | None = None) -> str:
    """The document's first part: a table for each model, the targets, and what became of the collection."""
    parts = [
        "# Benchmark results",
        "Rendered by the commands in this folder from the JSON beside this file, nothing is\n"
        "written by hand. What the columns mean and how to measure again: [README.md](README.md).",
        *(_section(section) for section in results.sections.values()),
        targets_table("Targets", check(results)),
    ]
    if collection is not None:
        parts.append(collection_section(collection))
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {section.model} (`{section.file}`)", facts(section), _table(section)])


def _table(section: Section) -> str:
    figures = [figure for figure in MODELS[section.model].figures if figure.name in section.figures]
    shown = [title for figure in figures for title in (figure.name, "lost")]
    if "SQNR" not in section.figures:
        shown.append("SQNR")
    columns = ["tool", "setting", *shown, "file", "smaller", "speed (quartiles)", "run", "compile", "peak memory"]
    return table(columns, [_cells(row, section, figures) for row in (section.original, *section.rows)])


def _cells(row: Row, section: Section, figures: list[Figure]) -> list[str]:
    setting = setting_cell(row.setting, row.failure)
    cells = [row.tool, setting]
    for figure in figures:
        cells += [value(figure, row), NONE if row is section.original else _lost(figure, row, section.original)]
    if "SQNR" not in section.figures:
        cells.append(NONE if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB")
    return [
        *cells,
        NONE if row.bytes is None else f"{row.bytes / 1e6:.2f} MB",
        size_ratio(row, section.original),
        ratio(row.latency),
        NONE if row.milliseconds is None else f"{row.milliseconds:.2f} ms",
        seconds(row.seconds),
        megabytes(row.peak_bytes),
    ]


def _lost(figure: Figure, row: Row, original: Row) -> str:
    """Percentage points, positive when the candidate is worse; not told of decibels, whose original is infinite."""
    found, before = row.figures.get(figure.name), original.figures.get(figure.name)
    if found is None or before is None or figure.unit != "points":
        return NONE
    lost = before - found if figure.higher_is_better else found - before
    return f"{100 * lost + 0.0:.2f}"
