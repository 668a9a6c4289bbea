"""The report of a compilation, as one JSON document.

``docs/report.md`` describes every field for its readers. ``schema_version`` grows when a field changes its
meaning or goes away; new fields may appear without.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from onnxcomp.files import write_atomic

__all__ = [
    "Check",
    "Data",
    "Decision",
    "Environment",
    "Fidelity",
    "Input",
    "Metric",
    "Options",
    "PassReport",
    "Report",
    "Result",
    "Samples",
    "Section",
    "Timing",
    "Verification",
]

SCHEMA_VERSION: Literal[1] = 1


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor Infinity."""
    return None if value is not None and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite)]
"""A measured number; null when it is infinite, undefined, or was not measured."""


class Section(BaseModel):
    """A part of a document; each field's docstring is its description in the JSON schema."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    def to_json(self) -> str:
        """Indented JSON with a newline at its end; what is infinite or undefined is null."""
        return self.model_dump_json(indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the document whole or not at all.

        Raises:
            InputError: the folder is missing or may not be written, or the disk is full.
        """
        write_atomic(path, self.to_json().encode())


class Input(Section):
    """The model before the first pass."""

    path: str | None = None
    """The file as named by the user; null for a model in memory."""
    bytes: int
    """Size of the file, external data included."""
    sha256: str
    """Of the file, followed by its external data files in the order of their names."""
    parameters: int
    """Elements of all weight tensors."""
    flops: int | None
    """Of one inference of one sample: two for each multiply-accumulate; null when the model was not run."""
    opset: int
    """Version of the standard operator set."""
    ir_version: int
    """Version of the file format."""


class Options(Section):
    """What was asked for."""

    pipeline: str
    """The pipeline as given."""
    scheduled: str
    """The passes in the order they ran in, with the passes that others require."""
    data: str | None = None
    """Source of the calibration samples; null when there were none."""
    test_data: str | None = None
    """Source of the samples to evaluate on; null when they are taken from ``data``."""
    metric: str | None = None
    """The metric as given; null for the default."""
    max_drop: Figure = None
    """Largest allowed loss of the metric; null for no limit."""
    seed: int = 0
    """Seed of all random choices."""
    threads: int = 1
    """Threads of the sessions whose time is measured."""
    target: str = "host"
    """The machine that the result is for."""
    keep_order: bool = False
    """Whether the passes had to run in the order they were written in."""
    timings: str | None = None
    """``off``, or the file whose timings were used; null when all were measured."""


class Environment(Section):
    """Where it ran: what is needed to understand a difference between two reports."""

    onnxcomp: str
    """Version of this program."""
    onnx: str
    """Version of the onnx package."""
    onnxruntime: str
    """Version of ONNX Runtime."""
    numpy: str
    """Version of NumPy."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and architecture."""
    cpu: str
    """Name of the processor."""
    isa: list[str] = Field(default_factory=list)
    """Instruction sets of this machine that decide which kernels run."""
    target: dict[str, Any] = Field(default_factory=dict)
    """The target in full: name, architecture, isa (instruction sets), threads, providers, int8_saturates (8-bit
    weights can overflow 16-bit sums), channel_multiple (channels that fill whole vectors)."""
    command: list[str] = Field(default_factory=list)
    """The command line, one entry a word; empty when called from Python."""


class Samples(Section):
    """A set of samples."""

    source: str
    """File, folder or function."""
    samples: int
    """How many were used."""
    sha256: str
    """Of the inputs' names, types, shapes and values, and of the labels."""


class Data(Section):
    """The samples that were used, and what for."""

    calibration: Samples | None = None
    """What the passes saw; null when there were none."""
    evaluation: Samples | None = None
    """What fidelity and metric were measured on; null when the input was made up."""
    held_out: bool = False
    """Whether no sample of the evaluation was seen by a pass."""


class Timing(Section):
    """A measured time that a pass decided by."""

    key: str
    """Of the two models, the inputs' shapes and the threads: what the time is of."""
    what: str
    """The rewrite that was timed."""
    ratio: float
    """Time before the rewrite over time after it: above 1 is faster."""
    low: float
    """Lower quartile of that ratio over repeated measurements."""
    high: float
    """Upper quartile."""
    before_ms: float
    """Median milliseconds of a run before the rewrite."""
    after_ms: float
    """Median milliseconds of a run after it."""


class Fidelity(Section):
    """How close the outputs are to the original on the evaluation samples; the worst of all outputs."""

    sqnr_db: Figure = None
    """Signal to noise in decibels; null when it is infinite: the outputs are identical (``max_error`` is 0),
    or the original's are all zero."""
    cosine: Figure = None
    """Cosine similarity."""
    max_error: Figure = None
    """Largest absolute difference."""
    top1_agreement: Figure = None
    """Share of the positions with the same largest class; null when no output looks like class scores."""
    nonfinite: int = 0
    """Values that are NaN or infinite where the original's are not."""


class Metric(Section):
    """The figure of merit, before and after."""

    name: str
    """top1, top5, agreement, sqnr, cosine, max_error, or the user's module:function."""
    original: Figure
    """Of the original model."""
    compressed: Figure
    """Of the compressed model."""
    samples: int
    """How many samples it was measured on."""
    higher_is_better: bool = True
    """Whether a drop is a decrease."""


class Decision(Section):
    """What a pass did to one layer, or why it left it alone."""

    layer: str
    """Name of the layer: its node's, where it has one."""
    action: str
    """``skipped``, or what was done: pruned, quantized, permuted …"""
    reason: str = ""
    """Why, or details of the action."""


class Check(Section):
    """One test of a pass's result."""

    name: str
    """checker (the model is valid), runs (ONNX Runtime runs it), exact (outputs are the same to float tolerance),
    signal (outputs hold more signal than error), unchanged (the pass changed nothing, so nothing was tested)."""
    outcome: Literal["passed", "failed", "skipped"]
    """Its result."""
    figure: Figure = None
    """What was measured: of ``exact``, the largest difference relative to the output's largest value; of
    ``signal``, the SQNR in dB."""
    message: str = ""
    """Why it failed or was skipped."""


class Verification(Section):
    """The tests of a pass's result."""

    status: Literal["passed", "failed"]
    """failed: at least one check failed, or the pass itself did."""
    checks: list[Check] = Field(default_factory=list)
    """Every test, in order."""
    error: str | None = None
    """Why the pass failed, in one sentence."""
    reproducer: str | None = None
    """Folder from which ``onnxcomp --replay`` repeats the failure."""


class PassReport(Section):
    """One pass: what it was, what it did, and the model after it."""

    name: str
    """As in the pipeline."""
    options: dict[str, Any]
    """All options with their values, defaults included."""
    status: Literal["applied", "unchanged", "rolled back"]
    """rolled back: the pass failed or did not verify, and the model is as it was before."""
    seconds: float
    """Time it took, without verification."""
    verification: Verification
    """The tests of its result."""
    decisions: list[Decision] = Field(default_factory=list)
    """What it did, layer by layer."""
    bytes: int
    """Size of the model after it."""
    parameters: int
    """Parameters after it."""
    flops: int
    """FLOPs after it."""
    fidelity: Fidelity | None = None
    """Of the model after it against the original; null when it was not measured. Of a pass that was rolled back:
    of the model that stands, which is the one before it."""
    metric: Figure = None
    """The metric after it; null when it was not measured. Of a pass that was rolled back, as ``fidelity``."""
    latency_ratio: Figure = None
    """Time of the original over time of the model after it; null when it was not measured."""


class Result(Section):
    """The compressed model against the original."""

    output: str | None = None
    """File that was written; null when none was."""
    bytes: int
    """Size of the file."""
    size_ratio: float
    """Original size over compressed size: above 1 is smaller."""
    packed_bytes: int | None = None
    """Size of the packed model (``.onnxz``) that was written; null when a plain one was, or none."""
    parameters: int
    """Elements of all weight tensors."""
    flops: int
    """Of one inference of one sample: two for each multiply-accumulate."""
    metric: Metric | None = None
    """The figure of merit; without evaluation samples it is measured on one random input."""
    budget_met: bool | None = None
    """Whether the metric dropped by no more than ``max_drop``; null without a limit."""
    fidelity: Fidelity
    """How close the outputs are."""
    latency_ratio: Figure = None
    """Time of the original over time of the result: above 1 is faster; null when it was not measured."""
    latency_spread: tuple[float, float] | None = None
    """Quartiles of that ratio over repeated measurements, lower and upper."""
    seconds: float
    """Time of the whole compilation."""
    peak_memory_bytes: int | None = None
    """Most memory that the process held at once; null where the system does not tell."""


class Report(Section):
    """A whole compilation."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this layout."""
    input: Input
    """The model before the first pass."""
    options: Options
    """What was asked for."""
    environment: Environment
    """Where it ran."""
    data: Data = Field(default_factory=Data)
    """The samples that were used."""
    passes: list[PassReport] = Field(default_factory=list)
    """One entry for each pass, in the order they ran in."""
    timings: list[Timing] = Field(default_factory=list)
    """Every measured time that a decision depended on; ``--timings`` takes them from here."""
    result: Result
    """The compressed model against the original."""
    warnings: list[str] = Field(default_factory=list)
    """What the user should know besides."""

    @property
    def failed_passes(self) -> list[PassReport]:
        """The passes that were rolled back."""
        return [entry for entry in self.passes if entry.status == "rolled back"]

    @property
    def succeeded(self) -> bool:
        """Whether every pass was verified and the budget, if any, was met."""
        return not self.failed_passes and self.result.budget_met is not False
