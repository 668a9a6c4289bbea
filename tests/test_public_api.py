"""The public API is documented and typed, and modules depend on each other in one direction."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onnxcomp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxcomp"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
} | {f"onnxcomp.passes.{path.stem}": path for path in sorted((ROOT / "passes").glob("[!_]*.py"))}
MODULES = [name for name in SOURCES if name != "onnxcomp"]


# -- documented and typed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", onnxcomp.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(onnxcomp, name)
    assert value.__name__ == name
    assert len(inspect.getdoc(value) or "") > 20
    assert getattr(onnxcomp, name) is value


def test_the_package_lists_its_names_once_and_has_no_others() -> None:
    assert onnxcomp.__all__ == sorted(set(onnxcomp.__all__))
    assert set(onnxcomp._HOMES) == set(onnxcomp.__all__)
    with pytest.raises(AttributeError, match="module 'onnxcomp' has no attribute 'Model2'"):
        onnxcomp.Model2  # noqa: B018


def members(value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A function itself, or the public methods that a class defines or overrides."""
    if inspect.isfunction(value):
        yield value.__name__, value
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{value.__name__}.{name}", function


@pytest.mark.parametrize("name", onnxcomp.__all__)
def test_public_functions_are_documented_and_annotated(name: str) -> None:
    for qualified, function in members(getattr(onnxcomp, name)):
        assert inspect.getdoc(function), f"{qualified} has no docstring"
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, f"{qualified} does not say what it returns"
        for parameter in list(signature.parameters.values()):
            if parameter.name not in ("self", "cls"):
                assert parameter.annotation is not parameter.empty, f"{qualified}: {parameter.name} has no type"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_documented_and_lists_what_it_offers(module: str) -> None:
    loaded = importlib.import_module(module)
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    if SOURCES[module].name == "__init__.py":
        return
    assert ast.get_docstring(tree), "the module has no docstring"
    assert loaded.__all__ == sorted(set(loaded.__all__), key=_natural), "__all__ is not sorted"
    for name in loaded.__all__:
        value = getattr(loaded, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{name} has no docstring"


def _natural(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


# -- the direction of imports --------------------------------------------------------------------------------


def imports(module: str) -> set[str]:
    """Modules that the source imports, for types only or inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


FORBIDDEN = {
    "onnxcomp.passes": ["onnxcomp.passes", "onnxcomp.manager", "onnxcomp.compiler", "onnxcomp.registry"],
    "onnxcomp.graph": ["onnxcomp.passes", "onnxcomp.manager", "onnxcomp.compiler", "onnxcomp.report"],
    "onnxcomp.runtime": ["onnxcomp.passes", "onnxcomp.manager", "onnxcomp.compiler", "onnxcomp.report"],
    "onnxcomp.linalg": ["onnx", "onnx_graphsurgeon", "onnxruntime", "onnxcomp.graph", "onnxcomp.runtime"],
    "onnxcomp.manager": ["onnxcomp.passes", "onnxcomp.compiler", "onnxcomp.hooks"],
    "onnxcomp": ["onnxcomp.cli", "passes", "tests", "models"],
}


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_one_way(module: str) -> None:
    if module == "onnxcomp.__main__":  # it is the command
        return
    for package, forbidden in FORBIDDEN.items():
        if within(module, package):
            wrong = [name for name in imports(module) for bad in forbidden if within(name, bad)]
            assert not wrong, f"{module} imports {sorted(set(wrong))}"


def test_linear_algebra_stands_alone() -> None:
    for module in SOURCES:
        if within(module, "onnxcomp.linalg"):
            own = {name for name in imports(module) if within(name, "onnxcomp")}
            assert all(within(name, "onnxcomp.linalg") or within(name, "onnxcomp.progress") for name in own), module


def test_only_the_command_prints_and_exits() -> None:
    for module, path in SOURCES.items():
        if module in ("onnxcomp.cli", "onnxcomp.actions"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "exit", "quit", "sys.exit", "os._exit", "input"), f"{module}: {called}"


def test_the_sources_are_all_looked_at() -> None:
    for package in ("onnxcomp.passes", "onnxcomp.graph", "onnxcomp.runtime", "onnxcomp.linalg"):
        assert sum(within(module, package) for module in SOURCES) > 3
