"""What a model computes from constants alone, computed once: lifting, static shapes, constant subgraphs.

onnxslim and onnxoptimizer do this too, but only from file to file, losing documentation, metadata and names
that the codec carries, and they believe declared shapes of inner tensors. Each rule here is a few lines on
the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.codec import nested_graphs
from onnxcomp.codec.origins import attributes_aside
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.edit import detach, output_ids
from onnxcomp.graph.inferred import TensorType, tensor_type
from onnxcomp.graph.layers import casts_stored_weight
from onnxcomp.runtime.trial import Trial

__all__ = ["evaluate_constants", "fold_static_shapes", "lift_constants"]

Array = np.ndarray[Any, Any]

# A folded value may add this many bytes to the file beyond the constants that it makes unnecessary. It is
# meant for shapes and indices; an Expand or a shared weight's transpose stays a node.
MAX_GROWTH = 4096
_SECONDS = 5.0  # for one node, whose memory is limited too: a small result may take a large detour

_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
# DequantizeLinear of a constant is how a quantized weight is stored; so are Cast and Mul.
_NOT_FOLDED = {"Constant", "DequantizeLinear", "Dropout", *_RANDOM}
_NUMBERS = "biuf"


def lift_constants(graph: gs.Graph) -> list[gs.Tensor]:
    """Make the outputs of Constant nodes initializers of the graph they stand in, and return them.

    A Constant stays when it is a graph output, when only nested graphs read it (its initializer would be
    copied into each of them), and when it is no array of numbers.
    """
    outputs = output_ids(graph)
    lifted = []
    for nested in nested_graphs(graph):
        members = {id(node) for node in nested.nodes}
        for node in nested.nodes:
            if node.op != "Constant" or node.domain or not node.outputs:
                continue
            tensor = node.outputs[0]
            value = value_of(tensor)
            local = any(id(consumer) in members for consumer in tensor.outputs)
            if value is not None and value.dtype.kind in _NUMBERS and local and id(tensor) not in outputs:
                node.outputs.clear()  # dead now, and removed with other dead code
                tensor.to_constant(np.ascontiguousarray(value).reshape(value.shape))
                lifted.append(tensor)
    return lifted


def fold_static_shapes(graph: gs.Graph, types: Mapping[str, TensorType]) -> int:
    """Replace Shape and Size of tensors, and single dimensions taken from a Shape, where inference knows them.

    Dimensions that only a run knows stay computed. Returns the number of tensors replaced.
    """
    outputs = output_ids(graph)
    replaced = 0
    for node in list(graph.nodes):
        if node.op not in ("Shape", "Size") or node.domain or not node.outputs:
            continue
        known = types.get(node.inputs[0].name)
        if known is None or known.shape is None:
            continue
        dims = _shape_slice(node, known.shape)
        if node.op == "Size":
            dims = None if known.static is None else (int(np.prod(known.static, dtype=np.int64)),)
        if dims is None:
            continue
        result = node.outputs[0]
        if all(dim is not None for dim in dims):
            replaced += _become(result, np.array(dims if node.op == "Shape" else dims[0], np.int64), outputs)
        else:
            replaced += sum(_fold_picked(consumer, result, dims, outputs) for consumer in list(result.outputs))
    return replaced


def evaluate_constants(graph: gs.Graph, opset: int) -> list[gs.Tensor]:
    """Compute every deterministic standard node whose inputs are all constant; returns the new constants.

    A node stays when ONNX Runtime cannot compute it or when its result would enlarge the file by more than
    ``MAX_GROWTH`` bytes.
    """
    outputs = output_ids(graph)
    folded: list[gs.Tensor] = []
    for nested in nested_graphs(graph):
        for node in list(nested.nodes):
            if not _foldable(node, outputs):
                continue
            values = _evaluate(node, opset, _freed_bytes(node, outputs))
            if not values:
                continue
            results = [tensor for tensor in node.outputs if tensor.name]
            detach(node)
            for tensor in results:
                _become(tensor, values[tensor.name], outputs)
            folded += results
    return folded


# -- shapes ------------------------------------------------------------------------------------------------


def _shape_slice(node: gs.Node, shape: tuple[int | None, ...]) -> tuple[int | None, ...] | None:
    """The dimensions that a Shape node yields (start and end since opset 15)."""
    start, end = node.attrs.get("start", 0), node.attrs.get("end", len(shape))
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    rank = len(shape)
    start, end = (min(max(bound + rank if bound < 0 else bound, 0), rank) for bound in (start, end))
    return shape[start:end]


def _fold_picked(node: gs.Node, source: gs.Tensor, dims: tuple[int | None, ...], outputs: set[int]) -> int:
    """A Gather or Slice that takes known dimensions out of a partly known shape becomes a constant."""
    if node.domain or node.inputs[0] is not source or not node.outputs:
        return 0
    parameters = [value_of(tensor) for tensor in node.inputs[1:] if tensor.name]
    if any(parameter is None for parameter in parameters):
        return 0
    positions = np.arange(len(dims))
    try:
        if node.op == "Gather" and node.attrs.get("axis", 0) == 0:
            picked = positions[np.asarray(parameters[0])]
        elif node.op == "Slice":
            picked = _slice(positions, node, parameters)
        else:
            return 0
    except IndexError:
        return 0
    values = [dims[int(position)] for position in np.ravel(picked)]
    if any(value is None for value in values):
        return 0
    return _become(node.outputs[0], np.array(values, np.int64).reshape(np.shape(picked)), outputs)


def _slice(positions: Array, node: gs.Node, parameters: list[Array | None]) -> Array:
    """A Slice of a vector: attributes before opset 10, inputs (starts, ends, axes, steps) since."""
    if parameters:
        bounds = [int(np.ravel(np.asarray(parameter))[0]) for parameter in parameters]
    else:
        bounds = [int(node.attrs[name][0]) for name in ("starts", "ends")]
    start, end = bounds[:2]
    step = bounds[3] if len(bounds) > 3 else 1
    return positions[start : None if step < 0 and end < -len(positions) else end : step]


# -- evaluation --------------------------------------------------------------------------------------------


def _foldable(node: gs.Node, outputs: set[int]) -> bool:
    if node.domain not in (None, "", "ai.onnx") or node.op in _NOT_FOLDED or not node.outputs:
        return False
    if casts_stored_weight(node):
        return False
    if any(isinstance(value, (gs.Graph, gs.Node.AttributeRef)) for value in node.attrs.values()):
        return False
    if attributes_aside(node):  # they would be missing where the node is computed
        return False
    inputs = [tensor for tensor in node.inputs if tensor.name]
    if not inputs or any(id(tensor) in outputs for tensor in node.outputs):
        return False
    return all(is_constant(tensor) for tensor in inputs)


def _freed_bytes(node: gs.Node, outputs: set[int]) -> int:
    """Bytes of constants that nobody needs once the node is gone."""
    unique = {id(tensor): tensor for tensor in node.inputs if tensor.name}
    freed = 0
    for tensor in unique.values():
        if id(tensor) not in outputs and all(consumer is node for consumer in tensor.outputs):
            value = value_of(tensor)
            freed += 0 if value is None else value.nbytes
    return freed


def _evaluate(node: gs.Node, opset: int, freed: int) -> dict[str, Array]:
    """The values of the node's outputs, or nothing."""
    feeds = {tensor.name: value_of(tensor) for tensor in node.inputs if tensor.name}
    arrays = {name: value for name, value in feeds.items() if value is not None}
    if len(arrays) < len(feeds) or any(value.dtype.kind not in _NUMBERS for value in arrays.values()):
        return {}
    if (size := _result_bytes(node, arrays, opset)) is None or size - freed > MAX_GROWTH:
        return {}
    try:
        values = Trial(_single(node, arrays, opset, initializers=False), _SECONDS, threads=1).run(arrays)
    except Exception:
        return {}
    good = all(isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS for value in values.values())
    return values if good else {}


def _result_bytes(node: gs.Node, arrays: dict[str, Array], opset: int) -> int | None:
    """Size of the result by shape inference, before anything is computed; None when it cannot tell."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_single(node, arrays, opset, initializers=True))
    except Exception:
        return None
    size = 0
    for value in inferred.graph.output:
        kind = tensor_type(value)
        if kind is None or kind.static is None:
            return None
        width = onnx.helper.tensor_dtype_to_np_dtype(kind.element).itemsize
        size += int(np.prod(kind.static, dtype=np.int64)) * width
    return size


def _single(node: gs.Node, arrays: dict[str, Array], opset: int, initializers: bool) -> onnx.ModelProto:
    """A model of this one node, its (small) inputs as feeds or as initializers."""
    proto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node)
    inputs, constants = [], []
    for name, array in arrays.items():
        if initializers and array.size <= MAX_GROWTH:
            constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        else:
            element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            inputs.append(onnx.helper.make_tensor_value_info(name, element, array.shape))
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "constant", inputs, outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def _become(tensor: gs.Tensor, value: Array, outputs: set[int]) -> int:
    """Turn a node's output into an initializer; 1 when it could be done."""
    if id(tensor) in outputs or isinstance(tensor, gs.Constant):
        return 0
    tensor.inputs.clear()
    tensor.to_constant(np.ascontiguousarray(value).reshape(np.shape(value)))
    return 1
