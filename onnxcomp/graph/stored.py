"""Recognizing weights that are stored in few bits and restored when the model is loaded (see ``packed``)."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant, shape_of, value_of

__all__ = ["constants_behind", "dtype_name", "has_codebook", "integers_behind", "is_restoring", "is_small_integer"]
__all__ += ["producer_of", "restored_shape"]

STANDARD = (None, "", "ai.onnx")
_RESTORING = ("Cast", "Mul", "Reshape", "Sub", "Add", "Div", "Mod", "Gather", "DequantizeLinear")
_DEEPEST = 12  # more nodes in a row are no way to restore a weight
_LEAST = 16  # smaller constants are no weights


def integers_behind(tensor: gs.Tensor) -> gs.Tensor | None:
    """The constant of small numbers that DequantizeLinear, or a few operators on constants, make this tensor of.

    The largest where there are several: the others are factors, zero points, and the table that takes bytes apart. A
    weight in float16 that is cast counts as well.
    """
    producer = producer_of(tensor)
    if producer is not None and producer.op == "DequantizeLinear" and is_constant(producer.inputs[0]):
        source: gs.Tensor = producer.inputs[0]
        return source
    leaves = constants_behind(tensor, _DEEPEST, _restores) or ()
    found = [leaf for leaf in leaves if is_small_integer(leaf) or _is_cast_half(leaf, tensor)]
    return max(found, key=lambda leaf: (not _takes_bytes_apart(leaf), _size(leaf)), default=None)


def is_restoring(node: gs.Node) -> bool:
    """Whether the node is part of what restores a weight."""
    if not _restores(node) or not node.outputs:
        return False
    source = integers_behind(node.outputs[0])
    return source is not None and _size(source) >= _LEAST


def has_codebook(tensor: gs.Tensor) -> bool:
    """Whether integers pick the values of this weight from a codebook, and are not what is picked."""
    producer = producer_of(tensor)
    while producer is not None and _restores(producer) and producer.op != "Gather":
        producer = producer_of(producer.inputs[0])
    if producer is None or producer.op != "Gather" or integers_behind(tensor) is None:
        return False
    return is_constant(producer.inputs[0]) and integers_behind(producer.inputs[1]) is not None


def restored_shape(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape of what is restored, where the graph declares it; codes of which a byte holds several lack it."""
    while True:
        declared = shape_of(tensor)
        if declared is not None and all(isinstance(dim, int) for dim in declared):
            return tuple(int(dim) for dim in declared)  # type: ignore[arg-type]
        producer = producer_of(tensor)
        if producer is None or producer.op != "DequantizeLinear":
            return None
        tensor = producer.inputs[0]


def constants_behind(
    tensor: gs.Tensor, depth: int, may_make: Callable[[gs.Node], bool] | None = None
) -> list[gs.Tensor] | None:
    """The constants that a tensor is made of; None where it is computed of anything else, or constant itself.

    Args:
        tensor: of any graph.
        depth: nodes in a row at most.
        may_make: whether a standard operator may be among those that make it; by default any.
    """
    producer = None if is_constant(tensor) else producer_of(tensor)
    if producer is None or not depth or (may_make is not None and not may_make(producer)):
        return None
    constants: list[gs.Tensor] = []
    for item in producer.inputs:
        behind = [item] if is_constant(item) or not item.name else constants_behind(item, depth - 1, may_make)
        if behind is None:
            return None
        constants += behind
    return constants


def producer_of(tensor: gs.Tensor) -> gs.Node | None:
    """The standard operator that computes a tensor of something."""
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    return node if node is not None and node.domain in STANDARD and node.inputs else None


def is_small_integer(tensor: gs.Tensor) -> bool:
    """Whether the elements are integers of a byte at most."""
    return dtype_name(tensor) in ("int8", "uint8", "int4", "uint4", "int2", "uint2")


def dtype_name(tensor: gs.Tensor) -> str:
    """The type of a constant's elements, as NumPy and ml_dtypes call it."""
    dtype = tensor.dtype if isinstance(tensor, gs.Constant) else getattr(value_of(tensor), "dtype", None)
    if isinstance(dtype, int):  # types that NumPy lacks are ONNX's numbers
        dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return str(dtype)


def _restores(node: gs.Node) -> bool:
    """Whether the operator may be part of that; a Transpose only of vectors that were picked from a codebook."""
    if node.op != "Transpose" or node.domain not in STANDARD:
        return node.op in _RESTORING
    reshape = producer_of(node.inputs[0]) if node.inputs else None  # a node taken out of its graph has none
    pick = producer_of(reshape.inputs[0]) if reshape is not None and reshape.op == "Reshape" else None
    return pick is not None and pick.op == "Gather"


def _takes_bytes_apart(leaf: gs.Tensor) -> bool:
    """Whether it may be the table of the numbers that each byte holds, which few packed codes are smaller than."""
    is_looked_up = any(reader.op == "Gather" and reader.inputs[0] is leaf for reader in leaf.outputs)
    return is_looked_up and shape_of(leaf) in ((256, 2), (256, 4))


def _is_cast_half(leaf: gs.Tensor, tensor: gs.Tensor) -> bool:
    producer = producer_of(tensor)
    return producer is not None and producer.op == "Cast" and dtype_name(leaf) == "float16"


def _size(tensor: gs.Tensor) -> int:
    return math.prod(dim for dim in shape_of(tensor) or () if isinstance(dim, int))
