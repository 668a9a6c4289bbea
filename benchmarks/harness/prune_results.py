"""What prune.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from pydantic import Field

from harness.quant_results import Costs
from harness.results import Environment, Part, Section, Stored

__all__ = ["Discovery", "PruneResults"]


class Discovery(Part):
    """Finding the dependency groups of a generated graph."""

    date: str
    environment: Environment
    nodes: int
    groups: int
    seconds: list[float]
    """Of each of several runs."""


class PruneResults(Stored):
    """Everything."""

    channels: dict[str, Section] = Field(default_factory=dict)
    elements: dict[str, Section] = Field(default_factory=dict)
    costs: Costs | None = None
    discovery: Discovery | None = None
