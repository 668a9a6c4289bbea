"""What prune.py measured, as Markdown."""

from __future__ import annotations

from harness.columns import costs_table, lost_cell, measured
from harness.markdown import (
    NONE,
    decibels,
    facts,
    machine,
    megabytes,
    ratio,
    seconds,
    setting_cell,
    setting_of,
    share,
    size_ratio,
    table,
    targets_table,
    value,
)
from harness.prune_results import Discovery, PruneResults
from harness.prune_targets import check_prune, removed
from harness.quant_results import Costs
from harness.results import Row, Section
from harness.zoo import Figure

__all__ = ["prune_sections", "pruned_table"]

_SUITES = {"channels": "channels", "elements": "weights, 2:4, blocks"}


def prune_sections(results: PruneResults) -> str:
    """A section for each suite and model; nothing when nothing was measured."""
    parts = [
        _section(title, section) for suite, title in _SUITES.items() for section in getattr(results, suite).values()
    ]
    if results.costs is not None:
        parts.append(_costs(results.costs, results.discovery))
    if not parts:
        return ""
    parts.append(targets_table("Pruning: targets", check_prune(results)))
    return "\n\n".join(parts) + "\n"


def _section(title: str, section: Section) -> str:
    heading = f"## Pruning, {title}: {section.model} (`{section.file}`)"
    return "\n\n".join([heading, facts(section), pruned_table(section)])


def pruned_table(section: Section) -> str:
    """The rows of a model: what was lost, removed and gained."""
    figures, extra = measured(section, ("agreement", "SQNR"))
    lengths = list(section.original.latencies)
    columns = [
        *("tool", "setting"),
        *(figure.name for figure in figures),
        *(["lost"] if figures[0].unit == "points" else []),
        *extra,
        *("FLOPs removed", "zeros", "file", "packed", "packed, smaller", "speed (quartiles)"),
        *(f"speed, {name}" for name in lengths),
        *("compile", "peak memory"),
    ]
    return table(columns, [_cells(row, section, figures, extra, lengths) for row in (section.original, *section.rows)])


def _cells(row: Row, section: Section, figures: list[Figure], extra: list[str], lengths: list[str]) -> list[str]:
    distances = {"agreement": share(row.agreement), "SQNR": decibels(row.sqnr_db)}
    gone = removed(section, row)
    return [
        row.tool,
        setting_cell(setting_of(row), row.failure),
        *(value(figure, row) for figure in figures),
        *([lost_cell(section, row)] if figures[0].unit == "points" else []),
        *(distances[name] for name in extra),
        NONE if gone is None or row is section.original else f"{gone + 0.0:.1f} %",
        share(row.zeros),
        _file(row.bytes),
        _file(row.packed_bytes),
        _packed_ratio(row, section.original),
        ratio(row.latency),
        *(ratio(row.latencies.get(name)) for name in lengths),
        seconds(row.seconds),
        megabytes(row.peak_bytes),
    ]


def _file(found: int | None) -> str:
    return NONE if found is None else f"{found / 1e6:.2f} MB"


def _packed_ratio(row: Row, original: Row) -> str:
    """How many times smaller the packed result is than the packed original."""
    return size_ratio(_packed(row), _packed(original))


def _packed(row: Row) -> Row:
    return row.model_copy(update={"bytes": row.packed_bytes})


def _costs(costs: Costs, discovery: Discovery | None) -> str:
    about = [f"- {costs.date}, `{costs.command}`; {costs.model}, two cores", *machine(costs.environment)]
    if discovery is not None:
        runs = ", ".join(f"{found:.2f}" for found in discovery.seconds)
        about.append(f"- finding the {discovery.groups:,} dependency groups of {discovery.nodes:,} nodes: {runs} s")
    return "\n\n".join(["## Pruning: seconds and memory", "\n".join(about), costs_table(costs, "pass")])
