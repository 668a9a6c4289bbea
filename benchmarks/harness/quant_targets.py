"""What quantization has to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.calibration_cost import FEW, MANY
from harness.entries import QUANT, WEIGHTS_4
from harness.figures import (
    against_peers,
    at_least_the_best,
    failed_row,
    figure_name,
    hundred,
    percent,
    points_lost,
    speed,
    usable_row,
)
from harness.quant_results import Costs, QuantResults, Saturation
from harness.results import Row, Section
from harness.saturation import WORST_CASE
from harness.targets import Target, limit, times_smaller
from harness.zoo import MODELS

__all__ = ["check_quant", "rivals"]

LEAST_SIZE = 1.5  # peers whose result is not even so much smaller left the model nearly as it was
LIKE_SIZE = 0.8  # 4-bit peers that are compared are at least so small, against ours
CLOSE = 1.0  # percentage points below fp32 up to which a peer's speed counts
EQUAL = 99.5  # per cent of decisions that are the same with and without fused kernels


@dataclass(frozen=True)
class _Aim:
    """Limits on one model: points lost and points of agreement in per cent, ratios as they are."""

    lost: float | None = None
    agreement: float | None = None
    size: float | None = None
    speeds: dict[str, float] = field(default_factory=dict)
    """By length of the input; the empty name is the model's own samples."""


_EIGHT = {
    "fashion": _Aim(lost=0.1, agreement=99.6, size=3.3),
    "mnist": _Aim(lost=0.1, agreement=99.6, size=3.3),
    "mobilenetv2": _Aim(agreement=85.0, speeds={"": 1.45}),
    "ppocr_rec": _Aim(lost=0.5, size=3.3, speeds={"": 1.2}),
    "minilm": _Aim(lost=0.3, agreement=97.0, speeds={"": 1.6, "128 tokens": 1.6}),
    "ppocr_cls": _Aim(lost=0.5, agreement=99.0),
    "ppocr_det": _Aim(agreement=97.0, size=3.3, speeds={"": 1.2}),
}
_FOUR = {name: 3.0 if name == "mobilenetv2" or name.startswith("ppocr") else 1.0 for name in _EIGHT}


def check_quant(results: QuantResults) -> list[Target]:
    """Every target, in order; those of models that were not run are not measured."""
    return [
        *(target for name, aim in _EIGHT.items() for target in _eight(name, aim, results.eight_bits.get(name))),
        *(target for name, most in _FOUR.items() for target in _four(name, most, results.four_bits.get(name))),
        *_saturation(results.eight_bits, results.saturation),
        *_costs(results.costs),
    ]


def rivals(section: Section, least_size: float) -> list[Row]:
    """The peers' results that are at least so many times smaller than the original."""
    rows = [row for row in section.rows if row.tool != "onnxcomp" and row.failure is None]
    return [row for row in rows if (times_smaller(section, row) or 0.0) >= least_size]


# -- 8 bits ---------------------------------------------------------------------------------------------------


def _eight(name: str, aim: _Aim, section: Section | None) -> Iterator[Target]:
    if failed := failed_row(section, QUANT):
        yield Target(f"{name}, 8 bits: all targets", failed, False, "fails")
        return
    row = usable_row(section, QUANT)
    if aim.lost is not None:
        yield limit(
            f"{name}, 8 bits: points lost of {figure_name(name)}", points_lost(section, row), "points", aim.lost
        )
    if aim.agreement is not None:
        yield limit(f"{name}, 8 bits: agreement", percent(row, "agreement"), "%", aim.agreement, least=True)
    if aim.size is not None:
        yield limit(f"{name}, 8 bits: file, times smaller", times_smaller(section, row), "x", aim.size, least=True)
    for length, least in aim.speeds.items():
        text = f"{name}, 8 bits: speed{f' at {length}' if length else ''}"
        yield limit(text, speed(row, length), "x", least, least=True)
    if section is not None:
        yield from against_peers(f"{name}, 8 bits", section, row, rivals(section, LEAST_SIZE))
        yield from _against_speed(name, section, row)


def _against_speed(name: str, section: Section, row: Row | None) -> Iterator[Target]:
    """At least as fast as the fastest peer that is within a point of fp32."""
    close = [peer for peer in rivals(section, LEAST_SIZE) if _is_close(section, peer)]
    for length in ("", *section.original.latencies):
        text = f"{name}, 8 bits: speed{f' at {length}' if length else ''}"
        yield from at_least_the_best(text, "x", lambda item, length=length: speed(item, length), row, close)  # type: ignore[misc]


def _is_close(section: Section, row: Row) -> bool:
    lost = points_lost(section, row)
    if lost is None:  # the figure is in decibels
        return row.agreement is not None and 100 * (1 - row.agreement) <= CLOSE
    return lost <= CLOSE


# -- 4 bits ---------------------------------------------------------------------------------------------------


def _four(name: str, most: float, section: Section | None) -> Iterator[Target]:
    if failed := failed_row(section, WEIGHTS_4):
        yield Target(f"{name}, 4 bits: all targets", failed, False, "fails")
        return
    row = usable_row(section, WEIGHTS_4)
    points = MODELS[name].figures[0].unit == "points"
    changed = None if row is None or row.agreement is None else 100 * (1 - row.agreement)
    lost = points_lost(section, row) if points else changed
    yield limit(f"{name}, 4 bits: points lost of {figure_name(name) if points else 'agreement'}", lost, "points", most)
    yield limit(f"{name}, 4 bits: speed", speed(row, ""), "x", 0.95, least=True)
    if section is not None and row is not None:
        yield from against_peers(
            f"{name}, 4 bits", section, row, rivals(section, LIKE_SIZE * (times_smaller(section, row) or 0))
        )


# -- saturation and costs -------------------------------------------------------------------------------------


def _saturation(sections: dict[str, Section], found: Saturation | None) -> Iterator[Target]:
    for name, section in sections.items():
        row = usable_row(section, QUANT)
        text = f"{name}, 8 bits: decisions that are the same without fused kernels"
        yield limit(text, percent(row, "unfused_agreement"), "%", EQUAL, least=True)
    rows = [] if found is None else [row for row in found.rows if row.equal is not None]
    for model in dict.fromkeys(row.model for row in rows):
        ours = next((row.equal for row in rows if row.model == model and row.tool == "onnxcomp" and row.safe), None)
        text = f"{model} without VNNI: classes that are the same without fused kernels"
        yield limit(text, hundred(ours), "%", EQUAL, least=True)
    peers = [row.equal for row in rows if row.model == WORST_CASE and row.tool != "onnxcomp" and not row.safe]
    if peers:
        yield limit(
            "worst case without VNNI: the worst peer's classes that are the same", hundred(min(peers)), "%", 95.0
        )  # type: ignore[type-var]


def _costs(costs: Costs | None) -> Iterator[Target]:
    def own(name: str) -> float | None:
        row = costs.row(name) if costs else None
        return None if row is None else row.own_seconds

    def peak(name: str) -> float | None:
        row = costs.row(name) if costs else None
        return None if row is None or row.peak_bytes is None else row.peak_bytes / 1e6

    few, many = peak("onnxcomp-few"), peak("onnxcomp-many")
    text = f"calibration: peak memory at {MANY:,} samples against {FEW}"
    yield limit(text, None if few is None or many is None else many / few, "x", 1.1)
    slow = [time for name in ("ort-entropy", "ort-percentile-full") if (time := own(name)) is not None]
    third = min(slow) / 3 if slow else None
    for text, name, most in (
        ("of plain ranges, against ONNX Runtime's MinMax", "onnxcomp-minmax", own("ort-minmax")),
        (
            "of the default, against a third of the faster of ONNX Runtime's Entropy and Percentile",
            "onnxcomp-default",
            third,
        ),
    ):
        wanted = f"calibration: seconds {text}"
        yield Target(wanted, "not measured", None) if most is None else limit(wanted, own(name), "s", most)
