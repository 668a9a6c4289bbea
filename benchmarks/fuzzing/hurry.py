"""Runs of the command that are about what it leaves, not about how fast anything is."""

from __future__ import annotations

from typing import Any

from onnxcomp.runtime import latency

__all__ = ["hurry"]


def hurry() -> None:
    """Let this process time models with as few runs as it can."""
    compare = latency.compare

    def compare_quickly(a: bytes, b: bytes, feeds: Any, threads: int = 1, **_: float) -> latency.LatencyComparison:
        return compare(a, b, feeds, threads, seconds=0.0, warmup=0.0)

    latency.compare = compare_quickly
