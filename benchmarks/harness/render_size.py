"""What size.py measured, as Markdown."""

from __future__ import annotations

from harness.fewer_targets import check_fewer
from harness.markdown import NONE, escaped, machine, table, targets_table
from harness.render_fewer import fewer_sections
from harness.size_results import Archive, Codes, ContainerRow, ContainerSection, SizeResults
from harness.size_targets import check_size, of_archives

__all__ = ["size_sections"]


def size_sections(results: SizeResults) -> str:
    """A section for each suite; nothing when nothing was measured."""
    parts = fewer_sections(results)
    targets = check_fewer(results)
    if results.container:
        parts.append(_container(results.container))
        targets += check_size(results)
    if not parts:
        return ""
    parts.append(targets_table("Sizes: targets", targets))
    return "\n\n".join(parts) + "\n"


def _container(sections: dict[str, ContainerSection]) -> str:
    latest = max(sections.values(), key=lambda section: section.date)
    about = [
        f"- {latest.date}, `{latest.command}`",
        *machine(latest.environment),
        "- speeds are of one core, in megabytes of the plain file for a second of processor time",
    ]
    columns = ["model", "form", "plain", ".onnxz", "zstd -19", "xz -9", "of the smaller", ".onnxz packs, restores"]
    columns += ["zstd packs, restores", "xz packs, restores"]
    rows = [_files(name, row) for name, section in sections.items() for row in section.rows]
    integer = [
        "model",
        "form",
        "weights",
        "entropy",
        ".onnxz",
        "bits a weight",
        "nncodec",
        "of nncodec",
        "nncodec speed",
    ]
    coded = [
        _codes(name, row.form, row.codes) for name, section in sections.items() for row in section.rows if row.codes
    ]
    return "\n\n".join(
        [
            "## Sizes, packed models",
            "\n".join(about),
            table(columns, rows),
            "Integer weights of two axes or more alone. *Entropy*: what they take as independent draws from one "
            "distribution for each tensor, tables not counted: only what knows more than the tensor does better.",
            table(integer, coded),
        ]
    )


def _files(name: str, row: ContainerRow) -> list[str]:
    if row.failure is not None:
        return [name, f"{escaped(row.form)}: {escaped(row.failure)}", *[NONE] * 8]
    archives = (row.onnxz, row.zstd, row.xz)
    share = of_archives(row)
    sizes = [NONE if archive is None else f"{archive.bytes:,}" for archive in archives]
    told = NONE if share is None else f"{share:.3f}"
    return [name, escaped(row.form), f"{row.plain:,}", *sizes, told, *(_speeds(row, archive) for archive in archives)]


def _speeds(row: ContainerRow, archive: Archive | None) -> str:
    if archive is None:
        return NONE
    speeds = (row.plain / 1e6 / max(seconds, 1e-9) for seconds in (archive.pack_seconds, archive.restore_seconds))
    return ", ".join(f"{speed:.1f}" for speed in speeds)


def _codes(name: str, form: str, codes: Codes) -> list[str]:
    cells = [name, escaped(form), f"{codes.count:,}", f"{codes.entropy:,.0f}", f"{codes.packed:,}"]
    cells.append(f"{8 * codes.packed / codes.count:.2f}")
    if codes.nncodec is None or codes.nncodec_seconds is None:
        return [*cells, NONE, NONE, NONE]
    speed = codes.count / 1e6 / codes.nncodec_seconds
    return [*cells, f"{codes.nncodec:,}", f"{codes.packed / codes.nncodec:.3f}", f"{speed:.1f} MB/s"]
