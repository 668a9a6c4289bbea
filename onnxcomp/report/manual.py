"""The manual page of a pass: its docstring and its options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from rich.table import Table

from onnxcomp.options import allowed_values
from onnxcomp.passbase import Pass
from onnxcomp.report.table import table

__all__ = ["manual_page", "option_rows", "pass_summary"]


def pass_summary(cls: type[Pass]) -> str:
    """The first sentence of its docstring."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def manual_page(cls: type[Pass]) -> Iterator[str | Table]:
    """Name, docstring, facts, and a table of options."""
    yield f"{cls.name}\n"
    yield inspect.cleandoc(cls.__doc__ or "")
    promise = "yes, to float tolerance" if cls.exact else "no"
    yield f"\nStage: {cls.stage.name.lower()}. Keeps every output: {promise}."
    if cls.requires:
        yield f"Runs after: {', '.join(cls.requires)} (added when not named)."
    if cls.model_fields:
        options = table("option", "default", "values", "meaning")
        for column in options.columns:
            column.justify, column.no_wrap = "left", False
        for row in option_rows(cls):
            options.add_row(*row)
        yield options


def option_rows(cls: type[Pass]) -> Iterator[tuple[str, str, str, str]]:
    """Of each option: name, default, values it takes, meaning."""
    for name, field in cls.model_fields.items():
        default = repr(field.get_default(call_default_factory=True))
        yield name, default, allowed_values(cls, name), field.description or ""
