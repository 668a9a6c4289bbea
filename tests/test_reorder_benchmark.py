from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import tile_search
from harness.render_reorder import reorder_sections
from harness.reorder_results import AssignmentRow, PanelRow, ReorderResults, Search, SearchRow, SearchRows
from harness.reorder_targets import check_reorder
from harness.results import Environment
from harness.targets import Target
from harness.tile_cases import Case, iid, planted, shuffled

MACHINE = Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"})


def results(**rows: Any) -> ReorderResults:
    search = Search(date="2025-01-01", command="c", environment=MACHINE, threads=2, found=SearchRows(**rows))
    return ReorderResults(search=search)


def row(kind: str, ours: float, **more: Any) -> SearchRow:
    return SearchRow(**({"kind": kind, "name": f"a {kind}", "size": 512, "identity": 0.43, "ours": ours} | more))


def targets(found: ReorderResults) -> dict[str, Target]:
    return {target.text: target for target in check_reorder(found)}


def test_nothing_is_told_where_nothing_was_measured() -> None:
    assert reorder_sections(ReorderResults()) == ""
    assert {target.met for target in check_reorder(ReorderResults())} == {None}


def test_targets_are_checked_on_the_worst_matrix_or_the_mean() -> None:
    rows = [row("planted", 0.042), row("planted", 0.053), row("real", 0.24, seconds=3.0), row("real", 0.30)]
    rows += [row("control", 0.41, one_axis=0.42), row("time", 0.2, size=4096, seconds=50.0)]
    found = targets(
        results(rows=rows, assignments=[AssignmentRow(name="a", given=1.4, swaps=1.03, near=1.02, ours=1.0)])
    )
    assert found["planted tiles: masked share: at most 5.2 %"].miss == "0.10 %"
    assert found["1x1 convolutions of ppocr_rec: masked share, mean: at most 28 %"].measured == "27.00 %"
    assert found["controls: masked share, less than with one axis ordered alone by: at most 2 %"].measured == "1.00 %"
    assert found["M-step: masked salience over that of the best assignment: at most 1.01 x"].miss == "0.01 x"
    assert found["search of 512x512: seconds, the longest: at most 2 s"].miss == "1.00 s"
    assert found["search of 4096x4096: seconds, the longest: at most 60 s"].met


def test_tables_tell_every_search_and_what_was_not_run() -> None:
    rows = [row("planted", 0.05, optimum=0.042, unstructured=0.04, seconds=1.5)]
    panels = [PanelRow(name="layer", panels=2, band=8, identity=0.47, ours=0.4, runs=30, ordered_runs=2)]
    told = reorder_sections(results(rows=rows, panels=panels))
    assert "| a planted | 0.4300 | - | - | 0.0500 | 0.0420 | 0.0400 | - | 1.50 s |" in told
    assert "| layer | 2 | 8 | 0.4700 | 0.4000 | 30 -> 2 |" in told


def test_what_is_planted_is_there_and_what_is_shuffled_is_not() -> None:
    case = planted(64)
    assert case.optimum == pytest.approx(0.042, abs=0.003)
    measured = tile_search._row("planted", case)
    assert measured.ours == pytest.approx(case.optimum, rel=0.02)
    assert measured.swaps is not None
    assert measured.one_axis is not None
    assert measured.unstructured < measured.ours < measured.one_axis < measured.identity
    entries = shuffled(case).salience
    np.testing.assert_array_equal(np.sort(entries, axis=None), np.sort(case.salience, axis=None))
    assert tile_search._row("control", shuffled(case)).ours > 0.3


def test_no_order_costs_less_than_the_best_assignment() -> None:
    measured = tile_search._assignment(iid(96))
    assert measured.swaps is not None
    assert measured.given > measured.swaps >= 1.0 - 1e-12
    assert measured.given > measured.near >= 1.0 - 1e-12
    assert measured.ours == pytest.approx(1.0, abs=1e-9)


def test_panels_of_a_matrix_are_told_with_their_runs() -> None:
    found = list(tile_search._panel_rows(Case("a", iid(64).salience)))
    assert [(part.panels, part.band) for part in found] == [(p, b) for p in (1, 2, 4) for b in (8, 16)]
    assert all(part.ours <= part.identity and part.ordered_runs <= part.runs for part in found)
