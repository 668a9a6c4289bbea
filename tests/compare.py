"""Compares protobuf messages field by field, and says where they differ."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

__all__ = ["differences"]


def differences(found: Message, expected: Message, path: str = "") -> list[str]:
    """Every field in which two messages differ, one sentence each.

    Whether a field is set counts, numbers are compared by their bits, and fields that this version of the schema
    does not know are compared too.
    """
    return list(_differences(found, expected, path or type(expected).__name__))


def _differences(found: Any, expected: Any, path: str) -> Iterator[str]:
    for field in expected.DESCRIPTOR.fields:
        where = f"{path}.{field.name}"
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.is_repeated:
            yield from _repeated(list(ours), list(theirs), where)
        elif found.HasField(field.name) != expected.HasField(field.name):
            yield f"{where} is {'set' if found.HasField(field.name) else 'not set'}"
        elif found.HasField(field.name):
            yield from _value(ours, theirs, where)
    if (ours := _unknown(found)) != (theirs := _unknown(expected)):
        yield f"{path} has the unknown fields {ours} instead of {theirs}"


def _repeated(ours: list[Any], theirs: list[Any], where: str) -> Iterator[str]:
    if len(ours) != len(theirs):
        yield f"{where} has {len(ours)} entries instead of {len(theirs)}: {_names(ours)} instead of {_names(theirs)}"
        return
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        label = getattr(their, "name", "") or getattr(their, "key", "")
        yield from _value(our, their, f"{where}[{index}{f' {label}' if label else ''}]")


def _value(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(theirs, Message):
        yield from _differences(ours, theirs, where)
    elif _bits(ours) != _bits(theirs):
        yield f"{where} is {str(ours)[:60]!r} instead of {str(theirs)[:60]!r}"


def _bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def _names(items: list[Any]) -> list[Any]:
    return [getattr(item, "name", item) for item in items][:10]


def _unknown(message: Message) -> list[tuple[int, Any]]:
    return [(field.field_number, field.data) for field in UnknownFieldSet(message)]
