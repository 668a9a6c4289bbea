"""Calls of model-local functions replaced by what the functions do."""

from __future__ import annotations

import onnx
import onnx.inliner

from onnxcomp.errors import PassError
from onnxcomp.model import Model, one_line

__all__ = ["inline_functions"]


def inline_functions(model: Model) -> bool:
    """Inline all model-local functions of ``model``, in place, by onnx's own inliner; says whether there were any.

    A function that is called several times leaves as many copies of its weights.

    Raises:
        PassError: onnx cannot inline them, or the model is over the 2 GB that its inliner can take.
    """
    if not model.graph.functions:
        return False
    try:
        inlined = Model.from_proto(onnx.inliner.inline_local_functions(model.proto()))
    except Exception as error:  # the binding raises what C++ throws
        raise PassError(f"the model's functions cannot be inlined: {one_line(error)}") from None
    # The graph is the same object for the model's whole life.
    live = vars(model.graph)
    live.clear()
    live.update(vars(inlined.graph))
    return True
