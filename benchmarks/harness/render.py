"""Results as Markdown."""

from __future__ import annotations

from harness.collection import Collection
from harness.render_collection import collection_section
from harness.results import Results, Row, Section
from harness.targets import Target, check
from harness.zoo import MODELS, Figure

__all__ = ["render"]

_NONE = "-"


def render(results: Results, collection: Collection | None = None) -> str:
    """The whole document: a table for each model, the targets, and what became of the collection."""
    parts = [
        "# Benchmark results",
        "Rendered by `benchmarks/run.py` and `benchmarks/collection.py` from the JSON beside this file, nothing is\n"
        "written by hand. What the columns mean and how to measure again: [README.md](README.md).",
        *(_section(section) for section in results.sections.values()),
        _targets(check(results)),
    ]
    if collection is not None:
        parts.append(collection_section(collection))
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    environment = section.environment
    versions = ", ".join(f"{name} {number}" for name, number in environment.versions.items())
    samples = ", ".join(f"{name} on {count:,}" for name, count in section.samples.items())
    facts = [
        f"- {section.date}, `{section.command}`",
        f"- {environment.cpu}, {environment.cores} cores ({', '.join(environment.isa)}); {environment.platform}",
        f"- {versions}",
        f"- test samples: {samples}; calibration file: {section.calibration_samples} samples; "
        f"speed: {section.threads} thread{'s' if section.threads > 1 else ''}, {section.rounds} interleaved rounds",
    ]
    heading = f"## {section.model} (`{section.file}`)"
    return "\n\n".join([heading, "\n".join(facts), _table(section)])


def _table(section: Section) -> str:
    figures = [figure for figure in MODELS[section.model].figures if figure.name in section.figures]
    shown = [title for figure in figures for title in (figure.name, "lost")]
    if "SQNR" not in section.figures:
        shown.append("SQNR")
    columns = ["tool", "setting", *shown, "file", "smaller", "speed (quartiles)", "run", "compile", "peak memory"]
    lines = [_line(columns), _line(["---", "---", *["---:"] * (len(columns) - 2)])]
    lines += [_line(_cells(row, section, figures)) for row in (section.original, *section.rows)]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row, section: Section, figures: list[Figure]) -> list[str]:
    setting = row.setting if row.failure is None else f"{row.setting}: **failed**, {_escaped(row.failure)}"
    cells = [row.tool, setting]
    for figure in figures:
        cells += [_value(figure, row), _NONE if row is section.original else _lost(figure, row, section.original)]
    if "SQNR" not in section.figures:
        cells.append(_NONE if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB")
    size, latency = row.bytes, row.latency
    return [
        *cells,
        _NONE if size is None else f"{size / 1e6:.2f} MB",
        _NONE if not size or not section.original.bytes else f"{section.original.bytes / size:.2f}x",
        _NONE if latency is None else f"{latency.median:.2f}x ({latency.low:.2f} to {latency.high:.2f})",
        _NONE if row.milliseconds is None else f"{row.milliseconds:.2f} ms",
        _NONE if row.seconds is None else f"{row.seconds:.1f} s",
        _NONE if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f} MB",
    ]


def _value(figure: Figure, row: Row) -> str:
    value = row.figures.get(figure.name)
    if value is None:
        return _NONE
    return f"{100 * value:.2f} %" if figure.unit == "points" else f"{value:.1f} {figure.unit}"


def _lost(figure: Figure, row: Row, original: Row) -> str:
    """Percentage points, positive when the candidate is worse; not told of decibels, whose original is infinite."""
    value, before = row.figures.get(figure.name), original.figures.get(figure.name)
    if value is None or before is None or figure.unit != "points":
        return _NONE
    lost = before - value if figure.higher_is_better else value - before
    return f"{100 * lost + 0.0:.2f}"


def _escaped(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _targets(targets: list[Target]) -> str:
    lines = ["## Targets", "", _line(["target", "measured", "result"]), _line(["---", "---", "---"])]
    for target in targets:
        result = _NONE if target.met is None else "met" if target.met else f"**missed** ({target.miss})"
        lines.append(_line([target.text, _escaped(target.measured), result]))
    return "\n".join(lines)
