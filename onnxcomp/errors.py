"""Every error that onnxcomp raises on purpose.

A message is one sentence for the person who caused it: what is wrong, where (file, node, option), what to do.
The command turns each class into its exit code; the library never exits and never prints.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "InputError",
    "OnnxcompError",
    "OnnxcompWarning",
    "PassError",
    "SessionError",
    "UsageError",
    "VerificationError",
]


class OnnxcompError(Exception):
    """Base of all deliberate errors."""

    exit_code = 2


class UsageError(OnnxcompError):
    """A pipeline, option or argument that makes no sense; nothing was read or written."""


class InputError(OnnxcompError):
    """A model, data file or output location that cannot be used."""


class SessionError(InputError):
    """ONNX Runtime refuses a model, or fails on it. While a pass runs, the pass made that model."""


class PassError(OnnxcompError):
    """A pass that cannot do its work on this model or without this data."""

    exit_code = 3


class VerificationError(PassError):
    """A pass whose result is not a valid model, does not run, or does not compute what it must."""


class BudgetError(OnnxcompError):
    """The result costs more accuracy than the user allows."""

    exit_code = 3


class OnnxcompWarning(UserWarning):
    """Something the user should know that does not stop the work."""
