"""A pipeline: its text, its passes, their legal order.

Text is a list of Python calls with literal options: ``prune(flops=0.3), quant``.
A recipe is a TOML file of ``[[pass]]`` tables, named by its path or, for those that come with onnxcomp, its name.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError
from onnxcomp.passbase import Pass
from onnxcomp.registry import pass_class, pass_names

__all__ = ["Pipeline", "recipe_names"]


class Pipeline:
    """Passes in an order, at least one.

    ``Pipeline.parse(str(pipeline)) == pipeline`` holds for every pipeline.

    Raises:
        UsageError: there are none.
    """

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)
        if not self.passes:
            raise UsageError(f"the pipeline is empty; name passes, separated by commas: {', '.join(pass_names())}")

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline that ``text`` spells out, or the recipe that it names.

        Raises:
            UsageError: bad syntax, an unknown pass or option, a value out of range, or a recipe that cannot be read.
        """
        stripped = text.strip()
        if stripped.endswith(".toml"):
            return cls(_read_recipe(Path(stripped)))
        if stripped in recipe_names():
            return cls(_parse_recipe(_recipe_text(stripped), f"recipe {stripped!r}"))
        return cls(_parse_call(call, text) for call in _calls(text))

    def scheduled(self, keep_order: bool = False) -> Pipeline:
        """The passes in a legal order, with those that they require.

        Args:
            keep_order: take the order as it stands and add nothing.

        Raises:
            UsageError: ``keep_order`` and the order is not legal.
        """
        if keep_order:
            self._check_order()
            return self
        passes = list(self.passes)
        names = {step.name for step in passes}
        queue = list(passes)
        while queue:
            for required in queue.pop(0).requires:
                if required not in names:
                    names.add(required)
                    added = pass_class(required)()
                    # In front: within its stage, a requirement runs before what requires it.
                    passes.insert(0, added)
                    queue.append(added)
        return Pipeline(sorted(passes, key=lambda step: step.stage))

    def _check_order(self) -> None:
        for earlier, later in zip(self.passes, self.passes[1:], strict=False):
            if later.stage < earlier.stage:
                legal = ",".join(str(step) for step in sorted(self.passes, key=lambda step: step.stage))
                raise UsageError(
                    f"{later.name} cannot follow {earlier.name}: it works on what a model is before the stage "
                    f"{earlier.stage.name.lower()}; write {legal}, or drop --keep-order"
                )

    def __str__(self) -> str:
        return ",".join(str(step) for step in self.passes)

    def __repr__(self) -> str:
        return f"Pipeline.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(str(self))


def recipe_names() -> list[str]:
    """Names of the recipes that come with onnxcomp."""
    entries = files("onnxcomp.recipes").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


# -- text --------------------------------------------------------------------------------------------------


def _calls(text: str) -> list[ast.expr]:
    try:
        tree = ast.parse(f"[{text}\n]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        tree = ast.Constant(None)
    if not isinstance(tree, ast.List):
        raise UsageError(
            f"the pipeline {text!r} cannot be read; write it like prune(flops=0.3),quant, "
            f"or name a recipe: {', '.join(recipe_names())}"
        )
    return tree.elts


def _parse_call(call: ast.expr, text: str) -> Pass:
    if isinstance(call, ast.Name):
        return pass_class(call.id).with_options({})
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise UsageError(
            f"{ast.unparse(call)!r} in the pipeline {text!r} is no pass; write it like prune(flops=0.3),quant, "
            f"or name a recipe: {', '.join(recipe_names())}"
        )
    name = call.func.id
    cls = pass_class(name)
    if call.args:
        raise UsageError(f"{name}: options are named, as in {name}({next(iter(cls.model_fields), 'option')}=…)")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in options:
            raise UsageError(f"{name}: an option is given twice or without a name in {ast.unparse(call)!r}")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, MemoryError, RecursionError):
            value = ast.unparse(keyword.value)
            raise UsageError(f"{name}: option {keyword.arg}={value} is no number, text, list or boolean") from None
    return cls.with_options(options)


# -- recipes -----------------------------------------------------------------------------------------------


def _recipe_text(name: str) -> str:
    return (files("onnxcomp.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def _read_recipe(path: Path) -> list[Pass]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path}: the recipe cannot be read: {reason}") from None
    return _parse_recipe(text, str(path))


def _parse_recipe(text: str, where: str) -> list[Pass]:
    try:
        tables = tomllib.loads(text).get("pass")
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: is no TOML: {error}") from None
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where}: holds no [[pass]] table; each pass is one, with its name and options")
    passes = []
    for table in tables:
        options = dict(table)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise UsageError(f"{where}: a [[pass]] table has no name")
        try:
            passes.append(pass_class(name).with_options(options))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    return passes
