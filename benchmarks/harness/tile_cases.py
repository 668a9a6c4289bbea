"""Matrices whose tiles are searched for, each with what there is to find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.zoo import MODELS
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.tiling import salience
from onnxcomp.model import Model

__all__ = ["LAYERS", "Case", "iid", "planted", "real_layers", "shuffled", "uneven"]

Array = np.ndarray[Any, Any]

LAYERS = (480, 480, 1, 1)  # shape of the weights of real_layers
_LIGHT = 0.0438  # of a planted tile's entries, against those of others


@dataclass(frozen=True, eq=False)
class Case:
    """A matrix.

    Attributes:
        name: of the row.
        salience: (rows, columns).
        optimum: masked share of the tiles that were planted; None where nothing was.
    """

    name: str
    salience: Array
    optimum: float | None = None


def planted(size: int) -> Case:
    """Half of the 8 x 8 tiles, drawn at random, are light; then rows and columns are shuffled."""
    rng = np.random.default_rng(0)
    tiles = size // 8
    light = rng.permutation(np.arange(tiles * tiles) < tiles * tiles // 2).reshape(tiles, tiles)
    light = light.repeat(8, axis=0).repeat(8, axis=1)
    matrix = np.abs(rng.normal(size=(size, size))) * np.where(light, _LIGHT, 1.0)
    optimum = float(matrix[light].sum() / matrix.sum())
    return Case(f"planted tiles, {size}x{size}", matrix[rng.permutation(size)][:, rng.permutation(size)], optimum)


def uneven(size: int) -> Case:
    """Normal entries whose scale differs from row to row, from column to column, and by 32 factors of both."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(size, 32)) @ rng.normal(size=(32, size)) / np.sqrt(32)
    lines = rng.normal(size=(size, 1)) + rng.normal(size=(1, size))
    return Case(f"uneven, {size}x{size}", np.abs(rng.normal(size=(size, size))) * np.exp(0.6 * factors + 0.5 * lines))


def iid(size: int) -> Case:
    """Normal entries."""
    return Case(f"iid, {size}x{size}", np.abs(np.random.default_rng(0).normal(size=(size, size))))


def shuffled(case: Case) -> Case:
    """The same entries anywhere."""
    entries = np.random.default_rng(0).permutation(case.salience.reshape(-1))
    return Case(f"{case.name}, entries shuffled", entries.reshape(case.salience.shape))


def real_layers() -> Iterator[Case]:
    """The 1x1 convolutions of 480 to 480 channels of PP-OCRv4's recogniser, |w|."""
    model = Model.load(MODELS["ppocr_rec"].path)
    for layer in weighted_layers(model):
        if layer.op == "Conv" and layer.groups == 1 and layer.shape == LAYERS:
            yield Case(f"ppocr_rec {layer.name}", salience(layer))
