"""The timing table: measured comparisons that steer decisions, recorded so that a run can be repeated.

Time is the one input of a compilation that differs from run to run. Whatever a pass decides by it goes through
this table: a stored table gives the same decisions, and so the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from onnxcomp.model import Model
from onnxcomp.runtime import latency
from onnxcomp.runtime.session import Feeds
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["TimedComparison", "TimingTable"]


@dataclass(frozen=True)
class TimedComparison:
    """One comparison: time of a model before a rewrite over its time after it.

    Attributes:
        key: SHA-256 of both models, the inputs' types and shapes, and the threads.
        what: the rewrite, for people.
        ratio: above 1, the rewrite is faster.
        low, high: quartiles of the ratio over neighbouring runs.
        before_ms, after_ms: median milliseconds of a run.
    """

    key: str
    what: str
    ratio: float
    low: float
    high: float
    before_ms: float
    after_ms: float

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


class TimingTable:
    """Looks comparisons up, and measures those that are not there.

    Args:
        known: entries of an earlier run (of its report, say).
        source: where the known entries come from, or ``off``; None when everything is measured.
        measures: whether what is not there may be measured. If not, ``compare`` says so, and passes go by
            what is usually faster.

    Attributes:
        used: the comparisons that this run asked for, in order.
        measured: how many of them were not known.
    """

    def __init__(self, known: Iterable[TimedComparison] = (), source: str | None = None, measures: bool = True) -> None:
        self._known = {entry.key: entry for entry in known}
        self.measures = measures
        self.source = source
        self.used: list[TimedComparison] = []
        self.measured = 0

    @property
    def incomplete(self) -> bool:
        """Whether a table was given and something had to be measured all the same."""
        return self.source is not None and self.measured > 0

    def compare(
        self,
        what: str,
        before: Model | Skeleton,
        after: Model | Skeleton,
        feeds: Feeds,
        threads: int = 1,
        seconds: float = 0.5,
    ) -> TimedComparison | None:
        """Time of ``before`` over time of ``after``; None where it is neither known nor to be measured.

        Args:
            what: the rewrite, for the report.
            before, after: the two models.
            feeds: one sample.
            threads: intra-op threads.
            seconds: to spend on measuring.

        Raises:
            InputError: a model does not load, or does not run on the feeds.
        """
        before, after = (m.skeleton() if isinstance(m, Model) else m for m in (before, after))
        key = _key(before, after, feeds, threads)
        entry = self._known.get(key)
        if entry is None:
            if not self.measures:
                return None
            timed = latency.compare(before, after, feeds, threads, seconds)
            entry = TimedComparison(key, what, timed.ratio, timed.low, timed.high, timed.a_ms, timed.b_ms)
            self._known[key] = entry
            self.measured += 1
        self.used.append(entry)
        return entry


def _key(before: Skeleton, after: Skeleton, feeds: Feeds, threads: int) -> str:
    digest = hashlib.sha256()
    for model in (before, after):
        digest.update(bytes.fromhex(model.digest()))
    inputs = sorted((name, str(value.dtype), value.shape) for name, value in feeds.items())
    digest.update(repr((inputs, threads)).encode())
    return digest.hexdigest()
