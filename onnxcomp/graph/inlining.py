"""Calls of model-local functions replaced by what the functions do."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner

from onnxcomp.errors import PassError
from onnxcomp.model import Model, one_line
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["inline_functions"]


def inline_functions(model: Model) -> list[str]:
    """Inline the model-local functions of ``model``, in place, by onnx's own inliner.

    A function that is called several times leaves as many copies of its constants; larger weights they share. One that
    imports another version of a domain than the model stays: its operators would mean something else there.

    Returns:
        why functions stay, a sentence each.

    Raises:
        PassError: onnx cannot inline them.
    """
    if not model.graph.functions:
        return []
    skeleton = model.skeleton()  # the inliner copies references like any tensor
    proto = skeleton.proto
    try:
        _import_domains(proto)
        model.become(Skeleton(onnx.inliner.inline_local_functions(proto), skeleton.payloads))
    except Exception as error:  # the binding raises what C++ throws
        raise PassError(f"the model's functions cannot be inlined: {one_line(error)}") from None
    versions = _versions(proto.opset_import)
    return [
        f"{function.domain}.{function.name} is not inlined, for it imports version {version} of "
        f"{domain or 'the standard operators'} and the model version {versions[domain]}"
        for function in proto.functions
        for domain, version in _versions(function.opset_import).items()
        if versions[domain] != version
    ]


def _import_domains(proto: onnx.ModelProto) -> None:
    """Let the model import what its functions do: it will hold their nodes."""
    for function in proto.functions:
        known = _versions(proto.opset_import)
        for domain, version in _versions(function.opset_import).items():
            if domain not in known:
                proto.opset_import.append(onnx.helper.make_opsetid(domain, version))


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """By domain, the standard one under its short name."""
    return {"" if entry.domain == "ai.onnx" else entry.domain: int(entry.version) for entry in imports}
