"""A run over the collection: every model and its variants, in processes of their own; counts of what was found."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.cases import Case, load_cases, variants
from harness.examine import EVERY_PASS, LOAD_AND_SAVE, Finding, examine, without_timing
from harness.pool import spread
from harness.results import Environment

__all__ = ["Collection", "Count", "collect", "findings_of", "tally"]

PREPARING = 120.0  # seconds to import everything and to make the models of single operators


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Count(_Part):
    """How many models share an outcome, a reason or a sentence."""

    check: str
    text: str
    models: int


class Collection(_Part):
    """What a run found.

    Attributes:
        date, command, environment: of the run.
        seconds: wall clock.
        models: of each kind.
        outcomes: for each check, how many models (variants are models of their own) came out how.
        reasons: why each pass left weighted layers alone, with the number of models in which that was the reason.
        undone: passes that were rolled back because they lost too much, or gave up.
        refused, not_runnable: sentences of errors.
        failures: models that came out wrong: there must be none.
    """

    date: str
    command: str
    environment: Environment
    seconds: float
    processes: int
    models: dict[str, int]
    outcomes: dict[str, dict[str, int]]
    reasons: list[Count] = Field(default_factory=list)
    undone: list[Count] = Field(default_factory=list)
    refused: list[Count] = Field(default_factory=list)
    not_runnable: list[Count] = Field(default_factory=list)
    failures: list[dict[str, str]] = Field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Collection | None:
        """What was written there, or None."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, path: Path) -> None:
        """Write indented JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def collect(names: Sequence[str], processes: int, seconds: float) -> Iterator[list[Finding]]:
    """The findings of each model, as they come; a process that hangs or dies is a finding too.

    Args:
        names: of models and variants (see ``cases.variants``).
        processes: at work at a time.
        seconds: for one model; the first of a process may take longer.
    """
    for done in spread(findings_of, names, processes, seconds, _prepare, PREPARING):
        yield done.value if done.failure is None else [Finding(str(done.item), "the process", "failed", done.failure)]


def findings_of(name: str) -> list[Finding]:
    """Examine the model or variant of that name."""
    with without_timing():
        return examine(_cases()[name])


@cache
def _cases() -> dict[str, Case]:
    return {variant.name: variant for case in load_cases() for variant in variants(case)}


def _prepare() -> None:
    findings_of("node/test_gemm_all_attributes+constant weights")  # imports what is imported on demand
    gc.collect()
    gc.freeze()  # the manager collects garbage after every pass: thousands of models are none


def tally(findings: Iterable[Finding]) -> dict[str, object]:
    """The counts of ``Collection``."""
    outcomes: dict[str, Counter[str]] = {}
    reasons: Counter[tuple[str, str]] = Counter()
    sentences = {outcome: Counter[tuple[str, str]]() for outcome in ("undone", "refused", "not runnable")}
    failures = []
    for found in findings:
        outcomes.setdefault(found.check, Counter())[found.outcome] += 1
        if found.check not in (EVERY_PASS, LOAD_AND_SAVE):  # what all passes leave alone, each of them does
            nothing = [found.detail] if found.outcome == "left alone" and not found.reasons else []
            reasons.update((found.check, reason) for reason in [*found.reasons, *nothing])
        if found.outcome in sentences:
            sentences[found.outcome][found.check, found.detail] += 1
        if found.outcome == "failed":
            failures.append({"model": found.case, "check": found.check, "detail": found.detail})
    return {
        "outcomes": {check: dict(sorted(counts.items())) for check, counts in outcomes.items()},
        "reasons": _ranked(reasons),
        "undone": _ranked(sentences["undone"]),
        "refused": _ranked(sentences["refused"]),
        "not_runnable": _ranked(sentences["not runnable"]),
        "failures": sorted(failures, key=lambda failure: (failure["model"], failure["check"])),
    }


def _ranked(counted: Counter[tuple[str, str]]) -> list[Count]:
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [Count(check=check, text=text, models=models) for (check, text), models in ranked]
