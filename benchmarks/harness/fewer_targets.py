"""What codebooks and low-rank products have to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from harness.figures import failed_row, figure_name, hundred, points_lost, speed, usable_row
from harness.results import Row, Section
from harness.size_results import SizeResults
from harness.targets import Target, limit

__all__ = ["check_fewer"]

_SHARE = "onnxcomp-share"
_SPARSE = {"fashion": "onnxcomp-sparse-shared-80", "ppocr_rec": "onnxcomp-sparse-shared-60"}
_PACKED = {"fashion": 12.0, "ppocr_rec": 9.0}  # times smaller than the original's file
_AGREEMENT = {"mobilenetv2": 93.0}  # % of decisions
_FINER = {"mobilenetv2": "onnxcomp-share-256"}  # what reaches that, if 16 values do not
_RESTORED = 100 / 7  # % of the bytes of the weights in float32
_SPEED = 0.97
_FACTORED = (("fashion", "onnxcomp-factorize-30"), ("ppocr_rec", "onnxcomp-factorize-20"))
_FACTORED += (("minilm", "onnxcomp-factorize-30"),)
_FASTER = 1.1


def check_fewer(results: SizeResults) -> list[Target]:
    """Every target, in order."""
    parts = [target for name, section in results.share.items() for target in _shared(name, section)]
    for name, row in _FACTORED:
        if name in results.factorize:
            parts += _factored(name, row, results.factorize[name])
    return parts


def _shared(name: str, section: Section) -> Iterator[Target]:
    row = usable_row(section, _SHARE)
    text = f"{name}, {_title(section, row, _SHARE)}"
    if name in _AGREEMENT:
        yield _agreement(text, row, _AGREEMENT[name])
        finer = usable_row(section, _FINER[name])
        yield _agreement(f"{name}, {_title(section, finer, _FINER[name])}", finer, _AGREEMENT[name])
    else:
        yield limit(f"{text}: points lost of {figure_name(name)}", points_lost(section, row), "points", 1.0)
    share = hundred(row.restored_share) if row else None
    yield limit(f"{text}: bytes of what the weights are restored from, of their float32", share, "%", _RESTORED)
    yield limit(f"{text}: speed after load", speed(row), "x", _SPEED, least=True)
    if name in _PACKED:
        yield from _packed(name, section)


def _title(section: Section, row: Row | None, name: str) -> str:
    """The row's setting, or why there is none."""
    return row.setting if row else failed_row(section, name) or name


def _agreement(text: str, row: Row | None, least: float) -> Target:
    return limit(f"{text}: agreement", hundred(row.agreement) if row else None, "%", least, least=True)


def _packed(name: str, section: Section) -> Iterator[Target]:
    wanted = _SPARSE[name]
    row = usable_row(section, wanted)
    text = f"{name}, {row.setting if row else failed_row(section, wanted) or wanted}"
    yield limit(f"{text}: points lost of {figure_name(name)}", points_lost(section, row), "points", 1.0)
    original = section.original.bytes
    smaller = original / row.onnxz_bytes if row and original and row.onnxz_bytes else None
    yield limit(f"{text}, -o x.onnxz: the original's file over it", smaller, "x", _PACKED[name], least=True)


def _factored(name: str, wanted: str, section: Section) -> Iterator[Target]:
    row = usable_row(section, wanted)
    text = f"{name}, {row.setting if row else failed_row(section, wanted) or wanted}"
    lost = points_lost(section, row)
    yield limit(f"{text}: points lost of {figure_name(name)}", lost, "points", 1.0)
    yield limit(f"{text}: speed", speed(row), "x", _FASTER, least=True)
    plain = points_lost(section, usable_row(section, f"{wanted}-plain"))
    if lost is not None and plain is not None and plain > 0:
        yield limit(f"{text}: loss, of that with products of the weights alone", 100 * lost / plain, "%", 50.0)
