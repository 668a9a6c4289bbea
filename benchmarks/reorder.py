"""Measure reordering: how good and how fast tile matching is, beside the paper's swaps.

    python benchmarks/reorder.py                      # everything; leave the machine alone
    python benchmarks/reorder.py --suites search
    python benchmarks/reorder.py --suites tiles --models fashion --entries onnxcomp-tiles-half
    python benchmarks/reorder.py --render             # the tables again, from REORDER.json

Suites: ``search`` (shares that are masked and seconds, on single matrices), ``tiles`` (models that lose tiles, beside
channel pruning that is as fast, and blocks of the same density in place). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.entries import TILES
from harness.reorder_results import ReorderResults
from harness.tile_search import measure_search
from harness.zoo import ZooModel

HERE = Path(__file__).resolve().parent


def _search(bench: Bench, models: list[ZooModel], entries: list[str] | None, results: ReorderResults) -> None:
    if entries is None and models:
        results.search = measure_search(replace(bench, threads=2))


def _tiles(bench: Bench, models: list[ZooModel], entries: list[str] | None, results: ReorderResults) -> None:
    for model in models:
        asked = [TILES[name] for name in entries or TILES if TILES[name].suits(model, saturates=False)]
        bench.suite("tiles", model, asked, results.tiles, alone=entries is not None)


SUITES: dict[str, Callable[[Bench, list[ZooModel], list[str] | None, ReorderResults], None]] = {
    "search": _search,
    "tiles": _tiles,
}
MODELS = {"search": ("ppocr_rec",), "tiles": ("fashion", "ppocr_rec", "minilm")}  # of the zoo, that a suite needs


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted({name for names in MODELS.values() for name in names})
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(every), default=every, help="of the zoo")
    parser.add_argument("--entries", type=names_of(TILES), help="measure these rows alone, and keep the others")
    add_limits(parser, repeats=30, gigabytes=12, seconds=1800)
    options = parsed_with_reuse(parser)
    stored = HERE / "REORDER.json"
    results = ReorderResults.read(stored)
    if not options.render:
        models_asked(parser, options.models)
        with started(options, "reorder.py", weights=True) as bench:
            for suite in options.suites:
                models = models_asked(parser, [name for name in MODELS[suite] if name in options.models])
                SUITES[suite](bench, models, options.entries, results)
                results.write(stored)
    write_document(HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
