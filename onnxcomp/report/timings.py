"""Timings of an earlier run, taken from its report."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from onnxcomp.errors import InputError
from onnxcomp.report.schema import Timing
from onnxcomp.runtime.timings import TimedComparison, TimingTable

__all__ = ["OFF", "open_timings"]

OFF = "off"


def open_timings(source: str | os.PathLike[str] | None) -> TimingTable:
    """The table that a user names.

    Args:
        source: ``off`` (nothing is measured), a report, or None (everything is measured).

    Raises:
        InputError: the file is missing or is no report.
    """
    if source is None:
        return TimingTable()
    if source == OFF:
        return TimingTable(source=OFF, measures=False)
    path = Path(source)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries = TypeAdapter(list[Timing]).validate_python(document["timings"])
    except OSError as error:
        raise InputError(f"{path}: the timings cannot be read: {error.strerror}; give a report, or off") from None
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        raise InputError(f"{path}: holds no timings; give the JSON report of an earlier run, or off") from None
    return TimingTable((TimedComparison(**entry.model_dump()) for entry in entries), source=str(path))
