"""Types and shapes that follow from the declared graph inputs, whatever the file claims of other tensors.

Exporters and editors leave stale shapes behind (a batch of 1 after the input was made dynamic), so neither
``value_info`` nor the declared output shapes are believed here. ONNX Runtime refuses feeds that contradict a
declared input, which makes what is inferred from inputs alone safe to build on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from onnxcomp.model import Model

__all__ = ["TensorType", "infer_types", "tensor_type"]

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
    proto = model.skeleton().weights_as_inputs()
    _forget_shapes(proto.graph)
    _lighten(proto.graph)
    for data_propagation in (True, False):
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=data_propagation)
        except Exception:
            continue
        known = _types((*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output))
        known.update({t.name: TensorType(t.data_type, tuple(t.dims)) for t in inferred.graph.initializer})
        return known
    return {}


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


def _forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop every shape that is not a graph input's, in bodies as well."""
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_shapes(attribute.g)


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
