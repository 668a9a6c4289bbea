"""Measure reordering: how good and how fast tile matching is, beside the paper's swaps.

    python benchmarks/reorder.py                      # everything; leave the machine alone
    python benchmarks/reorder.py --suites search
    python benchmarks/reorder.py --render             # the tables again, from REORDER.json

Suites: ``search`` (shares that are masked and seconds, on single matrices). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, started
from harness.document import write_document
from harness.reorder_results import ReorderResults
from harness.tile_search import measure_search

HERE = Path(__file__).resolve().parent


def _search(bench: Bench, results: ReorderResults) -> None:
    results.search = measure_search(bench)


SUITES: dict[str, Callable[[Bench, ReorderResults], None]] = {"search": _search}
MODELS = {"search": ("ppocr_rec",)}  # of the zoo, that a suite needs


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    add_limits(parser, repeats=30, gigabytes=12, seconds=1800)
    parser.set_defaults(threads=2)
    options = parser.parse_args()
    stored = HERE / "REORDER.json"
    results = ReorderResults.read(stored)
    if not options.render:
        models_asked(parser, dict.fromkeys(name for suite in options.suites for name in MODELS[suite]))
        with started(options, "reorder.py") as bench:
            for suite in options.suites:
                SUITES[suite](bench, results)
                results.write(stored)
    write_document(HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
