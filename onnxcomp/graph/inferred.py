"""Types and shapes that follow from the declared graph inputs, whatever the file claims of other tensors.

Exporters and editors leave stale shapes behind (a batch of 1 after the input was made dynamic), so neither
``value_info`` nor the declared output shapes are believed here. ONNX Runtime refuses feeds that contradict a
declared input, which makes what is inferred from inputs alone safe to build on.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.model import Model

__all__ = ["TensorType", "infer_types", "infer_types_of_bodies", "tensor_type"]

# Larger initializers hold weights, never shapes: inference needs their type only.
_SHAPE_ELEMENTS = 1024


@dataclass(frozen=True)
class TensorType:
    """Element type (``onnx.TensorProto`` number) and dimensions, None where only a run knows."""

    element: int
    shape: tuple[int | None, ...] | None

    @property
    def static(self) -> tuple[int, ...] | None:
        """The shape when every dimension is known."""
        if self.shape is None or any(dim is None for dim in self.shape):
            return None
        return tuple(dim for dim in self.shape if dim is not None)


def infer_types(model: Model) -> dict[str, TensorType]:
    """Types of the tensors of the main graph that shape inference can tell; empty when it fails."""
    inferred = _inferred(model)
    return {} if inferred is None else _known(inferred)


def infer_types_of_bodies(model: Model) -> dict[int, Mapping[str, TensorType | None]]:
    """For the main graph and each body, by ``id``: types of the tensors that its nodes see under these names.

    A name of a body hides the same name of the graphs around it, whether or not inference can tell its type.
    Empty when inference fails.
    """
    inferred = _inferred(model)
    return {} if inferred is None else dict(_scopes(model.graph, inferred, ChainMap()))


def _inferred(model: Model) -> onnx.GraphProto | None:
    proto = model.skeleton().weights_as_inputs()
    _forget_shapes(proto.graph)
    _lighten(proto.graph)
    for data_propagation in (True, False):
        try:
            return onnx.shape_inference.infer_shapes(proto, data_prop=data_propagation).graph
        except Exception:
            continue
    return None


def _known(graph: onnx.GraphProto) -> dict[str, TensorType]:
    known = _types((*graph.input, *graph.value_info, *graph.output))
    known.update({t.name: TensorType(t.data_type, tuple(t.dims)) for t in graph.initializer})
    return known


def _scopes(
    graph: gs.Graph, proto: onnx.GraphProto, outer: ChainMap[str, TensorType | None]
) -> Iterator[tuple[int, Mapping[str, TensorType | None]]]:
    """The same walk through the graph and through what it was exported to."""
    own: dict[str, TensorType | None] = dict.fromkeys(name for node in proto.node for name in node.output)
    own.update(dict.fromkeys(value.name for value in proto.input))
    own.update(_known(proto))
    scope = outer.new_child(own)
    yield id(graph), scope
    for node, message in zip(graph.nodes, proto.node, strict=True):
        bodies = {attribute.name: attribute.g for attribute in message.attribute}
        for name, body in node.attrs.items():
            if isinstance(body, gs.Graph):
                yield from _scopes(body, bodies[name], scope)


def tensor_type(value: onnx.ValueInfoProto) -> TensorType | None:
    """The declared type, or None when it is no tensor or has no element type."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
        return None
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(tensor.elem_type, None)
    dims = (dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in tensor.shape.dim)
    return TensorType(tensor.elem_type, tuple(dims))


def _types(values: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorType]:
    return {value.name: kind for value in values if (kind := tensor_type(value)) is not None}


def _forget_shapes(graph: onnx.GraphProto, inner: bool = False) -> None:
    """Drop every shape that is not an input's of the main graph, in bodies as well.

    Nothing holds a body to the shapes that it declares for its inputs: what a loop carries may grow.
    """
    del graph.value_info[:]
    for value in (*graph.output, *(graph.input if inner else ())):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_shapes(attribute.g, inner=True)


def _lighten(graph: onnx.GraphProto) -> None:
    """Turn large initializers into inputs of the same type, so that inference does not copy weights."""
    inputs = {value.name for value in graph.input}
    for index in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[index]
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size <= _SHAPE_ELEMENTS:
            continue
        if tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        del graph.initializer[index]
