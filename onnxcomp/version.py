"""The version of onnxcomp that runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version"]


def installed_version() -> str:
    """As the installed package says; ``unknown`` when the source is run without being installed."""
    try:
        return version("onnxcomp")
    except PackageNotFoundError:
        return "unknown"
