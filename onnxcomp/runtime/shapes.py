"""Shapes as they are when the model runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.errors import SessionError
from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, create, run, with_outputs

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
    proto = with_outputs(model.proto(), wanted)
    outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in proto.graph.output]
    try:
        session = create(_with_shapes(proto), optimize=False, shapes_first=True)
    except SessionError:  # a sequence has no shape
        del proto.graph.output[:]
        proto.graph.output.extend(outputs)
        values = run(create(with_outputs(proto, wanted), optimize=False), feeds)
        return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, np.ndarray)}
    found = run(session, feeds)
    return {value.name: tuple(map(int, found[_PREFIX + value.name])) for value in outputs}


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same message, changed: instead of its outputs it returns their shapes."""
    names = [value.name for value in proto.graph.output]
    del proto.graph.output[:]
    for name in names:
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [_PREFIX + name]))
        proto.graph.output.add(name=_PREFIX + name)
    return proto


def _tensor_names(model: Model) -> list[str]:
    """Names of the inputs and of everything a node computes, in graph order."""
    names = [tensor.name for tensor in model.graph.inputs if not isinstance(tensor, gs.Constant)]
    names += [tensor.name for node in model.graph.nodes for tensor in node.outputs if tensor.name]
    return list(dict.fromkeys(names))
