"""The documentation is true: its examples run, its links resolve, its generated page is up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from onnxcomp.cli import run
from onnxcomp.pipeline import Pipeline
from onnxcomp.report.schema import Report, Section
from tests.generate import Net

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "models", ROOT / "benchmarks")
    for path in folder.glob("*.md")
    if folder.is_dir()
)
EXAMPLES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The code blocks of a language, with the number of the line before each."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start(2)), found[2]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the examples name, as the current one; time is measured briefly."""
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", 32))
    x = net.add(x, net.conv(net.activation(net.conv(x, 32)), 32))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 10)
    net.model().save(tmp_path / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "calibration.npz",
        x=rng.standard_normal((64, 3, 8, 8)).astype(np.float32),
        labels=rng.integers(0, 10, 64),
    )
    monkeypatch.chdir(tmp_path)
    for name in ("_SECONDS_A_PASS", "_SECONDS_AT_END"):
        monkeypatch.setattr(f"onnxcomp.recorder.{name}", 0.05, raising=False)
    return tmp_path


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
@pytest.mark.usefixtures("desk")
def test_python_examples_run(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
@pytest.mark.usefixtures("desk")
def test_commands_of_the_examples_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, text in blocks(page, "sh"):
        for command in text.splitlines():
            if command.startswith("onnxcomp "):
                assert run(shlex.split(command, comments=True)[1:]) == 0, capsys.readouterr().err


def test_recipe_of_the_readme_is_one(desk: Path) -> None:
    recipe = desk / "recipe.toml"
    recipe.write_text(next(blocks(ROOT / "README.md", "toml"))[1], encoding="utf-8")
    assert str(Pipeline.parse(str(recipe))) == "prune(flops=0.3),quant(ranges='mse')"


def test_python_examples_are_found() -> None:
    counts = {page.name: len(list(blocks(page, "python"))) for page in EXAMPLES}
    assert counts["README.md"] >= 1
    assert counts["writing-a-pass.md"] >= 4
    assert counts["report.md"] >= 1


def test_published_pass_is_found(desk: Path) -> None:
    """The example package of writing-a-pass.md, as pip would lay it out."""
    page = ROOT / "docs" / "writing-a-pass.md"
    project = tomllib.loads(next(blocks(page, "toml"))[1])["project"]
    entries = project["entry-points"]["onnxcomp.passes"]
    module = next(iter(entries.values())).partition(":")[0]
    site = desk / "site"
    info = site / f"{module}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}\n" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[onnxcomp.passes]\n" + "".join(lines))
    (site / f"{module}.py").write_text(next(blocks(page, "python"))[1], encoding="utf-8")
    command = "from onnxcomp import Pipeline; print(Pipeline.parse('quant,round(bits=5)').scheduled())"
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", command], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fold,round(bits=5),quant"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page if not path else page.parent / path
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}, which has no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def report_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_report_page", ROOT / "docs" / "make_report_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report_page_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert committed == report_page().page(), "run python docs/make_report_page.py and commit docs/report.md"


def test_every_field_of_the_report_is_described() -> None:
    seen: list[type[Section]] = report_page()._classes(Report)
    assert Report in seen
    for section in seen:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no docstring"
