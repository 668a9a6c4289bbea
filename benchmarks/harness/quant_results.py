"""What quant.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.results import Environment, Part, Section, Stored

__all__ = ["Cost", "Costs", "QuantResults", "Saturation", "SaturationRow"]


class Cost(Part):
    """What calibration took one tool with one setting."""

    name: str
    tool: str
    setting: str
    samples: int
    """That it calibrated on."""
    failure: str | None = None
    own_seconds: float | None = None
    """Of the tool's own call or pass."""
    seconds: float | None = None
    """Of its process, from start to exit."""
    peak_bytes: int | None = None


class Costs(Part):
    """All of them on one model."""

    model: str
    date: str
    command: str
    environment: Environment
    rows: list[Cost]

    def row(self, name: str) -> Cost | None:
        """The cost of that name, when it was measured."""
        return next((row for row in self.rows if row.name == name and row.failure is None), None)


class SaturationRow(Part):
    """One result on a CPU whose 8-bit kernels add products in 16 bits."""

    model: str
    tool: str
    setting: str
    safe: bool
    """Whether the tool was told not to saturate there."""
    failure: str | None = None
    unfused: float | None = None
    """Agreement of classes with fp32 when all of ONNX Runtime's optimizations are off."""
    fused: float | None = None
    """Agreement of classes with fp32 as it is deployed."""
    equal: float | None = None
    """Classes that are the same either way."""
    sqnr_db: float | None = None
    """Of the fused outputs against the unfused ones."""


class Saturation(Part):
    """The same results with and without fused kernels, without VNNI."""

    date: str
    command: str
    environment: Environment
    machine: Literal["this machine", "emulated"]
    samples: dict[str, int]
    """Test samples of each model."""
    rows: list[SaturationRow]


class QuantResults(Stored):
    """Everything."""

    eight_bits: dict[str, Section] = Field(default_factory=dict)
    four_bits: dict[str, Section] = Field(default_factory=dict)
    costs: Costs | None = None
    saturation: Saturation | None = None
