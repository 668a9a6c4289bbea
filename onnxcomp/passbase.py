"""What a pass is."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from onnxcomp.errors import UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from onnxcomp.context import Context
    from onnxcomp.data import Dataset
    from onnxcomp.model import Model
    from onnxcomp.runtime.effort import Effort
    from onnxcomp.runtime.target import Target

__all__ = ["Pass", "Stage", "because"]


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}  # pydantic's names for limits
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


class Stage(IntEnum):
    """Where a legal order puts a pass: each stage works on what the earlier ones leave.

    FOLD: exact simplification. PRUNE: weights or channels go. FACTORIZE: a weight becomes a product of smaller
    ones. REORDER: permutation, and tiles that go. EQUALIZE: exact rescaling. SHARE: weights take few distinct values.
    QUANT: weights and activations take few bits. RECOVER: accuracy is won back.
    """

    FOLD = 10
    PRUNE = 30
    FACTORIZE = 40
    REORDER = 50
    EQUALIZE = 55
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

    @property
    def keeps_outputs(self) -> bool:
        """Whether it promises with these options what ``exact`` says of the pass."""
        return self.exact

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> None:
        """Edit ``model`` in place.

        Raises:
            PassError: it cannot do its work here; the model is rolled back by the caller.
        """

    def prospect(self, model: Model, shapes: Mapping[str, tuple[int, ...]], target: Target) -> str:  # noqa: ARG002
        """What it could do to this model, in a sentence, without doing it; empty when it cannot tell.

        Args:
            model: as the passes that it requires leave it; not to be changed.
            shapes: of its tensors in a run of one sample.
            target: the machine the result is for.
        """
        return ""

    def effort(self, model: Model, dataset: Dataset | None) -> Effort | None:  # noqa: ARG002
        """About how long it will work and how much memory it takes; None for next to nothing, or if it cannot tell.

        Args:
            model: as it is before the first pass; not to be changed.
            dataset: the calibration samples, or None.

        Raises:
            InputError: the model does not run on the samples.
        """
        return None

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


def because(reasons: Iterable[str], most: int = 1) -> str:
    """The commonest reasons why a pass leaves things alone, as the end of a sentence; empty without any."""
    counted = Counter(reasons).most_common()
    parts = [f"{number} not: {reason}" for reason, number in counted[:most]]
    if rest := sum(number for _, number in counted[most:]):
        parts.append(f"{rest} not for other reasons")
    return "".join(f"; {part}" for part in parts)


def _explain(cls: type[Pass], error: ErrorDetails) -> str:
    """One sentence: the pass, the option, the value, what is allowed."""
    option = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"{cls.name} has no option {option!r}; {suggest(option, list(cls.model_fields), 'its options are')}"
    if not option:
        return f"{cls.name}: {error['msg'].removeprefix('Value error, ')}"
    field = cls.model_fields[option]
    limits = _limits(field.metadata)
    allowed = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if limits and error["type"] in _OUT_OF_RANGE:
        allowed = f"it must be {limits}"
    meaning = f" ({field.description})" if field.description and limits else ""
    return f"{cls.name}: option {option}={error['input']!r} is not allowed: {allowed}{meaning}"


def _limits(metadata: list[Any]) -> str:
    """The range of an option: ``> 0 and < 1``."""
    return " and ".join(
        f"{sign} {getattr(limit, kind)}"
        for limit in metadata
        for kind, sign in _SIGNS.items()
        if getattr(limit, kind, None) is not None
    )


def suggest(name: str, known: list[str], otherwise: str) -> str:
    """``did you mean x?`` for a near miss, else the list."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(sorted(known)) or 'none'}"
