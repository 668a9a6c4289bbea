"""Where the benchmarks run; as a command, prints it as JSON (the caller stays small, see process.py)."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from harness.results import Environment
from harness.zoo import ROOT
from onnxcomp.report.environment import describe_environment
from onnxcomp.runtime.target import Target

PACKAGES = (
    "onnxcomp",
    "onnx",
    "onnxruntime",
    "onnx-graphsurgeon",
    "numpy",
    "scipy",
    "onnxsim",
    "nncf",
    "amd-quark",
    "torch",
)


def environment() -> Environment:
    """This machine and the versions of every package that matters."""
    described = describe_environment(Target.host())
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    if commit := _commit():
        versions["onnxcomp"] += f" ({commit})"
    return Environment(
        cpu=described.cpu,
        isa=described.isa,
        cores=os.cpu_count() or 1,
        platform=described.platform,
        versions=versions,
    )


def _commit() -> str:
    """The commit that is checked out, marked when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    print(environment().model_dump_json())
