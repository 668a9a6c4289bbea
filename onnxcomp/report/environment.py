"""What a report says about where it was made and about the file it started from."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from onnxcomp.model import Model
from onnxcomp.report.schema import Environment, Input
from onnxcomp.runtime.target import Target, host_isa
from onnxcomp.version import installed_version

__all__ = ["describe_environment", "describe_input", "peak_memory"]


def describe_environment(target: Target, command: Sequence[str] = ()) -> Environment:
    """This machine, these versions, and the command line that was given, if any."""
    return Environment(
        onnxcomp=installed_version(),
        onnx=version("onnx"),
        onnxruntime=version("onnxruntime"),
        numpy=version("numpy"),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_name(),
        isa=sorted(host_isa()),
        target=target.describe(),
        command=list(command),
    )


def describe_input(model: Model, parameters: int, flops: int | None) -> Input:
    """The model as it was loaded, with its external data; one in memory is described by the bytes of its one file."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(model):
        size += len(chunk)
        digest.update(chunk)
    return Input(
        path=None if model.path is None else str(model.path),
        bytes=size,
        sha256=digest.hexdigest(),
        parameters=parameters,
        flops=flops,
        opset=model.opset,
        ir_version=model.graph.ir_version,
    )


def peak_memory() -> int | None:
    """Most bytes of memory that this process has held at once; None where the system does not tell."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith("VmHWM:"):  # getrusage counts what the parent process held before exec as well
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _chunks(model: Model) -> Iterator[bytes | memoryview]:
    """The bytes of the model's files, or those that there would be."""
    if not model.files or not all(path.is_file() for path in model.files):
        yield from model.skeleton().chunks()
        return
    for path in model.files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                yield block


def _cpu_name() -> str:
    """Linux tells it in /proc/cpuinfo at once; elsewhere the platform's own answer has to do."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
