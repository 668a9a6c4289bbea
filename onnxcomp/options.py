"""Which values an option of a pass takes, in words."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

__all__ = ["allowed_values"]

_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "True or False", "null": "None"}


def allowed_values(cls: type[BaseModel], option: str) -> str:
    """The values that an option takes, in the words of its type and with its limits: ``number > 0 and < 1``."""
    try:
        schema = cls.model_json_schema()["properties"][option]
    except PydanticInvalidForJsonSchema:  # a type of a plug-in's own
        return str(cls.model_fields[option].annotation)
    return _describe(schema) or str(cls.model_fields[option].annotation)


def _describe(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(filter(None, map(_describe, schema["anyOf"]))))
    if "enum" in schema:
        return ", ".join(map(repr, schema["enum"]))
    if "const" in schema:
        return repr(schema["const"])
    if schema.get("type") == "array":
        fixed = schema.get("prefixItems")
        return f"({', '.join(map(_describe, fixed))})" if fixed else f"({_describe(schema.get('items', {}))}, ...)"
    kind = _WORDS.get(schema.get("type", ""), "")
    limits = " and ".join(f"{sign} {schema[key]:.12g}" for key, sign in _SIGNS.items() if key in schema)
    return f"{kind} {limits}" if limits else kind
