"""What quant.py measured, as Markdown."""

from __future__ import annotations

from harness.columns import costs_table, measured
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
from harness.quant_results import Costs, QuantResults, Saturation
from harness.quant_targets import check_quant
from harness.results import Row, Section
from harness.zoo import Figure

__all__ = ["quant_sections", "saturation_section"]

_SUITES = {"eight_bits": "8-bit weights and activations", "four_bits": "4-bit weights"}
_MACHINES = {
    "emulated": "a CPU with AVX2 and without VNNI, emulated by qemu-user",
    "this machine": "this CPU, which has no VNNI",
}


def quant_sections(results: QuantResults) -> str:
    """A section for each suite and model; nothing when nothing was measured."""
    parts = [
        _section(title, section) for suite, title in _SUITES.items() for section in getattr(results, suite).values()
    ]
    if results.costs is not None:
        parts.append(_costs(results.costs))
    if results.saturation is not None:
        parts.append(saturation_section(results.saturation))
    if not parts:
        return ""
    parts.append(targets_table("Quantization: targets", check_quant(results)))
    return "\n\n".join(parts) + "\n"


def saturation_section(found: Saturation) -> str:
    """What became of results whose sums may saturate."""
    samples = ", ".join(f"{name} {count}" for name, count in found.samples.items())
    about = [
        f"- {found.date}, `{found.command}`; {_MACHINES[found.machine]}",
        *machine(found.environment),
        f"- test samples: {samples}; like fp32: share of equal best classes; plain: without ONNX Runtime's "
        "optimizations, and so without kernels that saturate",
    ]
    rows = [
        [
            row.model,
            row.tool,
            setting_cell(row.setting, row.failure),
            share(row.unfused),
            share(row.fused),
            share(row.equal),
            decibels(row.sqnr_db),
        ]
        for row in found.rows
    ]
    columns = ["model", "tool", "setting", "plain, like fp32", "fused, like fp32", "fused = plain", "SQNR to plain"]
    return "\n\n".join(["## Quantization: CPUs without VNNI", "\n".join(about), table(columns, rows, text_columns=3)])


def _section(title: str, section: Section) -> str:
    heading = f"## Quantization, {title}: {section.model} (`{section.file}`)"
    return "\n\n".join([heading, facts(section), _table(section)])


def _table(section: Section) -> str:
    figures, extra = measured(section, ("agreement", "SQNR"))
    lengths = list(section.original.latencies)
    columns = [
        *("tool", "setting"),
        *(figure.name for figure in figures),
        *extra,
        *("smaller", "speed (quartiles)"),
        *(f"speed, {name}" for name in lengths),
        *("kernels", "fused = plain", "compile", "peak memory"),
    ]
    return table(columns, [_cells(row, section, figures, extra, lengths) for row in (section.original, *section.rows)])


def _cells(row: Row, section: Section, figures: list[Figure], extra: list[str], lengths: list[str]) -> list[str]:
    distances = {"agreement": share(row.agreement), "SQNR": decibels(row.sqnr_db)}
    kernels = NONE if row.integer_kernels is None else f"{row.integer_kernels} int, {row.float_layers} float"
    return [
        row.tool,
        setting_cell(setting_of(row), row.failure),
        *(value(figure, row) for figure in figures),
        *(distances[name] for name in extra),
        size_ratio(row, section.original),
        ratio(row.latency),
        *(ratio(row.latencies.get(name)) for name in lengths),
        kernels,
        share(row.unfused_agreement),
        seconds(row.seconds),
        megabytes(row.peak_bytes),
    ]


def _costs(costs: Costs) -> str:
    about = [f"- {costs.date}, `{costs.command}`; {costs.model}", *machine(costs.environment)]
    return "\n\n".join(["## Quantization: cost of the calibration", "\n".join(about), costs_table(costs, "quantizing")])
