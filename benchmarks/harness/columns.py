"""Parts of tables that prune.py, quant.py and recover.py have in common."""

from __future__ import annotations

from collections.abc import Sequence

from harness.figures import points_lost
from harness.markdown import NONE, megabytes, seconds, setting_cell, table
from harness.quant_results import Costs
from harness.results import Row, Section
from harness.zoo import MODELS, Figure

__all__ = ["costs_table", "lost_cell", "measured"]


def measured(section: Section, distances: Sequence[str]) -> tuple[list[Figure], list[str]]:
    """The model's figures that were measured, and those of the distances to the original that are not among them."""
    figures = [figure for figure in MODELS[section.model].figures if figure.name in section.figures]
    named = {figure.name for figure in figures}
    return figures, [name for name in distances if name not in named]


def lost_cell(section: Section, row: Row) -> str:
    """Percentage points of the first figure that a row lost; nothing for the original."""
    lost = points_lost(section, row) if row is not section.original else None
    return NONE if lost is None else f"{lost + 0.0:.2f}"


def costs_table(costs: Costs, own: str) -> str:
    """Seconds and memory of each tool.

    Args:
        own: heading of the seconds without what starts and ends a process.
    """
    rows = [
        [
            row.tool,
            setting_cell(row.setting, row.failure),
            f"{row.samples:,}",
            seconds(row.own_seconds),
            seconds(row.seconds),
            megabytes(row.peak_bytes),
        ]
        for row in costs.rows
    ]
    return table(["tool", "setting", "samples", own, "whole process", "peak memory"], rows)
