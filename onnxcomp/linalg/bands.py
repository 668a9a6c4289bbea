"""Orders of bands of columns in which those that a panel of rows keeps lie side by side as far as possible.

A slice is cheaper than a gather: each panel reads its kept bands in as few runs as there can be. Side by side, a
band that is kept by the panels p and one kept by q begin or end |p ≠ q| runs; with nothing kept before the first
and after the last, every run is counted twice. So the least number of runs is half of the shortest round trip
through all kinds of bands and "kept by none", by Hamming distance: a travelling salesman who never gains by visiting
a place twice, hence bands of one kind stay together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["band_order", "runs"]

Array = np.ndarray[Any, Any]

_MOST_EXACT = 15  # kinds of bands, what four panels have at most


def runs(kept: Array) -> int:
    """In how many runs of neighbouring bands the panels keep theirs, all panels together.

    Args:
        kept: (panels, bands), boolean.
    """
    edges = np.diff(np.pad(kept.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    return int(np.count_nonzero(edges == 1))


def band_order(kept: Array) -> Array:
    """An order of the bands with few runs: the least number where there are up to four panels.

    Bands of one kind keep their order; those that no panel keeps come last. Two panels get [only one | both | only
    the other | none].

    Args:
        kept: (panels, bands), boolean.

    Returns:
        (bands,): position k holds band order[k].
    """
    kinds, kind_of_band = np.unique(kept.T, axis=0, return_inverse=True)
    none = np.flatnonzero(~kinds.any(axis=1))
    used = np.flatnonzero(kinds.any(axis=1))
    patterns = np.vstack([np.zeros((1, len(kept)), dtype=bool), kinds[used]])
    distance = (patterns[:, None] != patterns[None]).sum(axis=2)
    tour = _shortest(distance) if len(used) <= _MOST_EXACT else _improved(distance, _nearest(distance))
    place = np.empty(len(kinds), dtype=np.intp)
    place[[*used[np.array(tour, dtype=np.intp) - 1], *none]] = np.arange(len(kinds))
    order: Array = np.argsort(place[kind_of_band.reshape(-1)], kind="stable")
    return order


def _shortest(distance: Array) -> list[int]:
    """The shortest round trip from place 0 through all others (Held and Karp 1962), without place 0."""
    count = len(distance) - 1
    if count == 0:
        return []
    best = np.full((1 << count, count), np.iinfo(np.int64).max // 2)
    before = np.zeros((1 << count, count), dtype=np.int8)
    best[1 << np.arange(count), np.arange(count)] = distance[0, 1:]
    between = distance[1:, 1:]
    sets = np.arange(1 << count)
    sizes = ((sets[:, None] >> np.arange(count)) & 1).sum(axis=1)
    for size in range(2, count + 1):
        of_size = sets[sizes == size]
        for last in range(count):
            here = of_size[(of_size >> last) & 1 == 1]
            lengths = best[here ^ (1 << last)] + between[:, last]
            before[here, last] = lengths.argmin(axis=1)
            best[here, last] = lengths.min(axis=1)
    visited = (1 << count) - 1
    last = int((best[visited] + distance[1:, 0]).argmin())
    tour = [last]
    while len(tour) < count:
        visited, last = visited ^ (1 << last), int(before[visited, last])
        tour.append(last)
    return [place + 1 for place in reversed(tour)]


def _nearest(distance: Array) -> list[int]:
    """A round trip that goes on to the nearest place each time."""
    left, tour = list(range(1, len(distance))), [0]
    while left:
        tour.append(min(left, key=lambda place: (distance[tour[-1], place], place)))
        left.remove(tour[-1])
    return tour[1:]


def _improved(distance: Array, tour: list[int]) -> list[int]:
    """A round trip that no reversal of a part of it makes shorter (2-opt)."""
    improved = True
    while improved:
        improved = False
        for first in range(len(tour)):
            for last in range(first + 1, len(tour)):
                before, after = tour[first - 1] if first else 0, tour[last + 1] if last + 1 < len(tour) else 0
                old = distance[before, tour[first]] + distance[tour[last], after]
                if distance[before, tour[last]] + distance[tour[first], after] < old:
                    tour[first : last + 1] = reversed(tour[first : last + 1])
                    improved = True
    return tour
