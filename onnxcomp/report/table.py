"""The result of a compilation as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from onnxcomp.printable import printable
from onnxcomp.report.schema import Decision, Fidelity, Metric, PassReport, Report

__all__ = ["count", "decisions", "legend", "metric_value", "result_table", "size", "summary", "table"]

_MOST_REASONS = 8
_SHARES = ("top1", "top5", "agreement")  # metrics between 0 and 1 that are spoken of in percent
_NONE = "-"
_SAME = "="
_METRICS = {
    "top1": "samples whose best class is their label",
    "top5": "samples with their label among the five best classes",
    "agreement": "samples whose best class is the original's",
    "sqnr": "signal to error of the outputs in dB",
    "cosine": "similarity of the outputs to the original's, 1 is equal",
    "max_error": "largest difference of an output from the original's",
}


@dataclass(frozen=True)
class _Figure:
    """A column of the result table: what the original has there, and the model after a pass."""

    heading: str
    original: str
    after: Callable[[PassReport], str]
    meaning: str = ""


class _Rows(Table):
    """Cells may hold names out of a model."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def table(*columns: str, text: Sequence[str] = ()) -> Table:
    """An empty table: the first column and those named in ``text`` hold text, which wraps; the others figures."""
    result = _Rows(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        if index == 0 or column in text:
            result.add_column(column, overflow="fold")
        else:
            result.add_column(column, justify="right", no_wrap=True)
    return result


def result_table(report: Report) -> Table:
    """One row for the original and one for the model after each pass."""
    figures = _figures(report)
    rows = table("after", *(figure.heading for figure in figures))
    rows.columns[0].no_wrap = True
    rows.add_row("original", *(figure.original for figure in figures))
    for entry in report.passes:
        if entry.status == "applied":
            cells = [figure.after(entry) for figure in figures]
        else:
            mark = _SAME if entry.status == "unchanged" else "undone"
            cells = [mark, *[_SAME] * (len(figures) - 2), figures[-1].after(entry)]
        rows.add_row(entry.name, *cells)
    if report.result.packed_bytes is not None:
        rows.add_row("packed", size(report.result.packed_bytes), *[_SAME] * (len(figures) - 2), _NONE)
    return rows


def legend(report: Report) -> str:
    """What the columns mean."""
    meanings = [f"{figure.heading}: {figure.meaning}" for figure in _figures(report) if figure.meaning]
    if any(entry.status != "applied" for entry in report.passes) or report.result.packed_bytes is not None:
        meanings.insert(0, f"{_SAME}: as in the row above")
    return "; ".join(meanings)


def _figures(report: Report) -> list[_Figure]:
    """The columns that have something to say for this report; size first, time last."""
    metric, original = report.result.metric, report.input
    known = [entry.fidelity for entry in report.passes if entry.fidelity is not None]
    name = "" if metric is None else metric.name
    figures = [
        _Figure("size", size(original.bytes), lambda entry: size(entry.bytes)),
        _Figure("params", count(original.parameters), lambda entry: count(entry.parameters)),
        _Figure("FLOPs", count(original.flops), lambda entry: count(entry.flops)),
    ]
    if name != "sqnr":
        meaning = "signal to error of the outputs, 20 dB is an error of 10 %"
        figures.append(_Figure("SQNR", _NONE, lambda entry: _decibels(entry.fidelity), meaning))
    if name != "agreement" and any(fidelity.top1_agreement is not None for fidelity in known):
        figures.append(_Figure("agree", _NONE, _agreement, _METRICS["agreement"]))
    if metric is not None:
        figures.append(_metric_figure(metric))
    if any(entry.latency_ratio is not None for entry in report.passes):
        meaning = f"the original's time over this one's on {_threads(report)}"
        figures.append(_Figure("speed", "1.00x", lambda entry: _times(entry.latency_ratio), meaning))
    figures.append(_Figure("took", _NONE, lambda entry: f"{entry.seconds:.1f} s"))
    return figures


def _metric_figure(metric: Metric) -> _Figure:
    heading = metric.name.rpartition(":")[2]
    after: Callable[[PassReport], str] = lambda entry: metric_value(metric.name, entry.metric)  # noqa: E731
    return _Figure(heading, metric_value(metric.name, metric.original), after, _METRICS.get(metric.name, ""))


def summary(report: Report) -> Iterator[str]:
    """Original against compressed, a line for each: size, metric, speed, time, and where the file is."""
    result, original = report.result, report.input
    yield f"size    {size(original.bytes)} -> {size(result.bytes)}, {_smaller(result.size_ratio)}"
    if result.packed_bytes is not None:
        yield f"packed  {size(result.packed_bytes)}, {_smaller(original.bytes / result.packed_bytes)}"
    if result.metric is not None and report.data.evaluation is not None:
        metric = result.metric
        values = " -> ".join(metric_value(metric.name, value) for value in (metric.original, metric.compressed))
        held_out = " held-out" if report.data.held_out else ""
        yield f"{metric.name:7} {values} on {metric.samples}{held_out} sample{'s' if metric.samples > 1 else ''}"
    if result.latency_ratio is not None:
        spread = result.latency_spread
        span = f" (quartiles {spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
        yield f"speed   {result.latency_ratio:.2f}x the original's{span} on {_threads(report)}"
    yield f"took    {result.seconds:.1f} s"
    if result.output is not None:
        yield f"written to {result.output}"


def decisions(report: Report) -> Iterator[str]:
    """For each pass, a line of what it did to how many layers, and one for each reason to skip some."""
    for entry in report.passes:
        actions = Counter(decision.action for decision in entry.decisions)
        skipped = [decision for decision in entry.decisions if decision.action == "skipped"]
        reasons = Counter(decision.reason for decision in skipped)
        if entry.status == "rolled back":
            yield f"{entry.name}: undone"
        elif len(actions) == len(reasons) == 1 and skipped:
            yield f"{entry.name}: {skipped[0].reason} ({_layers(len(skipped))})"
        elif actions:
            yield f"{entry.name}: " + ", ".join(f"{action} {_layers(n)}" for action, n in actions.most_common())
            yield from _reasons(skipped, reasons)


def _reasons(skipped: Sequence[Decision], reasons: Counter[str]) -> Iterator[str]:
    shown = reasons.most_common(_MOST_REASONS)
    for reason, number in shown:
        first = next(decision.layer for decision in skipped if decision.reason == reason)
        others = f" and {number - 1} more" if number > 1 else ""
        yield f"  skipped {first}{others}: {reason}"
    if len(reasons) > len(shown):
        rest = len(skipped) - sum(number for _, number in shown)
        yield f"  skipped {rest} more for other reasons (--report lists them all)"


def size(number: int) -> str:
    """Bytes with a decimal unit, to three figures."""
    return f"{_scaled(number)}B" if number >= 1000 else f"{number} B"


def count(number: int | None) -> str:
    """A large count with a decimal unit, to three figures."""
    return _NONE if number is None else _scaled(number).strip()


def _scaled(number: int) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:  # what rounds to 1000 of a unit is 1 of the next
            value = number / scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number} "


def metric_value(name: str, value: float | None) -> str:
    """A metric as it is spoken of."""
    if value is None:
        return _NONE
    return f"{100 * value:.2f} %" if name in _SHARES else f"{value:.4g}"


def _agreement(entry: PassReport) -> str:
    return _NONE if entry.fidelity is None else metric_value("agreement", entry.fidelity.top1_agreement)


def _decibels(fidelity: Fidelity | None) -> str:
    if fidelity is None or fidelity.sqnr_db is None:
        return "exact" if fidelity and fidelity.max_error == 0 else _NONE
    return f"{fidelity.sqnr_db:.1f} dB"


def _times(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"


def _smaller(ratio: float) -> str:
    return f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"


def _threads(report: Report) -> str:
    return f"{report.options.threads} thread{'s' if report.options.threads > 1 else ''}"


def _layers(number: int) -> str:
    return f"{number} layer{'s' if number > 1 else ''}"
