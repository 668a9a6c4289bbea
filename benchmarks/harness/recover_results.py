"""What recover.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from pydantic import Field

from harness.results import Environment, Part, Ratio, Section, Stored

__all__ = ["RecoverResults", "StepRow", "Steps"]


class StepRow(Part):
    """Training steps of one tool."""

    name: str
    tool: str
    setting: str
    failure: str | None = None
    milliseconds: float | None = None
    """Median of one step."""
    times_torch: Ratio | None = None
    """Time of a step over torch's, round by round."""
    peak_bytes: int | None = None
    """That making and running a few steps takes, above what the process holds with the tool imported."""
    error: float | None = None
    """Of all gradients together, relative to those of torch in double precision."""
    worst_error: float | None = None
    """Of the tensor whose gradient is furthest from it."""


class Steps(Part):
    """All of them on one model."""

    model: str
    batch: int
    threads: int
    rounds: int
    date: str
    command: str
    environment: Environment
    rows: list[StepRow]

    def row(self, name: str) -> StepRow | None:
        """The tool of that name, when it was measured."""
        return next((row for row in self.rows if row.name == name and row.failure is None), None)


class RecoverResults(Stored):
    """Everything."""

    steps: dict[str, Steps] = Field(default_factory=dict)
    recovery: dict[str, Section] = Field(default_factory=dict)
    """The calibration samples of a section are those that are trained on."""
