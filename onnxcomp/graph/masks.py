"""Zeros that were put into weights on purpose, and that are to stay."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.masked import kept_weights

__all__ = ["kept_mask"]

Array = np.ndarray[Any, Any]


def kept_mask(layer: WeightedLayer) -> Array | None:
    """Which weights are not zero, of the shape of ``layer.matrix()``; None where hardly any are zero.

    The mask of a sparse layer is read from its weights, so it survives the file, and models that were made sparse
    elsewhere are respected as well. Fewer than one zero in eight weights is no mask.

    Args:
        layer: whose weight is floating-point, of a kind other than ``other``.
    """
    return kept_weights(layer.matrix())
