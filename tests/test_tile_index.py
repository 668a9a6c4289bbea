"""The list of tiles that are not zero covers just the weights that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp import Pipeline, compress, weighted_layers
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.graph.tiling import nonzero
from onnxcomp.linalg.tiles import fitted_block, tile_sums
from onnxcomp.passes.prune import Prune
from onnxcomp.passes.reorder import Reorder
from tests.test_tile_pruning import residual

# Zeros in place make nothing faster, of which prune warns.
pytestmark = pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")


def decoded(entry: dict[str, Any]) -> np.ndarray:
    """Which weights stand in tiles of the list: (outputs, inputs)."""
    rows, columns = entry["block"]
    covered = np.zeros((entry["outputs"], entry["inputs"]), bool)
    for row, (begin, end) in enumerate(zip(entry["indptr"], entry["indptr"][1:], strict=False)):
        for column in entry["indices"][begin:end]:
            covered[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = True
    return covered


def test_block_pruned_layers_are_described_tile_by_tile(tmp_path: Path) -> None:
    model, data = residual(twins=False)
    file = tmp_path / "tiles.json"
    passes = [Prune(granularity="block(8,8)", sparsity=0.5), Reorder(density=1, tiles=str(file))]
    result = compress(model, Pipeline(passes), data=data, timings="off")
    described = json.loads(file.read_text())
    assert described["format"] == "onnxcomp tile index 1"
    layers = {layer.name: layer for layer in weighted_layers(result.model)}
    sparse = 0
    for entry in described["layers"]:
        layer = layers[entry["layer"]]
        weight = np.moveaxis(layer.array(), (entry["output_axis"], entry["input_axis"]), (0, 1))
        different = (weight.reshape(*weight.shape[:2], -1) != 0).any(axis=2)
        covered = decoded(entry)
        assert not (different & ~covered).any()
        # No tile of the list is empty.
        assert entry["indptr"][-1] == len(entry["indices"])
        rows, columns = entry["block"]
        for row, column in np.argwhere(covered[::rows, ::columns]):
            assert different[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns].any()
        sparse += entry["density"] < 1
    assert sparse >= 3


def test_a_list_of_tiles_is_a_json_file() -> None:
    model, data = residual()
    result = compress(model, Pipeline([Reorder(tiles="tiles.txt")]), data=data)
    assert "names no JSON file; let its name end in .json" in str(result.report.passes[-1].verification.error)


def test_tiles_that_are_zero_stay_whole_tiles() -> None:
    """Small weights elsewhere are no reason to take apart what an earlier pass made."""
    model, data = residual(twins=False)
    blocks = Prune(granularity="block(8,8)", sparsity=0.5)
    pruned = compress(model, Pipeline([blocks]), data=data, timings="off").model
    ordered = compress(model, Pipeline([blocks, Reorder(density=1)]), data=data, timings="off").model
    assert sum(map(zero_tiles, weighted_layers(ordered))) >= 6
    assert all(
        zero_tiles(after) / after.array().size >= zero_tiles(before) / before.array().size
        for before, after in zip(weighted_layers(pruned), weighted_layers(ordered), strict=True)
        if before.shape == after.shape
    )


def zero_tiles(layer: WeightedLayer) -> int:
    different = nonzero(layer).astype(np.int64)
    return int((tile_sums(different, fitted_block(different.shape, (8, 8))) == 0).sum())
