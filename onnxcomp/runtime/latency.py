"""Measured time: how much faster one model is than another, on a machine that does other things too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, Loadable, create, run
from onnxcomp.runtime.values import prepared
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["LatencyComparison", "compare", "measure"]

_SHORTEST_TIMING_S = 5e-4  # below it, the clock and the call weigh too much: several runs are timed together
_LEAST_PAIRS = 5
_MOST_PAIRS = 400
_ROUNDS = 2


@dataclass(frozen=True)
class LatencyComparison:
    """Time of ``a`` over time of ``b``: above 1, ``b`` is faster.

    Attributes:
        ratio: median of the ratios of neighbouring runs, which share what disturbs them.
        low, high: quartiles of these ratios.
        a_ms, b_ms: median milliseconds of a run.
        pairs: neighbouring runs timed.
        threads: of both sessions.
    """

    ratio: float
    low: float
    high: float
    a_ms: float
    b_ms: float
    pairs: int
    threads: int

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


def compare(
    a: Loadable, b: Loadable, feeds: Feeds, threads: int = 1, seconds: float = 1.5, warmup: float = 0.1
) -> LatencyComparison:
    """Time two models in turn, run by run, so that both see the same disturbances.

    Args:
        a: the model to compare with.
        b: the model to judge.
        feeds: one sample.
        threads: intra-op threads of each session.
        seconds: to spend on timed runs; at least five pairs are timed however long they take.
        warmup: seconds of untimed runs of each, at least two.

    Raises:
        InputError: a model does not load, or does not run on the feeds.
    """
    if any(map(_is_large, (a, b))):
        times = _one_after_the_other((a, b), feeds, threads)
    else:
        times = _in_turn((a, b), feeds, threads, seconds, warmup)
    each = np.array(times)
    low, ratio, high = np.quantile(each[:, 0] / each[:, 1], [0.25, 0.5, 0.75])
    a_s, b_s = np.median(each, axis=0)
    return LatencyComparison(
        float(ratio), float(low), float(high), float(a_s * 1e3), float(b_s * 1e3), len(times), threads
    )


def measure(model: Loadable, feeds: Feeds, threads: int = 1, seconds: float = 0.5, warmup: float = 0.1) -> float:
    """Median milliseconds of a run of one model.

    Raises:
        InputError: the model does not load, or does not run on the feeds.
    """
    session = create(model, threads=threads)
    call = _call(session, feeds)
    repeats = max(1, math.ceil(_SHORTEST_TIMING_S / _warm_up(call, warmup)))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_PAIRS or (time.perf_counter() < end and len(times) < _MOST_PAIRS):
        times.append(_time(call, repeats))
    return float(np.median(times) * 1e3)


def _in_turn(
    models: Sequence[Loadable], feeds: Feeds, threads: int, seconds: float, warmup: float
) -> list[tuple[float, float]]:
    """Seconds of neighbouring runs of two models that are open at the same time."""
    # Threads that spin after one session's run would take the cores of the other's.
    config = {"session.force_spinning_stop": "1"}
    sessions = [create(model, threads=threads, config=config) for model in models]
    calls = [_call(session, feeds) for session in sessions]
    repeats = [max(1, math.ceil(_SHORTEST_TIMING_S / _warm_up(call, warmup))) for call in calls]
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < _LEAST_PAIRS or (time.perf_counter() < end and len(times) < _MOST_PAIRS):
        first, second = (_time(call, n) for call, n in zip(calls, repeats, strict=True))
        times.append((first, second))
    return times


def _one_after_the_other(models: Sequence[Loadable], feeds: Feeds, threads: int) -> list[tuple[float, float]]:
    """The same of models that are too large to be open together; their runs are long, so few of them say enough."""
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for model, spent in zip(models, times, strict=True):
            call = _call(create(model, threads=threads), feeds)
            spent += [_time(call, 1) for _ in range(_LEAST_PAIRS)]
            del call  # with its session
    return list(zip(*times, strict=True))


def _is_large(model: Loadable) -> bool:
    return isinstance(model, Model | Skeleton) and model.is_large


def _call(session: ort.InferenceSession, feeds: Feeds) -> Callable[[], Any]:
    run(session, feeds)  # the one run whose failure is explained
    return prepared(session, [output.name for output in session.get_outputs()], feeds)


def _warm_up(call: Callable[[], Any], seconds: float) -> float:
    """Run for a while; returns the seconds of the last run."""
    end = time.perf_counter() + seconds
    while True:
        spent = _time(call, 1)
        if time.perf_counter() >= end:
            return max(spent, 1e-7)


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
