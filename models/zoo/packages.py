"""Download packages with their ordinary clients and unpack them once under the cache folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class FetchError(Exception):
    """A package cannot be obtained; the message says which one and what to do."""


def cache_root() -> Path:
    """Return the folder that holds everything fetched: $ONNXCOMP_CACHE or ~/.cache/onnxcomp."""
    return Path(os.environ.get("ONNXCOMP_CACHE") or Path.home() / ".cache" / "onnxcomp")


class Packages:
    """Unpacked packages, one folder each under ``<cache>/.packages``; present ones are not fetched again."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / ".packages"
        self.used: list[str] = []

    def pypi(self, name: str, version: str) -> Path:
        """Return the folder of an unpacked wheel (or source archive) from PyPI."""
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}"]
        return self._unpacked(f"pypi-{name}-{version}", command, _extract_archive)

    def npm(self, name: str, version: str) -> Path:
        """Return the ``package`` folder of an npm package."""
        key = "npm-" + name.replace("/", "-").lstrip("@") + "-" + version
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        return self._unpacked(key, command, _extract_archive) / "package"

    def debian(self, name: str) -> Path:
        """Return the root of an unpacked Debian package, in whatever version the local release offers."""
        return self._unpacked(f"debian-{name}", ["apt-get", "download", "--quiet", name], _extract_deb)

    def _unpacked(self, key: str, command: list[str], extract: Callable[[Path, Path], None]) -> Path:
        target = self.folder / key
        if key not in self.used:
            self.used.append(key)
        if target.is_dir():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        print(f"  downloading {key}", flush=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".partial-") as scratch:
            downloads, unpacked = Path(scratch, "downloads"), Path(scratch, "unpacked")
            downloads.mkdir()
            unpacked.mkdir()
            _run(command, downloads)
            for archive in sorted(downloads.iterdir()):
                extract(archive, unpacked)
            _rename_unless_present(unpacked, target)
        return target


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise FetchError(f"'{command[0]}' is needed to run '{' '.join(command)}', and it is not installed.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise FetchError(f"'{' '.join(command)}' failed: {' '.join(reason)}")


def _extract_archive(archive: Path, target: Path) -> None:
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(target)
    else:
        with tarfile.open(archive) as bundle:
            bundle.extractall(target, filter="data")


def _extract_deb(archive: Path, target: Path) -> None:
    _run(["dpkg", "-x", str(archive), str(target)], target)


def _rename_unless_present(source: Path, target: Path) -> None:
    """Move into place; a concurrent fetch of the same package may have won, which is just as good."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
