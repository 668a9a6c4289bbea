"""Shapes as they are when the model runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import SessionError
from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, create, run, with_outputs
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["observed"]

_PREFIX = "shape of "


def observed(model: Model, feeds: Feeds, names: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the main graph (constants apart), found by running it once unoptimized.

    Only shapes leave the run: no more tensors are alive at once than in any other. Where the model has values that are
    no tensors, all tensors are. So ``feeds`` should hold one sample.
    Sequences, maps and absent optionals have no shape and are left out.

    Args:
        model: any model that runs.
        feeds: one array for each input.
        names: only these tensors.

    Raises:
        InputError: the model does not run on these feeds.
    """
    wanted = _tensor_names(model) if names is None else list(dict.fromkeys(names))
    shown = with_outputs(model.skeleton(), wanted)
    names = [value.name for value in shown.proto.graph.output]
    try:
        found = run(create(_with_shapes(shown), optimize=False, shapes_first=True), feeds)
    except SessionError:  # a sequence has no shape
        values = run(create(shown, optimize=False), feeds)
        return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, np.ndarray)}
    return {name: tuple(map(int, found[_PREFIX + name])) for name in names}


def _with_shapes(model: Skeleton) -> Skeleton:
    """A model that returns the shapes of its outputs instead of them."""
    proto = model.copied()
    names = [value.name for value in proto.graph.output]
    del proto.graph.output[:]
    for name in names:
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [_PREFIX + name]))
        proto.graph.output.add(name=_PREFIX + name)
    return Skeleton(proto, model.payloads)


def _tensor_names(model: Model) -> list[str]:
    """Names of the inputs and of everything a node computes, in graph order."""
    names = [tensor.name for tensor in model.graph.inputs if not isinstance(tensor, gs.Constant)]
    names += [tensor.name for node in model.graph.nodes for tensor in node.outputs if tensor.name]
    return list(dict.fromkeys(names))
