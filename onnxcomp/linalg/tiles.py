"""Tiles of a matrix, and how much of its salience the cheapest of them hold."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Block", "cheapest_tiles", "fitted_block", "masked_share", "tile_sums"]

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


def cheapest_tiles(sums: Array, rate: float) -> Array:
    """A boolean mask of exactly ⌊rate · tiles⌋ tiles: those of the smallest sums, ties by position."""
    mask = np.zeros(sums.size, dtype=bool)
    mask[np.argsort(sums, axis=None, kind="stable")[: int(rate * sums.size)]] = True
    return mask.reshape(sums.shape)


def masked_share(salience: Array, block: Block, rate: float) -> float:
    """The part, 0 to 1, of all salience that lies in the cheapest tiles: what pruning them would cost."""
    sums = tile_sums(salience, block)
    total = float(sums.sum())
    return float(sums[cheapest_tiles(sums, rate)].sum()) / total if total > 0 else 0.0
