"""Which tiles of a model's weights are not zero, written down for block-sparse kernels elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.tiling import nonzero
from onnxcomp.linalg.tiles import Block, fitted_block, tile_sums

__all__ = ["TILE_INDEX_FORMAT", "tile_index"]

Array = np.ndarray[Any, Any]

TILE_INDEX_FORMAT = "onnxcomp tile index 1"


def tile_index(layers: Sequence[WeightedLayer], block: Block) -> str:
    """The tiles of these layers as JSON, in block compressed sparse rows (BSR).

    A layer is a matrix of outputs and input channels; a tile holds all kernel positions of its channels. The tiles of
    the block row i that are not zero stand in the block columns ``indices[indptr[i]:indptr[i + 1]]``, in
    ascending order; the last tile of a row or column may be smaller than the others.

    Args:
        layers: whose weights can be tiled.
        block: outputs and inputs of a tile, made smaller as by ``fitted_block``.
    """
    return json.dumps({"format": TILE_INDEX_FORMAT, "layers": [_described(layer, block) for layer in layers]}, indent=1)


def _described(layer: WeightedLayer, block: Block) -> dict[str, Any]:
    different = nonzero(layer)
    fitted = fitted_block(different.shape, block)
    occupied = tile_sums(different.astype(np.int64), fitted) > 0
    return {
        "layer": layer.name,
        "operator": layer.op,
        "weight": layer.weight.name,
        "outputs": different.shape[0],
        "inputs": different.shape[1],
        "output_axis": layer.out_axis,
        "input_axis": layer.in_axis,
        "kernel": list(layer.kernel),
        "block": list(fitted),
        "density": round(float(occupied.mean()), 6),
        "indptr": [0, *np.cumsum(occupied.sum(axis=1)).tolist()],
        "indices": np.nonzero(occupied)[1].tolist(),
    }
