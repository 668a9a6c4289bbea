"""What size.py measured of codebooks and low-rank products, as Markdown."""

from __future__ import annotations

from harness.columns import lost_cell, measured
from harness.markdown import (
    NONE,
    decibels,
    facts,
    megabytes,
    ratio,
    seconds,
    setting_cell,
    setting_of,
    share,
    size_ratio,
    table,
    value,
)
from harness.render_prune import pruned_table
from harness.results import Row, Section
from harness.size_results import SizeResults
from harness.zoo import Figure

__all__ = ["fewer_sections"]


def fewer_sections(results: SizeResults) -> list[str]:
    """A section for each suite and model."""
    parts = [_section("codebooks", section, _shared_table(section)) for section in results.share.values()]
    parts += [_section("low rank", section, pruned_table(section)) for section in results.factorize.values()]
    return parts


def _section(title: str, section: Section, rows: str) -> str:
    return "\n\n".join([f"## Sizes, {title}: {section.model} (`{section.file}`)", facts(section), rows])


def _shared_table(section: Section) -> str:
    figures, extra = measured(section, ("agreement", "SQNR"))
    columns = [
        *("tool", "setting"),
        *(figure.name for figure in figures),
        *(["lost"] if figures[0].unit == "points" else []),
        *extra,
        *("file", "smaller", "bytes of restored weights, of float32", ".onnxz", "the original's file over it"),
        *("speed (quartiles)", "load", "compile", "peak memory"),
    ]
    return table(columns, [_cells(row, section, figures, extra) for row in (section.original, *section.rows)])


def _cells(row: Row, section: Section, figures: list[Figure], extra: list[str]) -> list[str]:
    distances = {"agreement": share(row.agreement), "SQNR": decibels(row.sqnr_db)}
    return [
        row.tool,
        setting_cell(setting_of(row), row.failure),
        *(value(figure, row) for figure in figures),
        *([lost_cell(section, row)] if figures[0].unit == "points" else []),
        *(distances[name] for name in extra),
        _megabytes(row.bytes),
        size_ratio(row, section.original),
        share(row.restored_share),
        _megabytes(row.onnxz_bytes),
        size_ratio(row.model_copy(update={"bytes": row.onnxz_bytes}), section.original),
        ratio(row.latency),
        NONE if row.load_ms is None else f"{row.load_ms:.0f} ms",
        seconds(row.seconds),
        megabytes(row.peak_bytes),
    ]


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.3f} MB"
