"""What reorder.py measured, as Markdown."""

from __future__ import annotations

from harness.markdown import NONE, facts, machine, table, targets_table, threads
from harness.render_prune import pruned_table
from harness.reorder_results import ReorderResults, Search, SearchRow
from harness.reorder_targets import check_reorder
from harness.results import Section

__all__ = ["reorder_sections"]


def reorder_sections(results: ReorderResults) -> str:
    """A section for each suite; nothing when nothing was measured."""
    parts = [_search(results.search)] if results.search else []
    parts += [_tiles(section) for section in results.tiles.values()]
    if not parts:
        return ""
    parts.append(targets_table("Reordering: targets", check_reorder(results)))
    return "\n\n".join(parts) + "\n"


def _search(search: Search) -> str:
    about = [
        f"- {search.date}, `{search.command}`",
        *machine(search.environment),
        f"- {threads(search.threads)}; tiles of 8x8, half of them masked; figures are the masked share of the salience",
    ]
    columns = ["matrix", "given order", "one axis", "both, swaps", "both, ours", "planted", "any half of the entries"]
    columns += ["seconds, swaps", "seconds, ours"]
    parts = ["## Reordering, search", "\n".join(about)]
    parts.append(table(columns, [_cells(row) for row in search.found.rows], text_columns=1))
    parts.append("Rows of the first M-step from the given order: masked salience over that of the best assignment.")
    steps = [[row.name, *map(_told, (row.given, row.swaps, row.near, row.ours))] for row in search.found.assignments]
    parts.append(table(["matrix", "given order", "swaps", "ours, near", "ours, exact"], steps, text_columns=1))
    parts.append(
        "Panels of rows that keep half of the bands of columns each. *Runs* of neighbouring bands that panels read: as "
        "found, and with the bands in the order for that."
    )
    panels = [
        [
            row.name,
            str(row.panels),
            str(row.band),
            _told(row.identity),
            _told(row.ours),
            f"{row.runs} -> {row.ordered_runs}",
        ]
        for row in search.found.panels
    ]
    parts.append(
        table(["matrix", "panels", "columns of a band", "given order", "ours", "runs"], panels, text_columns=1)
    )
    return "\n\n".join(parts)


def _tiles(section: Section) -> str:
    heading = f"## Reordering, tiles: {section.model} (`{section.file}`)"
    return "\n\n".join([heading, facts(section), pruned_table(section)])


def _cells(row: SearchRow) -> list[str]:
    shares = (row.identity, row.one_axis, row.swaps, row.ours, row.optimum, row.unstructured)
    seconds = (row.swap_seconds, row.seconds)
    return [row.name, *map(_told, shares), *(NONE if value is None else f"{value:.2f} s" for value in seconds)]


def _told(share: float | None) -> str:
    return NONE if share is None else f"{share:.4f}"
