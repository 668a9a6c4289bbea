"""Passes of other packages: a real one, installed with pip, used by name; and what is wrong with others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx
import pytest

from onnxcomp import Pass, registry
from onnxcomp.errors import UsageError
from tests import breaking
from tests.generate import Net

PLUGIN = Path(__file__).parent / "plugin"


def install(source: Path, target: Path) -> None:
    """As ``pip install`` would, without a network."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the plug-in package is installed in."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)  # a build leaves files beside its sources
    install(source, target)
    return target


def command(*arguments: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    """Run ``onnxcomp`` with a folder of packages before all others."""
    environment = {**os.environ, "COLUMNS": "200", **({} if path is None else {"PYTHONPATH": str(path)})}
    code = "import sys; from onnxcomp.cli import main; sys.argv[0] = 'onnxcomp'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_installed_pass_is_listed(installed: Path) -> None:
    listed = command("--passes", path=installed)
    assert listed.returncode == 0, listed.stderr
    row = next(line for line in listed.stdout.splitlines() if line.split()[:1] == ["round"])
    assert "Round every weight to a few binary digits." in row
    assert all(name in listed.stdout for name in ("fold", "prune", "quant", "reorder"))


def test_without_its_package_there_is_no_such_pass() -> None:
    failed = command("--passes", "round", path=None)
    assert failed.returncode == 2
    assert "there is no pass 'round'" in failed.stderr


def test_an_installed_pass_has_a_manual_page(installed: Path) -> None:
    page = command("--passes", "round", path=installed)
    assert page.returncode == 0, page.stderr
    assert "Layers whose weights are already round are left alone." in page.stdout
    assert "binary digits of the fraction that are kept" in page.stdout


def test_an_installed_pass_runs_from_pipeline_text(installed: Path, tmp_path: Path) -> None:
    net = Net(shape=(3, 6, 6))
    net.matmul(net.flatten(net.node("GlobalAveragePool", net.conv("x", 8)), positions=1), 5)
    path, made = tmp_path / "net.onnx", tmp_path / "out.onnx"
    path.write_bytes(net.proto().SerializeToString())
    done = command(str(path), "-p", "round(digits=6),fold", "-o", str(made), path=installed)
    assert done.returncode == 0, done.stderr
    weights = next(onnx.numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer if len(t.dims) == 4)
    assert not (weights.view("uint32") & 0x3FFFF).any(), "23 - 5 bits of the fraction are zero"
    refused = command(str(path), "-p", "round(digits=24)", path=installed)
    assert refused.returncode == 2
    assert "round: option digits=24 is not allowed" in refused.stderr


def test_a_name_that_a_built_in_pass_has_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(PLUGIN, source)
    project = (source / "pyproject.toml").read_text()
    (source / "pyproject.toml").write_text(project.replace("round =", "fold =").replace("onnxcomp-round", "clashing"))
    install(source, tmp_path / "site")
    failed = command("--passes", path=tmp_path / "site")
    assert failed.returncode == 2
    assert failed.stderr == (
        "onnxcomp: error: two packages define a pass 'fold': clashing and onnxcomp itself; uninstall one of them\n"
    )


# -- entry points that are wrong, one by one -----------------------------------------------------------------


class NoStage(Pass):
    name = "nostage"

    def run(self, *_: object) -> None:
        """Never called."""


class NoRun(Pass):
    name, stage = "norun", breaking.Scale.stage


not_a_class = breaking.Scale()


def register(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str]) -> None:
    points = [EntryPoint(name, place, registry.ENTRY_POINT_GROUP) for name, place in entries]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group else [])


@pytest.fixture(autouse=True)
def _forget_plug_ins() -> None:
    registry._plug_ins.cache_clear()


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("scale", "tests.gone:Scale", "pass 'scale' of tests.gone:Scale does not load: No module named 'tests.gone'"),
        ("scale", "tests.breaking:Gone", "does not load: module 'tests.breaking' has no attribute 'Gone'"),
        ("other", "tests.breaking:Scale", "is not an onnxcomp.Pass named 'other'; correct its entry point"),
        ("scale", "tests.breaking:BREAKING", "is not an onnxcomp.Pass named 'scale'"),
        ("scale", "tests.test_plugin:not_a_class", "is not an onnxcomp.Pass named 'scale'"),
        ("nostage", "tests.test_plugin:NoStage", "is not a whole pass: it needs a stage and a method run"),
        ("norun", "tests.test_plugin:NoRun", "is not a whole pass: it needs a stage and a method run"),
    ],
)
def test_a_package_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, place: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, "tests.test_plugin", sys.modules[__name__])
    register(monkeypatch, (name, place))
    with pytest.raises(UsageError) as caught:
        registry.pass_class(name)
    assert message in str(caught.value)


def test_two_packages_with_one_name_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("scale", "tests.breaking:Scale"), ("scale", "other:Scale"))
    with pytest.raises(UsageError, match=r"two packages define .*: other:Scale and tests\.breaking:Scale"):
        registry.pass_names()


def test_one_package_seen_twice_is_one_package(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("scale", "tests.breaking:Scale"), ("scale", "tests.breaking:Scale"))
    assert registry.pass_class("scale") is breaking.Scale
    assert "scale" in registry.pass_names()
