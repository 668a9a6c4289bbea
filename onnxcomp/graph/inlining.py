"""Calls of model-local functions replaced by what the functions do."""

from __future__ import annotations

import onnx
import onnx.inliner

from onnxcomp.errors import PassError
from onnxcomp.model import Model, one_line
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["inline_functions"]


def inline_functions(model: Model) -> bool:
    """Inline all model-local functions of ``model``, in place, by onnx's own inliner; says whether there were any.

    A function that is called several times leaves as many copies of its constants; larger weights they share.

    Raises:
        PassError: onnx cannot inline them.
    """
    if not model.graph.functions:
        return False
    skeleton = model.skeleton()  # the inliner copies references like any tensor
    try:
        inlined = onnx.inliner.inline_local_functions(skeleton.proto)
        model.become(Skeleton(inlined, skeleton.payloads))
    except Exception as error:  # the binding raises what C++ throws
        raise PassError(f"the model's functions cannot be inlined: {one_line(error)}") from None
    return True
