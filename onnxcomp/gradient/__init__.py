"""Reverse-mode differentiation of ONNX models: the backward graph as plain ONNX operators.

``differentiate`` is the way in. Rules of the operators stand in the modules beside it, each in a table that importing
this package fills.
"""

from onnxcomp.gradient import (  # noqa: F401 - they register rules
    activations,
    choosing,
    convolution,
    elementwise,
    moving,
    normalization,
    pooling,
    products,
    quantizing,
    reductions,
    resizing,
)
from onnxcomp.gradient.backward import Derivative, differentiate
from onnxcomp.gradient.objective import Term

__all__ = ["Derivative", "Term", "differentiate"]
