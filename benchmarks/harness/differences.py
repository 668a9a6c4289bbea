"""Where two messages, or the outputs of two models, differ; sentences without what differs from model to model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

__all__ = ["field_difference", "kind_of_sentence", "output_difference"]

_COARSE = {"bfloat16": 2**-6, "float16": 2e-3, "float8_e4m3fn": 2**-3, "float8_e5m2": 2**-2}
_FINEST = 1e-6  # absolute; sums in another order differ by this much


def field_difference(before: Any, after: Any, place: str = "the model") -> str | None:
    """The first field of two protobuf messages that differs, or None."""
    if before == after:
        return None
    names = {field.name for message in (before, after) for field, _ in message.ListFields()}
    for name in sorted(names):
        old, new = getattr(before, name), getattr(after, name)
        if hasattr(old, "extend"):
            if list(old) == list(new):
                continue
            if len(old) == len(new) and hasattr(old[0], "ListFields"):
                pairs = enumerate(zip(old, new, strict=True))
                return next(found for i, pair in pairs if (found := field_difference(*pair, f"{place}.{name}[{i}]")))
        elif old == new and before.HasField(name) == after.HasField(name):
            continue
        elif hasattr(old, "ListFields") and old != new:
            return field_difference(old, new, f"{place}.{name}")
        return f"{place}.{name} from {old!r:.200} to {new!r:.200}"
    return place


def output_difference(expected: Any, found: Any, rtol: float, atol: float) -> str | None:
    """What differs between two values, or lists of them, beyond the tolerances; or None."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return f"{len(expected)} values became {len(found) if isinstance(found, list) else type(found).__name__}"
        pairs = zip(expected, found, strict=True)
        return next((wrong for pair in pairs if (wrong := output_difference(*pair, rtol, atol))), None)
    if not isinstance(expected, np.ndarray):
        same = type(expected) is type(found) and expected == found
        return None if same else f"{expected!r:.80} became {found!r:.80}"
    if not isinstance(found, np.ndarray) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
        became = f"{found.dtype}{found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        return f"{expected.dtype}{expected.shape} became {became}"
    return _array_difference(expected, found, max(rtol, _COARSE.get(expected.dtype.name, 0.0)), max(atol, _FINEST))


def _array_difference(expected: Any, found: Any, rtol: float, atol: float) -> str | None:
    if expected.dtype.kind in "OUSb":
        return None if np.array_equal(expected, found) else "values differ"
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    r, c = expected.astype(wide), found.astype(wide)
    with np.errstate(invalid="ignore"):
        if np.isclose(c, r, rtol=rtol, atol=atol, equal_nan=True).all():
            return None
        return f"largest error {np.nanmax(np.abs(r - c)):.3g}, largest value {np.nanmax(np.abs(r)):.3g}"


def kind_of_sentence(text: str) -> str:
    """The sentence without paths, names and numbers, so that sentences of one kind can be counted."""
    text = re.sub(r"\S*/\S+", "…", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"\b\w*\d[\w.]*\b", "#", text)
    return re.sub(r"\(\s*(#[#,\s]*|)\)", "(#)", text)
