"""Which passes there are: the built-in ones and those that installed packages add."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract

from onnxcomp.errors import UsageError
from onnxcomp.model import one_line
from onnxcomp.passbase import Pass, Stage, suggest

__all__ = ["ENTRY_POINT_GROUP", "pass_class", "pass_names"]

ENTRY_POINT_GROUP = "onnxcomp.passes"

# Modules are named, not imported: a command that only prints help must not load SciPy.
_BUILT_IN = {
    "equalize": "onnxcomp.passes.equalize:Equalize",
    "factorize": "onnxcomp.passes.factorize:Factorize",
    "fold": "onnxcomp.passes.fold:Fold",
    "prune": "onnxcomp.passes.prune:Prune",
    "quant": "onnxcomp.passes.quant:Quant",
    "recover": "onnxcomp.passes.recover:Recover",
    "reorder": "onnxcomp.passes.reorder:Reorder",
    "share": "onnxcomp.passes.share:Share",
}


def pass_names() -> list[str]:
    """Names of all passes, built-in and installed, sorted."""
    return sorted({*_BUILT_IN, *_plug_ins()})


def pass_class(name: str) -> type[Pass]:
    """The class of a pass, imported on demand.

    Raises:
        UsageError: no pass has this name, two packages claim it, or its package does not load.
    """
    plug_in = _plug_ins().get(name)
    if plug_in is not None:
        return _load_plug_in(name, plug_in)
    if name not in _BUILT_IN:
        raise UsageError(f"there is no pass {name!r}; {suggest(name, pass_names(), 'the passes are')}")
    module, _, attribute = _BUILT_IN[name].partition(":")
    loaded: type[Pass] = getattr(import_module(module), attribute)
    return loaded


@cache
def _plug_ins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        other = found.get(entry.name)
        # The same distribution may be visible twice (an editable install beside its source).
        if entry.name in _BUILT_IN or (other is not None and other.value != entry.value):
            claimants = f"{_package(entry)} and {_package(other) if other else 'onnxcomp itself'}"
            raise UsageError(f"two packages define a pass {entry.name!r}: {claimants}; uninstall one of them")
        found[entry.name] = entry
    return found


def _load_plug_in(name: str, entry: EntryPoint) -> type[Pass]:
    try:
        loaded = entry.load()
    except Exception as error:  # a plug-in may fail in any way while it is imported
        raise UsageError(f"pass {name!r} of {_package(entry)} does not load: {one_line(error)}") from error
    where = f"{entry.value} of {_package(entry)}"
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)) or getattr(loaded, "name", None) != name:
        raise UsageError(f"{where} is not an onnxcomp.Pass named {name!r}; correct its entry point or its name")
    if isabstract(loaded) or not isinstance(getattr(loaded, "stage", None), Stage):
        raise UsageError(f"{where} is not a whole pass: it needs a stage and a method run")
    return loaded


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
