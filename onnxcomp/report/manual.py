"""The manual page of a pass: its docstring and its options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from rich.table import Table

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
    properties: dict[str, Any] = cls.model_json_schema()["properties"]
    for name, field in cls.model_fields.items():
        default = repr(field.get_default(call_default_factory=True))
        yield name, default, _values(properties[name], field), field.description or ""


def _values(schema: dict[str, Any], field: FieldInfo) -> str:
    """The values of an option in the words of its type, with its limits."""
    kinds = [_kind(part) for part in schema.get("anyOf", [schema])]
    limits = [
        f"{sign} {part[key]}"
        for part in schema.get("anyOf", [schema])
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in part
    ]
    text = " or ".join(dict.fromkeys(kinds)) or str(field.annotation)
    return f"{text} {' and '.join(limits)}" if limits else text


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        fixed = schema.get("prefixItems")
        return f"({', '.join(map(_kind, fixed))})" if fixed else f"({_kind(schema.get('items', {}))}, ...)"
    names = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "True, False",
        "null": "None",
    }
    return names.get(schema.get("type", ""), "")
