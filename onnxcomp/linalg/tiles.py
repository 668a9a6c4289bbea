"""Tiles of a matrix, and how much of its salience the cheapest of them hold."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Block", "cheapest_tiles", "fitted_block", "masked_share", "panel_block", "tile_sums"]

Array = np.ndarray[Any, Any]
Block = tuple[int, int]


def fitted_block(shape: tuple[int, ...], block: Block) -> Block:
    """The block, made smaller where an axis of more than one line would not be cut.

    Ji et al. (NeurIPS 2018) reduce blocks in the same way, so that every layer has at least two.
    """
    rows, columns = (min(size, max(1, -(-lines // 2))) for size, lines in zip(block, shape, strict=True))
    return rows, columns


def tile_sums(salience: Array, block: Block) -> Array:
    """Sum of every tile.

    Args:
        salience: (rows, columns).
        block: rows and columns of a tile; the last ones of an axis may be ragged.

    Returns:
        (⌈rows / block[0]⌉, ⌈columns / block[1]⌉).
    """
    rows, columns = (np.arange(0, size, step) for size, step in zip(salience.shape, block, strict=True))
    sums: Array = np.add.reduceat(np.add.reduceat(salience, rows, axis=0), columns, axis=1)
    return sums


def cheapest_tiles(sums: Array, rate: float, panels: int = 1) -> Array:
    """A boolean mask of the tiles of the smallest sums, ties by position.

    Args:
        sums: (row blocks, column blocks).
        rate: part to mask, 0 to 1.
        panels: equal runs of row blocks, each of which masks exactly ⌊rate · tiles of the panel⌋.

    Raises:
        ValueError: the row blocks cannot be divided among the panels.
    """
    if panels < 1 or len(sums) % panels:
        raise ValueError(f"{len(sums)} row blocks cannot be divided among {panels} panels")
    of_panel = sums.reshape(panels, -1)
    cheapest = np.argsort(of_panel, axis=1, kind="stable")[:, : int(rate * of_panel.shape[1])]
    mask = np.zeros(of_panel.shape, dtype=bool)
    np.put_along_axis(mask, cheapest, True, axis=1)
    return mask.reshape(sums.shape)


def panel_block(shape: tuple[int, int], panels: int, band: int) -> Block:
    """The tile of a panel mask: a panel of rows by a band of columns.

    With as many panels in ``cheapest_tiles`` as there are here, each keeps the same number of bands.

    Raises:
        ValueError: the rows cannot be divided among the panels.
    """
    if panels < 1 or shape[0] % panels:
        raise ValueError(f"{shape[0]} rows cannot be divided among {panels} panels")
    return shape[0] // panels, band


def masked_share(salience: Array, block: Block, rate: float, panels: int = 1) -> float:
    """The part, 0 to 1, of all salience that lies in the cheapest tiles: what pruning them would cost."""
    sums = tile_sums(salience, block)
    total = float(sums.sum())
    return float(sums[cheapest_tiles(sums, rate, panels)].sum()) / total if total > 0 else 0.0
