"""What is installed: the wheel's contents, whether from a checkout or from an sdist, and what importing costs."""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.npz", "*.onnx")


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a wheel or an sdist with the build backend alone, as it needs no network."""
    target.mkdir()
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("checkout") / "onnxcomp"
    shutil.copytree(ROOT, copied, symlinks=True, ignore=LEFT_OUT)
    return copied


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="module", params=["checkout", "sdist", "checkout without symbolic links"])
def wheel(
    request: pytest.FixtureRequest, checkout: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    if request.param == "sdist":
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (source,) = (folder / "unpacked").iterdir()
    else:
        shutil.copytree(checkout, source, symlinks=True)
    if request.param == "checkout without symbolic links":  # git on Windows writes where a link points, as text
        link = source / "onnxcomp" / "passes"
        link.unlink()
        link.write_text("../passes")
    return zipfile.ZipFile(build("wheel", source, folder / "dist"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "onnxcomp"
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*/*.py", "recipes/*.toml", "py.typed")
        for path in package.glob(pattern)
        if path.parent.name != "passes"
    }
    expected |= {f"onnxcomp/passes/{path.name}" for path in (ROOT / "passes").glob("*.py")}
    assert names == expected


def test_every_folder_of_the_package_is_listed() -> None:
    """An unlisted sub-package would be missing from the wheel without a word."""
    folders = {path.parent for path in (ROOT / "onnxcomp").rglob("*.py")} | {ROOT / "onnxcomp" / "passes"}
    listed = {ROOT.joinpath(*name.split(".")) for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert folders == listed
    assert not [path for path in (ROOT / "passes").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(_metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"onnxcomp": "onnxcomp.cli:main"}


def test_the_wheel_describes_itself(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_string(_metadata(wheel, "METADATA"))
    project = PROJECT["project"]
    assert metadata["Name"] == "onnxcomp"
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == project["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert sorted(required) == sorted(project["dependencies"])
    assert "Apache License" in _metadata(wheel, "licenses/LICENSE")


def _metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (folder,) = {entry.split("/")[0] for entry in wheel.namelist() if ".dist-info/" in entry}
    return wheel.read(f"{folder}/{name}").decode()


def test_the_version_is_one() -> None:
    code = "from onnxcomp.version import installed_version; print(installed_version())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() in (PROJECT["project"]["version"], "unknown")


@pytest.mark.parametrize(
    "code",
    [
        "import onnxcomp",
        "import onnxcomp; onnxcomp.OnnxcompError",
        "from onnxcomp.cli import run; assert run(['--help']) == 0",
        "from onnxcomp.cli import run; assert run(['--version']) == 0",
        "from onnxcomp.cli import run; assert run(['--no-such-option']) == 2",
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(code: str) -> None:
    heavy = ["numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "scipy"]
    check = f"import sys; print(*(name for name in {heavy} if name in sys.modules), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1:] == [""], "imported"
