"""What a report says about where it was made and about the file it started from."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx

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
    """The model as it was loaded; one in memory is described by the bytes that it would be saved as."""
    digest = hashlib.sha256()
    if model.path is not None and model.path.is_file():
        size = 0
        for path in _files(model.path):
            size += path.stat().st_size
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    else:
        skeleton = model.skeleton()
        size = skeleton.size
        for chunk in skeleton.chunks():
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


def _files(path: Path) -> Iterator[Path]:
    """The model's file and its external data files, by name."""
    yield path
    proto = onnx.load_model(path, load_external_data=False)
    places = {
        entry.value
        for tensor in onnx.external_data_helper._get_all_tensors(proto)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        yield path.parent / place


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
