"""Convolutions whose weight falls apart into independent blocks: the same as a grouped convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxcomp.graph.layers import WeightedLayer

__all__ = ["Blocks", "equal_blocks", "make_grouped"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Orders of the outputs and inputs of a layer in which its weight is block-diagonal.

    Attributes:
        count: of blocks, all of (outputs / count, inputs / count).
        outputs, inputs: orders; position k holds channel order[k].
    """

    count: int
    outputs: Array
    inputs: Array


def equal_blocks(nonzero: Array, multiple: int) -> Blocks | None:
    """The most blocks of equal shape, two or more, that a matrix falls apart into under permutations.

    Only matrices whose smallest independent parts are all of one shape are found; these are then joined until
    both sides of a block are multiples of ``multiple``.

    Args:
        nonzero: (outputs, inputs), boolean.
        multiple: of channels that a kernel needs to be fast.
    """
    outs, ins = nonzero.shape
    if np.count_nonzero(nonzero) * 2 > nonzero.size:  # two equal blocks leave half of the matrix zero
        return None
    rows, columns = np.nonzero(nonzero)
    edges = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, outs + columns)), (outs + ins, outs + ins))
    parts, label = connected_components(edges, directed=False)
    shapes = np.stack([np.bincount(side, minlength=parts) for side in (label[:outs], label[outs:])])
    if (shapes != shapes[:, :1]).any():
        return None
    for joined in range(1, parts // 2 + 1):
        count, rest = divmod(parts, joined)
        if rest == 0 and (outs // count) % multiple == 0 and (ins // count) % multiple == 0:
            return Blocks(count, np.argsort(label[:outs], kind="stable"), np.argsort(label[outs:], kind="stable"))
    return None


def make_grouped(layer: WeightedLayer, count: int) -> None:
    """Turn a convolution with a block-diagonal weight (outputs, inputs, *kernel) into ``count`` groups."""
    weight = layer.array()
    outs, ins = weight.shape[0] // count, weight.shape[1] // count
    blocks = [weight[block * outs : (block + 1) * outs, block * ins : (block + 1) * ins] for block in range(count)]
    layer.set_array(np.concatenate(blocks))
    layer.node.attrs["group"] = count
