"""onnxcomp, the compression compiler for ONNX.

The names below are the public API; everything else may change between versions.
They are imported on first use, so that ``onnxcomp --help`` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcomp.compiler import Result, compress
    from onnxcomp.container.packing import pack
    from onnxcomp.container.restoring import restore
    from onnxcomp.context import Context, Rejected
    from onnxcomp.data import Dataset
    from onnxcomp.errors import OnnxcompError, PassError
    from onnxcomp.graph.layers import weighted_layers
    from onnxcomp.manager import PassManager
    from onnxcomp.model import Model
    from onnxcomp.passbase import Pass, Stage
    from onnxcomp.pipeline import Pipeline
    from onnxcomp.runtime.session import load_session
    from onnxcomp.runtime.target import Target

__all__ = [
    "Context",
    "Dataset",
    "Model",
    "OnnxcompError",
    "Pass",
    "PassError",
    "PassManager",
    "Pipeline",
    "Rejected",
    "Result",
    "Stage",
    "Target",
    "compress",
    "load_session",
    "pack",
    "restore",
    "weighted_layers",
]

_HOMES = {
    "Context": "onnxcomp.context",
    "Dataset": "onnxcomp.data",
    "Model": "onnxcomp.model",
    "OnnxcompError": "onnxcomp.errors",
    "Pass": "onnxcomp.passbase",
    "PassError": "onnxcomp.errors",
    "PassManager": "onnxcomp.manager",
    "Pipeline": "onnxcomp.pipeline",
    "Rejected": "onnxcomp.context",
    "Result": "onnxcomp.compiler",
    "Stage": "onnxcomp.passbase",
    "Target": "onnxcomp.runtime.target",
    "compress": "onnxcomp.compiler",
    "load_session": "onnxcomp.runtime.session",
    "pack": "onnxcomp.container.packing",
    "restore": "onnxcomp.container.restoring",
    "weighted_layers": "onnxcomp.graph.layers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
