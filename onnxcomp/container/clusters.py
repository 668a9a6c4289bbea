"""Few tables for many planes and classes: those of like distribution share one."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.container.rans import TOTAL
from onnxcomp.container.tables import from_levels, levels_of

__all__ = ["cluster"]

Array = np.ndarray[Any, Any]

_TABLE_BITS, _SYMBOL_BITS = 64.0, 2.5  # what a table takes: for itself, and for each symbol in it


def cluster(counts: Array, seeds: Array, most: int) -> tuple[Array, Array]:
    """Tables for distributions, by what they and the symbols coded with them take together.

    Those with the same seed begin as one; then the pair whose union saves most is merged while any saves something;
    in the end each goes to the table that codes it best.

    Args:
        counts: of symbols, one row for each distribution, none of them empty.
        seeds: a number for each.
        most: tables.

    Returns:
        the levels of each table (``tables.levels_of``), and the table of each distribution.
    """
    _, assigned = np.unique(seeds, return_inverse=True)
    merged = _merged(_summed(counts, assigned), most)
    for _ in range(2):
        assigned = _nearest(counts, merged)
        _, assigned = np.unique(assigned, return_inverse=True)
        merged = _summed(counts, assigned)
    return levels_of(merged), assigned


def _summed(counts: Array, assigned: Array) -> Array:
    result = np.zeros((int(assigned.max()) + 1, 256), np.int64)
    np.add.at(result, assigned, counts)
    return result


def _merged(clusters: Array, most: int) -> Array:
    clusters = clusters.copy()
    costs = _bits(clusters)
    alive = np.ones(len(clusters), bool)
    unions = np.full((len(clusters), len(clusters)), np.inf)
    for index in range(len(clusters)):
        unions[index, index + 1 :] = _union(clusters, costs, index, slice(index + 1, None))
    while alive.sum() > 1:
        first, second = divmod(int(unions.argmin()), len(clusters))
        if unions[first, second] >= 0 and alive.sum() <= most:
            break
        clusters[first] += clusters[second]
        costs[first] = _bits(clusters[first : first + 1])[0]
        alive[second] = False
        unions[second], unions[:, second] = np.inf, np.inf
        new = np.where(alive, _union(clusters, costs, first, slice(None)), np.inf)
        unions[first, first + 1 :] = new[first + 1 :]
        unions[:first, first] = new[:first]
    return np.asarray(clusters[alive])


def _union(clusters: Array, costs: Array, index: int, others: slice) -> Array:
    """Bits more, or less, that a cluster and others take as one."""
    return np.asarray(_bits(clusters[others] + clusters[index]) - costs[others] - costs[index])


def _bits(counts: Array) -> Array:
    """Of each row's symbols, coded with a table of their own, and of that table."""
    logs = np.log2(np.maximum(counts, 1).astype(np.float32)).astype(np.float64)
    totals = counts.sum(axis=1)
    symbols: Array = totals * np.log2(np.maximum(totals, 1)) - np.einsum("ij,ij->i", counts, logs)
    return np.asarray(symbols + _TABLE_BITS + _SYMBOL_BITS * (counts > 0).sum(axis=1))


def _nearest(counts: Array, clusters: Array) -> Array:
    """The cluster whose table codes each distribution in the fewest bits."""
    shares = from_levels(levels_of(clusters)) / TOTAL
    lengths = -np.log2(np.where(shares > 0, shares, 2.0**-60))  # a symbol that a table lacks would cost more
    return np.asarray((counts.astype(np.float64) @ lengths.T).argmin(axis=1))
