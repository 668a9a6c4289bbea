"""Write docs/report.md from the classes of the report, whose docstrings are the descriptions of its fields.

python docs/make_report_page.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from onnxcomp.report.inspection import Inspection
from onnxcomp.report.schema import SCHEMA_VERSION, Report, Section

PAGE = Path(__file__).with_name("report.md")

INTRODUCTION = f"""\
<!-- Written by docs/make_report_page.py from onnxcomp/report/schema.py; edit the docstrings there. -->

# The report

`--report FILE.json` writes down everything about a compilation: what was asked for, where it ran, what every pass did
to every layer and why, how each result was verified, and what was measured. `--report -` writes it to stdout and
keeps the tables away. Without `-p`, the same option writes down what is in the model: see [Inspection](#inspection).

```sh
onnxcomp net.onnx -p prune,quant --data calibration.npz --report report.json
```

From Python, `compress` returns it; a file is read back with the same class, which checks it:

```python
from pathlib import Path

from onnxcomp import compress
from onnxcomp.report.schema import Report

result = compress("net.onnx", "fold,quant", data="calibration.npz")
result.report.write(Path("report.json"))

report = Report.model_validate_json(Path("report.json").read_text(encoding="utf-8"))
for entry in report.passes:
    for decision in entry.decisions:
        print(entry.name, decision.layer, decision.action, decision.reason)
```

This is version {SCHEMA_VERSION} of the layout. `schema_version` grows when a field changes its meaning or goes away.
New fields may appear without, so other readers should ignore what they do not know; `Report` itself refuses it, and
reads what its own or an older release of the same version wrote.
`Report.model_json_schema()` gives the JSON Schema of this version.

Every field is always present. Figures that are infinite, undefined or were not measured are `null`, because JSON has
neither NaN nor Infinity. Sizes are bytes, times are seconds unless a name says `ms`. Ratios are original over result:
above 1 is smaller or faster.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_sections(Report), *_sections(Inspection, seen=[Report])])


def _sections(root: type[Section], seen: list[type[Section]] | None = None) -> Iterator[str]:
    """A table for the class and for each class that its fields hold, each once, outer ones first."""
    known = [cls for given in seen or [] for cls in _classes(given)]
    for cls in _classes(root):
        if cls not in known:
            yield f"## {cls.__name__}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{_table(cls)}"


def _classes(root: type[Section]) -> list[type[Section]]:
    found = [root]
    for cls in found:  # grows while it is walked
        for field in cls.model_fields.values():
            found += [part for part in _parts(field.annotation) if part not in found]
    return found


def _parts(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _table(cls: type[Section]) -> str:
    lines = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in cls.model_fields.items():
        meaning = " ".join((field.description or "").replace("``", "`").split())
        lines.append(f"| `{name}` | {_kind(field.annotation)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _kind(annotation: Any) -> str:
    """The type of a field in the words of JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_kind, arguments)))
    if origin is Literal:
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, arguments))}]"
    if origin is dict:
        values = "" if arguments[1] is Any else f" of {_kind(arguments[1])}"
        return f"object{values}"
    if issubclass(annotation, Section):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "text", int: "integer", float: "number", bool: "boolean", NoneType: "null"}[annotation]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
