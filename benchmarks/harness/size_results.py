"""What size.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from pydantic import Field

from harness.results import Section, Stored

__all__ = ["SizeResults"]


class SizeResults(Stored):
    """Everything, by suite."""

    share: dict[str, Section] = Field(default_factory=dict)
    factorize: dict[str, Section] = Field(default_factory=dict)
