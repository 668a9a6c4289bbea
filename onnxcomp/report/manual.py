"""The manual page of a pass: its docstring and its options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from onnxcomp.passbase import Pass
from onnxcomp.report.console import Page
from onnxcomp.report.table import table

__all__ = ["option_rows", "pass_summary", "print_manual"]

_ITEM = re.compile(r"\s*(?:\d+\.|[-*]) ")


def pass_summary(cls: type[Pass]) -> str:
    """The first sentence of its docstring."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("``", "")


def print_manual(page: Page, cls: type[Pass]) -> None:
    """Name, docstring, facts, and a table of options."""
    page.line(cls.name, style="bold")
    page.line()
    for line in _paragraphs(inspect.cleandoc(cls.__doc__ or "")):
        page.prose(line)
    page.line()
    promise = "yes, to float tolerance" if cls.exact else "no"
    page.line(f"Stage: {cls.stage.name.lower()}. Keeps every output: {promise}.")
    if cls.requires:
        page.line(f"Runs after: {', '.join(cls.requires)} (added when not named).")
    if cls.model_fields:
        page.line()
        options = table("option", "default", "values", "meaning", text=("default", "values", "meaning"))
        options.columns[0].no_wrap = True
        for row in option_rows(cls):
            options.add_row(*row)
        page.table(options, readable=True)


def _paragraphs(text: str) -> Iterator[str]:
    """The lines of a docstring, joined where they were broken to fit the source."""
    current = ""
    for line in text.splitlines():
        starts = not line.strip() or _ITEM.match(line)
        if starts and current:
            yield current.replace("``", "")
            current = ""
        if not line.strip():
            yield ""
        elif current:
            current = f"{current} {line.strip()}"
        else:
            current = line.rstrip()
    if current:
        yield current.replace("``", "")


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
