"""Tile matching on single matrices: what it masks, its seconds, and its M-step against the exact assignment.

As a command, prints the rows of all cases as JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from harness.bench import HERE, Bench, say
from harness.process import on_cores, run
from harness.reorder_results import AssignmentRow, PanelRow, Search, SearchRow, SearchRows
from harness.tile_cases import Case, iid, planted, real_layers, shuffled, uneven
from onnxcomp.linalg.assignment import assign, assign_nearly, balanced_prices
from onnxcomp.linalg.bands import band_order, runs
from onnxcomp.linalg.coupling import Binding, Operand
from onnxcomp.linalg.matching import Method, match, match_coupled
from onnxcomp.linalg.swaps import swapped
from onnxcomp.linalg.tiles import cheapest_tiles, masked_share, panel_block, tile_sums

__all__ = ["measure_search"]

Array = np.ndarray[Any, Any]

BLOCK, RATE = (8, 8), 0.5
PANELS, BANDS = (1, 2, 4), (8, 16)
STARTS = 4  # of the searches along one axis
LEAST_SWAP = 1e-3  # of the mean entry
LARGE = 1024  # from here on only the default search runs: swaps keep the gains of all pairs


def measure_search(bench: Bench) -> Search:
    """All cases, in a process of their own.

    Raises:
        SystemExit: it fails.
    """
    command = [*on_cores(bench.threads), sys.executable, "-m", "harness.tile_search"]
    outcome = run(command, bench.work / "search.log", bench.limits, cwd=HERE)
    if outcome.failure is not None:
        raise SystemExit(f"tile matching cannot be measured: {outcome.failure}")
    return Search(
        date=time.strftime("%Y-%m-%d"),
        command=bench.command,
        environment=bench.environment,
        threads=bench.threads,
        found=SearchRows.model_validate_json(outcome.output),
    )


def _cases() -> Iterator[tuple[str, Case]]:
    """All of them, with their kind."""
    yield "planted", planted(512)
    for case in real_layers():
        yield "real", case
        yield "control", shuffled(case)
    yield "control", iid(480)
    for size in (512, 4096):
        yield "time", uneven(size)
    yield "planted", planted(4096)


def _row(kind: str, case: Case) -> SearchRow:
    """Every way to order one matrix."""
    salience, total = case.salience, float(case.salience.sum())
    row = SearchRow(kind=kind, name=case.name, size=len(salience), identity=masked_share(salience, BLOCK, RATE))
    row.optimum = case.optimum
    row.unstructured = float(np.sort(salience, axis=None)[: salience.size // 2].sum()) / total
    row.ours, row.seconds = _searched(salience)
    if len(salience) < LARGE:
        row.swaps, row.swap_seconds = _searched(salience, "swap")
        row.one_axis = min(_along(salience, axis) for axis in (0, 1))
    return row


def _searched(salience: Array, method: Method = "assignment") -> tuple[float, float]:
    """The share that is masked, and the seconds."""
    start = time.perf_counter()
    found = match(salience, BLOCK, RATE, np.random.default_rng(0), method=method)
    return found.after, time.perf_counter() - start


def _along(salience: Array, axis: int) -> float:
    """The least share that is masked when one axis alone is ordered."""
    binding = (Binding(0, np.arange(salience.shape[axis])[:, None]),)
    operand = Operand(salience, () if axis else binding, binding if axis else (), BLOCK)
    return match_coupled([operand], [salience.shape[axis]], RATE, np.random.default_rng(0), STARTS).after[0]


def _assignment(case: Case) -> AssignmentRow:
    """The first M-step of the rows from the given order, and its masked salience over the least there is."""
    sums = tile_sums(case.salience, (1, BLOCK[1]))
    slots = np.arange(len(sums)) // BLOCK[0]
    cost = sums @ cheapest_tiles(tile_sums(case.salience, BLOCK), RATE).T
    units, places = linear_sum_assignment(cost[:, slots])
    best = cost[units, slots[places]].sum()

    def over_best(classes: Array) -> float:
        return float(cost[units, classes].sum() / best)

    row = AssignmentRow(name=case.name, given=over_best(slots), near=over_best(_near(cost, slots)))
    row.ours = over_best(assign(cost, slots))
    if len(sums) < LARGE:
        row.swaps = over_best(swapped(cost, slots, LEAST_SWAP * float(case.salience.mean())))
    return row


def _near(cost: Array, slots: Array) -> Array:
    return assign_nearly(cost, slots, balanced_prices(cost, slots))


def _panel_rows(case: Case) -> Iterator[PanelRow]:
    """Every size of panels."""
    for panels in PANELS:
        for band in BANDS:
            block = panel_block(case.salience.shape, panels, band)
            found = match(case.salience, block, RATE, np.random.default_rng(0), panels=panels)
            kept = ~found.mask
            yield PanelRow(
                name=case.name,
                panels=panels,
                band=band,
                identity=found.before,
                ours=found.after,
                runs=runs(kept),
                ordered_runs=runs(kept[:, band_order(kept)]),
            )


def main() -> None:
    """Measure everything."""
    found = SearchRows()
    for kind, case in _cases():
        found.rows.append(_row(kind, case))
        say(f"{case.name}: {found.rows[-1].identity:.3f} -> {found.rows[-1].ours:.3f}, {found.rows[-1].seconds:.2f} s")
        if kind in ("time", "real"):
            found.assignments.append(_assignment(case))
        if kind == "real":
            found.panels += _panel_rows(case)
    print(found.model_dump_json(exclude_none=True))


if __name__ == "__main__":
    main()
