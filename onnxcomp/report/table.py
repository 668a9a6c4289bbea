"""The result of a compilation as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.table import Table

from onnxcomp.report.schema import Fidelity, Metric, PassReport, Report

__all__ = ["count", "decisions", "metric_value", "result_table", "size", "summary", "table"]

_MOST_REASONS = 8
_SHARES = ("top1", "top5", "agreement")  # metrics between 0 and 1 that are spoken of in percent
_NONE = "-"


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table: first column left, figures right."""
    result = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    return result


def result_table(report: Report) -> Table:
    """One row for the original and one for the model after each pass."""
    metric = report.result.metric
    name = metric.name if metric else "metric"
    rows = table("", "size", "parameters", "FLOPs", "SQNR", "agreement", name, "speed", "seconds")
    original = report.input
    costs = size(original.bytes), count(original.parameters), count(original.flops)
    value = metric_value(name, metric.original) if metric else _NONE
    rows.add_row("original", *costs, _NONE, _NONE, value, _NONE, _NONE)
    for entry in report.passes:
        rows.add_row(*_pass_row(entry, metric))
    return rows


def _pass_row(entry: PassReport, metric: Metric | None) -> list[str]:
    label = entry.name if entry.status == "applied" else f"{entry.name} ({entry.status})"
    fidelity = entry.fidelity
    return [
        label,
        size(entry.bytes),
        count(entry.parameters),
        count(entry.flops),
        _decibels(fidelity),
        _NONE if fidelity is None else metric_value("agreement", fidelity.top1_agreement),
        metric_value(metric.name if metric else "", entry.metric),
        _times(entry.latency_ratio),
        f"{entry.seconds:.1f}",
    ]


def summary(report: Report) -> str:
    """One line: original against compressed."""
    result, original = report.result, report.input
    parts = [f"{size(original.bytes)} -> {size(result.bytes)} ({result.size_ratio:.2f}x smaller)"]
    if result.metric is not None:
        metric = result.metric
        values = [metric_value(metric.name, value) for value in (metric.original, metric.compressed)]
        held_out = ", held out" if report.data.held_out else ""
        parts.append(f"{metric.name} {values[0]} -> {values[1]} ({metric.samples} samples{held_out})")
    if result.latency_ratio is not None:
        spread = result.latency_spread
        span = f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
        threads = f"{report.options.threads} thread{'s' if report.options.threads > 1 else ''}"
        parts.append(f"{result.latency_ratio:.2f}x the speed{span} on {threads}")
    parts.append(f"{result.seconds:.1f} s")
    return f"{result.output or 'result'}: {', '.join(parts)}"


def decisions(report: Report) -> Iterator[str]:
    """For each pass, a line of what it did to how many layers, and one for each reason to skip some."""
    for entry in report.passes:
        actions = Counter(decision.action for decision in entry.decisions)
        if actions:
            counts = ", ".join(f"{action} {number}" for action, number in actions.most_common())
            yield f"{entry.name}: {counts}"
        skipped = [decision for decision in entry.decisions if decision.action == "skipped"]
        reasons = Counter(decision.reason for decision in skipped)
        for reason, number in reasons.most_common(_MOST_REASONS):
            first = next(decision.layer for decision in skipped if decision.reason == reason)
            others = f" and {number - 1} more" if number > 1 else ""
            yield f"  skipped {first}{others}: {reason}"
        if len(reasons) > _MOST_REASONS:
            rest = sum(reasons.values()) - sum(number for _, number in reasons.most_common(_MOST_REASONS))
            yield f"  skipped {rest} more for other reasons (--report lists them all)"


def size(number: int) -> str:
    """Bytes with a decimal unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number} B"


def count(number: int | None) -> str:
    """A large count with a unit."""
    if number is None:
        return _NONE
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def metric_value(name: str, value: float | None) -> str:
    """A metric as it is spoken of."""
    if value is None:
        return _NONE
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4g}"


def _decibels(fidelity: Fidelity | None) -> str:
    if fidelity is None or fidelity.sqnr_db is None:
        return "exact" if fidelity and fidelity.max_error == 0 else _NONE
    return f"{fidelity.sqnr_db:.1f} dB"


def _times(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"
