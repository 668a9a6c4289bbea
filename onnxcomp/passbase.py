"""What a pass is."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onnxcomp.errors import UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from onnxcomp.context import Context
    from onnxcomp.model import Model

__all__ = ["Pass", "Stage"]


class Stage(IntEnum):
    """Where a legal order puts a pass: each stage works on what the earlier ones leave.

    FOLD: exact simplification. EQUALIZE: exact rescaling. PRUNE: weights or channels go. FACTORIZE: a weight
    becomes a product of smaller ones. REORDER: exact permutation. SHARE: weights take few distinct values.
    QUANT: weights and activations take few bits. RECOVER: accuracy is won back.
    """

    FOLD = 10
    EQUALIZE = 20
    PRUNE = 30
    FACTORIZE = 40
    REORDER = 50
    SHARE = 60
    QUANT = 70
    RECOVER = 80


class Pass(BaseModel, ABC):
    """A transformation of a model; its fields are its options, its docstring is its manual page.

    A pass replaces weight arrays and never writes into one, decides about every weighted layer it finds
    (``ctx.act`` or ``ctx.skip``), imports no other pass and keeps no state. Two passes are equal when they
    are of one class with equal options.

    Class attributes:
        name: as written in a pipeline.
        stage: its place in a legal order.
        exact: it promises the same outputs to float tolerance; checked after every run.
        requires: names of passes that run before it; those that the user did not name are added, with their
            default options.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str]
    stage: ClassVar[Stage]
    exact: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> None:
        """Edit ``model`` in place.

        Raises:
            PassError: it cannot do its work here; the model is rolled back by the caller.
        """

    @classmethod
    def with_options(cls, options: dict[str, Any]) -> Pass:
        """The pass with these options.

        Raises:
            UsageError: an unknown option, or a value out of range.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise UsageError(_explain(cls, error.errors()[0])) from None

    def options(self) -> dict[str, Any]:
        """All options with their values, as plain data."""
        return self.model_dump(mode="json")

    def __str__(self) -> str:
        """As written in a pipeline: only options that differ from their defaults."""
        default = type(self).model_fields
        changed = [
            f"{name}={value!r}"
            for name, value in self.model_dump().items()
            if value != default[name].get_default(call_default_factory=True)
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def _explain(cls: type[Pass], error: ErrorDetails) -> str:
    """One sentence: the pass, the option, the value, what is allowed."""
    option = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"{cls.name} has no option {option!r}; {suggest(option, list(cls.model_fields), 'its options are')}"
    if not option:
        return f"{cls.name}: {error['msg'].removeprefix('Value error, ')}"
    field = cls.model_fields[option]
    limits = [str(limit) for limit in field.metadata if not callable(limit)]
    allowed = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    meaning = f" ({field.description})" if field.description and limits else ""
    return f"{cls.name}: option {option}={error['input']!r} is not allowed: {allowed}{meaning}"


def suggest(name: str, known: list[str], otherwise: str) -> str:
    """``did you mean x?`` for a near miss, else the list."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(sorted(known)) or 'none'}"
