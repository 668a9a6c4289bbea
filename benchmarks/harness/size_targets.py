"""What file sizes have to show, checked against what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from harness.size_results import ContainerRow, SizeResults
from harness.targets import Target, limit

__all__ = ["best_archive", "check_size", "throughput"]

_OF_ARCHIVES = 0.85
_OF_NNCODEC = 1.03
_SPEED = 50.0
_LARGE = 2**20  # bytes from which speed counts: in smaller files, what is not weights takes most of the time


def check_size(results: SizeResults) -> list[Target]:
    """Every target, in order."""
    found = list(_rows(results))
    integer = [(name, row) for name, row in found if row.codes and row.form == "-p quant"]
    targets = [
        limit(f"{name}, int8: .onnxz over the smaller of zstd -19 and xz -9", of_archives(row), "x", _OF_ARCHIVES)
        for name, row in integer
    ]
    coded = [row.codes for _, row in integer if row.codes and row.codes.nncodec]
    worst = max((codes.packed / codes.nncodec for codes in coded if codes.nncodec), default=None)
    targets.append(limit("int8 weights alone: .onnxz over nncodec, the largest", worst, "x", _OF_NNCODEC))
    speeds = [throughput(row) for _, row in integer if row.plain >= _LARGE]
    slowest = min((speed for speed in speeds if speed is not None), default=None)
    targets.append(limit("int8 files of 1 MB or more: pack and restore, the slowest", slowest, "MB/s", _SPEED, True))
    return targets


def of_archives(row: ContainerRow) -> float | None:
    """The packed model's size over that of the best archive."""
    best = best_archive(row)
    return row.onnxz.bytes / best if row.onnxz and best else None


def best_archive(row: ContainerRow) -> int | None:
    """Bytes of the smaller of zstd -19 and xz -9."""
    return min((archive.bytes for archive in (row.zstd, row.xz) if archive), default=None)


def throughput(row: ContainerRow) -> float | None:
    """Megabytes of the plain file for a second of packing and restoring together."""
    if row.onnxz is None:
        return None
    return row.plain / 1e6 / (row.onnxz.pack_seconds + row.onnxz.restore_seconds)


def _rows(results: SizeResults) -> Iterator[tuple[str, ContainerRow]]:
    for name, section in results.container.items():
        yield from ((name, row) for row in section.rows if row.failure is None)
