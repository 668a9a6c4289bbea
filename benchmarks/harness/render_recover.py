"""What recover.py measured, as Markdown."""

from __future__ import annotations

from harness.columns import lost_cell, measured
from harness.markdown import (
    NONE,
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
    threads,
    value,
)
from harness.recover_results import RecoverResults, StepRow, Steps
from harness.recover_targets import JOBS, check_recover, of_job
from harness.results import Row, Section
from harness.zoo import Figure

__all__ = ["recover_sections"]


def recover_sections(results: RecoverResults) -> str:
    """Training steps, and a section for each model; nothing when nothing was measured."""
    parts = [_steps(steps) for steps in results.steps.values()]
    parts += [_section(section) for section in results.recovery.values()]
    if not parts:
        return ""
    parts.append(targets_table("Recovery: targets", check_recover(results)))
    return "\n\n".join(parts) + "\n"


def _steps(steps: Steps) -> str:
    about = [
        f"- {steps.date}, `{steps.command}`",
        *machine(steps.environment),
        f"- batch {steps.batch}, {threads(steps.threads)}, {steps.rounds} interleaved rounds; "
        "loss and gradients of all weights",
    ]
    torch = steps.row("torch")
    held = None if torch is None else torch.peak_bytes
    columns = ["tool", "setting", "step", "time over torch's (quartiles)", "memory", "memory over torch's"]
    columns += ["error of gradients", "worst tensor"]
    heading = f"## Recovery, training steps: {steps.model}"
    return "\n\n".join([heading, "\n".join(about), table(columns, [_step_cells(row, held) for row in steps.rows])])


def _step_cells(row: StepRow, held: int | None) -> list[str]:
    return [
        row.tool,
        setting_cell(row.setting, row.failure),
        NONE if row.milliseconds is None else f"{row.milliseconds:.1f} ms",
        ratio(row.times_torch),
        megabytes(row.peak_bytes),
        NONE if not row.peak_bytes or not held else f"{row.peak_bytes / held:.2f}x",
        _power(row.error),
        _power(row.worst_error),
    ]


def _power(found: float | None) -> str:
    return NONE if found is None else f"{found:.1e}"


def _section(section: Section) -> str:
    heading = f"## Recovery: {section.model} (`{section.file}`)"
    fed = f"{section.calibration_samples:,} samples to train on, without labels"
    return "\n\n".join([heading, facts(section, fed), _table(section)])


def _table(section: Section) -> str:
    figures, extra = measured(section, ["agreement"])
    columns = [
        *("job", "tool and setting"),
        *(figure.name for figure in figures),
        *("lost", *extra, "zeros", "smaller", "speed (quartiles)", "training", "whole process", "peak memory"),
    ]
    told = [(JOBS[model, job], row) for model, job in JOBS if model == section.model for row in of_job(section, job)]
    rows = [("-", section.original), *told]
    return table(columns, [_cells(job, row, section, figures, bool(extra)) for job, row in rows])


def _cells(job: str, row: Row, section: Section, figures: list[Figure], agreement: bool) -> list[str]:
    return [
        job,
        setting_cell(f"{row.tool}: {setting_of(row)}", row.failure),
        *(value(figure, row) for figure in figures),
        lost_cell(section, row),
        *([share(row.agreement)] if agreement else []),
        share(row.zeros),
        size_ratio(row, section.original),
        ratio(row.latency),
        seconds(row.recovery_seconds),
        seconds(row.seconds),
        megabytes(row.peak_bytes),
    ]
