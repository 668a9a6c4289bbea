"""The constants of a model that training may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import value_of
from onnxcomp.graph.stored import STANDARD, constants_behind, producer_of
from onnxcomp.linalg.masked import kept_weights
from onnxcomp.model import Model

__all__ = ["Parameter", "made_weights", "parameters"]

Array = np.ndarray[Any, Any]

# Inputs that hold what an operator has learnt, by operator.
_LEARNT = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
}
_MATRICES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators through which a weight may be made of others before it is used: a codebook of its entries, for one.
_MAKING = ("Gather", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Identity", "Mul", "Expand", "Pad")
_DEEPEST = 8
_ARITHMETIC = ("Add", "Sub", "Mul")
# What computes a tensor that a learnt constant is added to or multiplied with.
_BEFORE = (*_MATRICES, *_ARITHMETIC, "Div", "BatchNormalization", "InstanceNormalization", "LayerNormalization")
_MASKED = 1e4  # added to scores, it hides them


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constant that training may change.

    Attributes:
        tensor: the initializer.
        kept: where it may change, for one whose zeros are to stay; else None.
    """

    tensor: gs.Constant
    kept: Array | None

    @property
    def name(self) -> str:
        """Of the initializer."""
        return str(self.tensor.name)

    @property
    def value(self) -> Array:
        """As stored; not to be written into."""
        value = value_of(self.tensor)
        assert value is not None
        return value


def parameters(model: Model) -> list[Parameter]:
    """The float32 initializers of the main graph that hold what operators have learnt, each once, in graph order.

    What a tensor is multiplied with, or what is added to it, is learnt where a layer or a normalization computes that
    tensor; of a graph's input it is the mean or the deviation of images. A scalar is part of a formula, and a mask too.
    Constants that a weight is made of (a codebook, a factor for each channel) stand for the weight.
    """
    found: dict[int, Parameter] = {}
    for node in model.graph.nodes:
        if node.domain not in STANDARD:
            continue
        for position in _LEARNT.get(node.op, ()):
            if position >= len(node.inputs) or (node.op in _ARITHMETIC and not _continues_layer(node, 1 - position)):
                continue
            for tensor, direct in _sources(node.inputs[position], node.op in _MATRICES, _DEEPEST):
                if id(tensor) not in found:
                    found[id(tensor)] = Parameter(tensor, _kept(tensor, direct and _is_weight(node, position)))
    return list(found.values())


def made_weights(model: Model) -> list[tuple[gs.Node, list[gs.Constant]]]:
    """Layers of the main graph whose weight is made of trainable constants, as of a codebook, and those constants."""
    found = []
    for node in model.graph.nodes:
        if node.domain not in STANDARD or node.op not in _MATRICES:
            continue
        positions = _LEARNT[node.op] if node.op == "MatMul" else (1,)
        made = [source for position in positions for source in _sources(node.inputs[position], True, _DEEPEST)]
        if made and not any(direct for _, direct in made):
            found.append((node, [tensor for tensor, _ in made]))
    return found


def _sources(tensor: gs.Tensor, through: bool, depth: int, direct: bool = True) -> Iterator[tuple[gs.Constant, bool]]:
    """The trainable constants that a tensor is or is made of, and whether they are it.

    Args:
        through: look behind operators on constants.
    """
    if isinstance(tensor, gs.Constant):
        if _is_trainable(tensor):
            yield tensor, direct
        return
    producer = producer_of(tensor) if through and depth else None
    if producer is None or producer.op not in _MAKING or constants_behind(tensor, depth) is None:
        return
    for item in producer.inputs:
        yield from _sources(item, through, depth - 1, direct=False)


def _is_trainable(tensor: gs.Constant) -> bool:
    return tensor.dtype == np.float32 and int(np.prod(tensor.shape, dtype=np.int64)) > 1


def _continues_layer(node: gs.Node, other: int) -> bool:
    """Whether a scale or shift acts on what a layer or a (taken apart) normalization gives, and is no mask."""
    producer = producer_of(node.inputs[other])
    constant = value_of(node.inputs[1 - other])
    if constant is not None and constant.size and float(np.abs(constant).max()) >= _MASKED:
        return False
    return producer is not None and producer.op in _BEFORE


def _is_weight(node: gs.Node, position: int) -> bool:
    """And not a bias."""
    return node.op in _MATRICES and position < 2


def _kept(tensor: gs.Constant, is_weight: bool) -> Array | None:
    """Zeros that were put into a weight on purpose, see ``linalg.masked``; and the zero of a codebook."""
    value = value_of(tensor)
    assert value is not None
    if is_weight:
        return kept_weights(value)
    is_codebook = any(reader.op == "Gather" for reader in tensor.outputs)
    return value != 0 if is_codebook and not value.all() else None
