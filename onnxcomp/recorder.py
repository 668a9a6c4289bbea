"""Measures the model after every pass: bytes, parameters, FLOPs, time against the original."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnxcomp.errors import SessionError
from onnxcomp.graph.cost import Cost, cost
from onnxcomp.manager import Step
from onnxcomp.model import Model
from onnxcomp.runtime import latency, shapes
from onnxcomp.runtime.latency import LatencyComparison
from onnxcomp.runtime.profile import body_shapes
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.target import Target
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Recorder"]

_SECONDS_A_PASS = 0.5
_SECONDS_AT_END = 2.0


class Recorder:
    """Size, cost and measured time after every pass; it judges nothing.

    Args:
        original: to compare with.
        feeds: one run of one sample.
        target: its threads are timed with.
    """

    def __init__(self, original: Model, feeds: Feeds, target: Target) -> None:
        self._feeds = feeds
        self._threads = target.threads
        self._original = original.skeleton()
        self.original_cost = self.cost = self._cost(original)
        self.original_size = self.size = self._original.size
        self._ratio: float | None = 1.0

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Measure what the pass left, or what stood before it when it was undone."""
        try:
            yield
            if step.changed:
                self._measure(step)
        finally:
            record = step.record
            record.size, record.parameters, record.flops = self.size, self.cost.parameters, self.cost.flops
            record.latency_ratio = self._ratio

    def _measure(self, step: Step) -> None:
        model = step.model.skeleton()
        found = self._cost(step.model)
        timed = self._compare(model, _SECONDS_A_PASS)
        self.cost, self.size = found, model.size
        self._ratio = None if timed is None else timed.ratio

    def _cost(self, model: Model) -> Cost:
        return cost(model, shapes.observed(model, self._feeds), body_shapes(model, self._feeds))

    def final(self, model: Model) -> LatencyComparison | None:
        """The original's time over the model's, measured longer; None when one does not run as it is deployed."""
        return self._compare(model.skeleton(), _SECONDS_AT_END)

    def _compare(self, model: Skeleton, seconds: float) -> LatencyComparison | None:
        try:
            return latency.compare(self._original, model, self._feeds, threads=self._threads, seconds=seconds)
        except SessionError:
            return None
