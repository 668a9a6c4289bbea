"""Per-channel affine maps absorbed into the convolutions behind them.

A Mul by one constant, or by one per channel, before convolutions scales their input channels: W' = W ·
diag(f). An Add does the same to the bias, b' = b + W · g summed over the kernel, where nothing is padded
(padding adds zeros after the map, not before it). Of y = f · x + g before padded convolutions the Mul is
absorbed, and x + g / f is left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.codec.origins import nested_graphs
from onnxcomp.graph.absorb import Absorbed, bias_of, obstacle, per_channel, set_bias
from onnxcomp.graph.constants import value_of
from onnxcomp.graph.edit import Names, detach, output_ids, replace_uses, sole_consumer
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.model import Model

__all__ = ["absorb_input_affine"]

Array = np.ndarray[Any, Any]
# Dividing by less could lift the added constant far above the values that it is added to.
_LEAST_FACTOR = 1e-3


def absorb_input_affine(model: Model) -> list[Absorbed]:
    """Absorb each Mul and Add of a constant that only convolutions read, in the same graph or in bodies."""
    graph = model.graph
    layers = {id(layer.node): layer for layer in weighted_layers(model) if not layer.function}
    outputs, names = output_ids(graph), Names(graph)
    results: list[Absorbed] = []
    for node in [node for nested in nested_graphs(graph) for node in nested.nodes]:
        operands = _operands(node)
        if operands is None:
            continue
        source, constant = operands
        behind = sole_consumer(node.outputs[0], outputs) if node.op == "Mul" else None
        added = None if behind is None or behind.op != "Add" else _operands(behind)
        last = node if added is None or behind is None else behind
        readers = _convolutions(last.outputs[0], outputs, layers)
        vectors = [per_channel(constant, len(reader.shape), _inputs(reader)) for reader in readers]
        if not readers or not all(_fits(node.op, *pair) for pair in zip(readers, vectors, strict=True)):
            continue
        if added is not None and behind is not None:
            if not _divide(behind, source, added[1], constant, names):
                continue
            detach(node)
        else:
            result = node.outputs[0]
            detach(node)
            replace_uses(result, source)
        for reader, vector in zip(readers, vectors, strict=True):
            assert vector is not None
            _absorb(node.op, reader, vector, names, outputs)
            results.append(Absorbed(reader.node, f"{node.op} {layer_name(node) or 'before it'}"))
    return results


def _operands(node: gs.Node) -> tuple[gs.Tensor, Array] | None:
    """What a Mul or Add combines with a constant, and the constant."""
    if node.op not in ("Mul", "Add") or node.domain not in (None, "", "ai.onnx") or len(node.inputs) != 2:
        return None
    values = [value_of(tensor) for tensor in node.inputs]
    for index in (0, 1):
        value = values[1 - index]
        if values[index] is None and value is not None and value.dtype.kind == "f":
            return node.inputs[index], value
    return None


def _convolutions(tensor: gs.Tensor, outputs: set[int], layers: dict[int, WeightedLayer]) -> list[WeightedLayer]:
    """The readers of the tensor, when all are convolutions of it; else nothing."""
    if id(tensor) in outputs:
        return []
    readers = [layers.get(id(node)) for node in tensor.outputs]
    found = [layer for layer in readers if layer is not None and layer.kind == "Conv"]
    whole = all(
        sum(item is tensor for item in layer.node.inputs) == 1 and layer.node.inputs[0] is tensor for layer in found
    )
    return found if whole and len(found) == len(readers) else []


def _fits(op: str, layer: WeightedLayer, vector: Array | None) -> bool:
    if vector is None or obstacle(layer) or (len(layer.node.inputs) > 2 and layer.bias is None):
        return False
    return op == "Mul" or _is_unpadded(layer)


def _is_unpadded(layer: WeightedLayer) -> bool:
    attributes = layer.node.attrs
    if attributes.get("auto_pad", "NOTSET") == "VALID":
        return True
    return attributes.get("auto_pad", "NOTSET") == "NOTSET" and not any(attributes.get("pads", ()))


def _divide(add: gs.Node, source: gs.Tensor, offset: Array, factor: Array, names: Names) -> bool:
    """Let the Add read what the Mul before it read, and add so much less."""
    if np.abs(factor).min() < _LEAST_FACTOR:
        return False
    divided = np.asarray(offset, np.float64) / np.asarray(factor, np.float64)
    constant = gs.Constant(names.new(f"{add.outputs[0].name}_divided"), divided.astype(offset.dtype))
    add.inputs.clear()
    add.inputs.extend([source, constant])
    return True


def _inputs(layer: WeightedLayer) -> int:
    return layer.shape[1] * layer.groups


def _absorb(op: str, layer: WeightedLayer, vector: Array, names: Names, outputs: set[int]) -> None:
    matrix = layer.matrix()
    groups, outs, columns = matrix.shape
    kernel = columns // layer.shape[1]
    per_column = np.repeat(vector.reshape(groups, -1), kernel, axis=1)
    if op == "Mul":
        layer.set_matrix(matrix * per_column[:, None, :])
        return
    shift = np.einsum("goc,gc->go", matrix, per_column).reshape(-1)
    set_bias(layer, bias_of(layer, groups * outs) + shift, names, outputs)
