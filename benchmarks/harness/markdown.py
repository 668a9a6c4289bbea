"""Pieces of the Markdown that several sections share."""

from __future__ import annotations

from collections.abc import Sequence

from harness.results import Environment, Ratio, Row, Section
from harness.targets import Target
from harness.zoo import Figure

__all__ = [
    "NONE",
    "decibels",
    "escaped",
    "facts",
    "line",
    "machine",
    "megabytes",
    "ratio",
    "seconds",
    "setting_cell",
    "size_ratio",
    "table",
]
__all__ += ["share", "table", "targets_table", "value"]

NONE = "-"


def line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """A table whose first columns hold text, and the others numbers."""
    rules = ["---"] * text_columns + ["---:"] * (len(columns) - text_columns)
    return "\n".join([line(columns), line(rules), *map(line, rows)])


def escaped(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def machine(environment: Environment) -> list[str]:
    """The machine, and the versions of what ran on it."""
    versions = ", ".join(f"{name} {number}" for name, number in environment.versions.items())
    return [
        f"- {environment.cpu}, {environment.cores} cores ({', '.join(environment.isa)}); {environment.platform}",
        f"- {versions}",
    ]


def threads(count: int) -> str:
    """So many threads."""
    return f"{count} thread{'s' if count > 1 else ''}"


def setting_of(row: Row) -> str:
    """A row's setting, and when it was measured where that was not with the others."""
    return row.setting if row.date is None else f"{row.setting} (measured apart, {row.date})"


def facts(section: Section, fed: str = "") -> str:
    """When, where, with what and on how much a section was measured.

    Args:
        fed: what the tools were given; the samples of the calibration file unless said otherwise.
    """
    samples = ", ".join(f"{name} on {count:,}" for name, count in section.samples.items())
    parts = [
        f"- {section.date}, `{section.command}`",
        *machine(section.environment),
        f"- test samples: {samples}; {fed or f'calibration file: {section.calibration_samples} samples'}; "
        f"speed: {threads(section.threads)}, {section.rounds} interleaved rounds",
    ]
    return "\n".join(parts)


def value(figure: Figure, row: Row) -> str:
    """A figure of merit with its unit."""
    found = row.figures.get(figure.name)
    if found is None:
        return NONE
    return f"{100 * found:.2f} %" if figure.unit == "points" else f"{found:.1f} {figure.unit}"


def ratio(found: Ratio | None) -> str:
    """A speed with its quartiles."""
    return NONE if found is None else f"{found.median:.2f}x ({found.low:.2f} to {found.high:.2f})"


def seconds(found: float | None) -> str:
    """Seconds to a tenth."""
    return NONE if found is None else f"{found:.1f} s"


def megabytes(found: int | None) -> str:
    """Whole megabytes (1e6 bytes)."""
    return NONE if found is None else f"{found / 1e6:,.0f} MB"


def share(found: float | None) -> str:
    """A share in per cent."""
    return NONE if found is None else f"{100 * found:.2f} %"


def decibels(found: float | None) -> str:
    """Decibels to a tenth."""
    return NONE if found is None else f"{found:.1f} dB"


def setting_cell(setting: str, failure: str | None) -> str:
    """A tool's setting, with the reason why it has no result."""
    return setting if failure is None else f"{setting}: **failed**, {escaped(failure)}"


def size_ratio(row: Row, original: Row) -> str:
    """How many times smaller the result is."""
    return NONE if not row.bytes or not original.bytes else f"{original.bytes / row.bytes:.2f}x"


def targets_table(title: str, targets: Sequence[Target]) -> str:
    """What was aimed at, what was measured, and by how much it was missed."""
    rows = []
    for target in targets:
        result = NONE if target.met is None else "met" if target.met else f"**missed** ({target.miss})"
        rows.append([target.text, escaped(target.measured), result])
    return f"## {title}\n\n" + table(["target", "measured", "result"], rows, text_columns=3)
