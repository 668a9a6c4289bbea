"""What size.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from pydantic import Field

from harness.results import Environment, Part, Section, Stored

__all__ = ["Archive", "Codes", "ContainerRow", "ContainerSection", "SizeResults"]


class Archive(Part):
    """A file in one form."""

    bytes: int
    pack_seconds: float
    """Of the processor, the least of all rounds."""
    restore_seconds: float
    """The same."""


class Codes(Part):
    """The integer weights of a model alone, of two axes or more."""

    count: int
    entropy: float
    """Bytes that they take as independent draws from one distribution for each tensor."""
    packed: int
    """As ``.onnxz``: a model that holds nothing else."""
    nncodec: int | None = None
    """As an NNC bitstream (ISO/IEC 15938-17), decoded and compared; null when it was not run."""
    nncodec_seconds: float | None = None
    """Of the processor, to encode and to decode."""


class ContainerRow(Part):
    """One model file."""

    form: str
    """How it was made of the fp32 original."""
    plain: int
    """Bytes of the plain file."""
    onnxz: Archive | None = None
    zstd: Archive | None = None
    """zstd -19."""
    xz: Archive | None = None
    """xz -9."""
    codes: Codes | None = None
    """Where it has integer weights."""
    failure: str | None = None
    """Why there is nothing."""


class ContainerSection(Part):
    """One model of the zoo in the suite ``container``."""

    date: str
    command: str
    environment: Environment
    rows: list[ContainerRow]


class SizeResults(Stored):
    """Everything, by suite."""

    share: dict[str, Section] = Field(default_factory=dict)
    factorize: dict[str, Section] = Field(default_factory=dict)
    container: dict[str, ContainerSection] = Field(default_factory=dict)
