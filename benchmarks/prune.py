"""Measure pruning: onnxcomp against onnxsim with its recoveries, and against magnitudes without reconstruction.

    python benchmarks/prune.py                                    # everything; leave the machine alone
    python benchmarks/prune.py --suites channels --models fashion,minilm
    python benchmarks/prune.py --suites channels --models fashion --entries onnxcomp-30    # these rows anew
    python benchmarks/prune.py --work DIR --reuse                 # what peers made there before is judged already
    python benchmarks/prune.py --render                           # the tables again, from PRUNE.json

Suites: ``channels`` (whole channels, at equal FLOPs), ``elements`` (single weights, 2:4, blocks) and ``costs`` (seconds
and memory, seconds on a large graph). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.entries import CHANNELS, ELEMENTS
from harness.prune_cost import MODEL, measure_discovery, measure_prune_costs
from harness.prune_results import PruneResults
from harness.zoo import ZooModel

HERE = Path(__file__).resolve().parent
SUITES = ("channels", "elements", "costs")
MODELS = ("fashion", "mnist", "mobilenetv2", "ppocr_rec", "minilm", "ppocr_det")
SAMPLES = 256  # of the peers, to calibrate on


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*CHANNELS, *ELEMENTS]
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(MODELS), default=list(MODELS), help="of the zoo")
    parser.add_argument("--entries", type=names_of(known), help="measure these rows alone, and keep the others")
    add_limits(parser, repeats=30, gigabytes=12, seconds=1800)
    options = parsed_with_reuse(parser)
    stored = HERE / "PRUNE.json"
    results = PruneResults.read(stored)
    if not options.render:
        models = models_asked(parser, options.models)
        with started(options, "prune.py", SAMPLES, weights=True) as bench:
            _measure(bench, options.suites, models, options.entries, results, stored)
    write_document(HERE / "RESULTS.md")
    return 0


def _measure(
    bench: Bench,
    suites: list[str],
    models: list[ZooModel],
    entries: list[str] | None,
    results: PruneResults,
    stored: Path,
) -> None:
    """Run the suites, and write what is there after each part."""
    for suite, known, sections in (
        ("channels", CHANNELS, results.channels),
        ("elements", ELEMENTS, results.elements),
    ):
        for model in models if suite in suites else ():
            asked = [known[name] for name in entries or known if name in known]
            suited = [entry for entry in asked if entry.suits(model, saturates=False)]
            bench.suite(suite, model, suited, sections, alone=entries is not None)
            results.write(stored)
    if "costs" in suites and entries is None and any(model.name == MODEL for model in models):
        results.discovery = measure_discovery(bench)
        results.costs = measure_prune_costs(bench)
        results.write(stored)


if __name__ == "__main__":
    sys.exit(main())
