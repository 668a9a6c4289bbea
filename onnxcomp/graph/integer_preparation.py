"""What a graph needs before layers of it are put on integers: exact rewrites that would not pay in float."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcomp.graph.absorb import clip_hard_sigmoids
from onnxcomp.graph.activations import split_hard_swishes
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.upsampling import name_all_axes
from onnxcomp.model import Model

__all__ = ["prepare"]


def prepare(model: Model, layers: Iterable[WeightedLayer]) -> None:
    """Give the model the operators that integer plans know.

    Args:
        model: edited.
        layers: that are to run on integers, and may change for it.
    """
    split_hard_swishes(model.graph)
    clip_hard_sigmoids(model.graph, layers)
    name_all_axes(model)
