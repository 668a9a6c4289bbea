"""What a run measures, as data: the JSON that RESULTS.md is rendered from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Environment", "Part", "Ratio", "Results", "Row", "Section", "Stored", "merge", "ratio_of"]


class Part(BaseModel):
    """A piece of the JSON; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Ratio(Part):
    """Time of the fp32 original over time of a candidate, round by round: above 1 is faster."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""


def ratio_of(original: Sequence[float], candidate: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratios of two models' times; entry i of both is of round i.

    Raises:
        ValueError: the numbers of rounds differ, or there are none.
    """
    if len(original) != len(candidate) or not original:
        raise ValueError(f"times of {len(original)} and {len(candidate)} rounds cannot be compared")
    low, median, high = np.quantile(np.asarray(original) / np.asarray(candidate), [0.25, 0.5, 0.75])
    return Ratio(median=float(median), low=float(low), high=float(high))


class Row(Part):
    """One tool with one setting on one model; the original is the row of the tool ``fp32``."""

    name: str
    """Identifies the entry, as on the command line."""
    tool: str
    setting: str
    failure: str | None = None
    """Why there is no usable result; what was measured before stands."""
    seconds: float | None = None
    """Wall clock of the tool's process, from start to exit."""
    recovery_seconds: float | None = None
    """Of them, those of training: onnxcomp's pass ``recover``, or what a peer tells of its own."""
    peak_bytes: int | None = None
    """Most memory that its process held at once."""
    bytes: int | None = None
    """All files that it wrote, external data included."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Of the result, by name; see ``Section.figures``."""
    sqnr_db: float | None = None
    """Signal to quantization noise of the outputs against the original's; null: equal, or not measured."""
    agreement: float | None = None
    """Share of the decisions that equal the original's, see ``harness.decisions``."""
    unfused_agreement: float | None = None
    """The same against the result itself, run without any of ONNX Runtime's optimizations."""
    integer_kernels: int | None = None
    """In the graph that ONNX Runtime makes of it."""
    float_layers: int | None = None
    """Layers with constant weights that run in float there."""
    flops: int | None = None
    """Of one run on one sample."""
    zeros: float | None = None
    """Share of zeros among the weights that are multiplied."""
    packed_bytes: int | None = None
    """All files that it wrote, packed by LZMA."""
    onnxz_bytes: int | None = None
    """Of the model in onnxcomp's packed form, whatever tool it is of."""
    load_ms: float | None = None
    """Median time that ONNX Runtime takes to make a session of it."""
    restored_share: float | None = None
    """Bytes of the constants that restored weights are made of, over those of the weights in float32."""
    latency: Ratio | None = None
    latencies: dict[str, Ratio] = Field(default_factory=dict)
    """At other lengths of the input, by name."""
    milliseconds: float | None = None
    """Median of one run."""
    date: str | None = None
    """When it was measured in a run of its own, apart from the rest of its section."""
    passes: int | None = None
    """Of onnxcomp: passes that ran."""
    verified: int | None = None
    """Of onnxcomp: passes whose result was verified and kept."""
    undecided: int | None = None
    """Of onnxcomp: weighted layers that its report gives neither an action nor a reason for."""


class Environment(Part):
    """Where and with what a section was measured."""

    cpu: str
    isa: list[str]
    cores: int
    platform: str
    versions: dict[str, str]


class Section(Part):
    """Everything about one model."""

    model: str
    file: str
    date: str
    command: str
    environment: Environment
    figures: list[str]
    """Names of the figures of merit, the one that counts first."""
    samples: dict[str, int]
    """How many samples each figure was measured on."""
    calibration_samples: int
    rounds: int
    """Of the timing."""
    threads: int
    original: Row
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        """The entry of that name."""
        return next((row for row in self.rows if row.name == name), None)


class Stored(Part):
    """What a command measured, of several runs perhaps, in a file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was written there, or nothing yet."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else cls()

    def write(self, path: Path) -> None:
        """Write indented JSON."""
        path.write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


class Results(Stored):
    """Sections by model."""

    sections: dict[str, Section] = Field(default_factory=dict)


def merge(before: Section | None, after: Section) -> Section:
    """A section whose rows of an earlier run are replaced by those of a later one, which are marked by its date.

    The facts about the machine stay those of the earlier run.
    """
    if before is None:
        return after
    rows = {row.name: row for row in before.rows}
    rows |= {row.name: row.model_copy(update={"date": after.date}) for row in after.rows}
    return before.model_copy(update={"rows": list(rows.values())})
