"""Shapes as they are when the model runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, create, run, with_outputs

__all__ = ["observed"]


def observed(model: Model, feeds: Feeds, names: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the main graph (constants apart), found by running it once unoptimized.

    All of them are alive at once during that run, so ``feeds`` should hold one sample.
    Sequences, maps and absent optionals have no shape and are left out.

    Args:
        model: any model that runs.
        feeds: one array for each input.
        names: only these tensors.

    Raises:
        InputError: the model does not run on these feeds.
    """
    wanted = _tensor_names(model) if names is None else list(dict.fromkeys(names))
    session = create(with_outputs(model.skeleton(), wanted), optimize=False)
    values = run(session, feeds)
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, np.ndarray)}


def _tensor_names(model: Model) -> list[str]:
    """Names of the inputs and of everything a node computes, in graph order."""
    names = [tensor.name for tensor in model.graph.inputs if not isinstance(tensor, gs.Constant)]
    names += [tensor.name for node in model.graph.nodes for tensor in node.outputs if tensor.name]
    return list(dict.fromkeys(names))
