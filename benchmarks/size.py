"""Measure what makes weights fewer: codebooks and low-rank products.

    python benchmarks/size.py                      # everything; leave the machine alone
    python benchmarks/size.py --suites share --models fashion --entries onnxcomp-share
    python benchmarks/size.py --render             # the tables again, from SIZE.json

Suites: ``share`` (codebooks, beside onnxsim's k-means), ``factorize`` (low-rank products that come close to what layers
give, beside those that come close to their weights). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.bench import add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.size_entries import FACTORED, SHARED
from harness.size_results import SizeResults

HERE = Path(__file__).resolve().parent
SUITES = {"share": SHARED, "factorize": FACTORED}
MODELS = {"share": ("fashion", "ppocr_rec", "minilm", "mobilenetv2"), "factorize": ("fashion", "ppocr_rec", "minilm")}


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted({name for names in MODELS.values() for name in names})
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(every), default=every, help="of the zoo")
    rows = {**SHARED, **FACTORED}
    parser.add_argument("--entries", type=names_of(rows), help="measure these rows alone, and keep the others")
    add_limits(parser, repeats=30, gigabytes=12, seconds=1800)
    options = parsed_with_reuse(parser)
    stored = HERE / "SIZE.json"
    results = SizeResults.read(stored)
    if not options.render:
        models_asked(parser, options.models)
        with started(options, "size.py", weights=True) as bench:
            for suite in options.suites:
                sections = getattr(results, suite)
                for model in models_asked(parser, [name for name in MODELS[suite] if name in options.models]):
                    names = [name for name in options.entries or SUITES[suite] if name in SUITES[suite]]
                    asked = [entry for name in names if (entry := SUITES[suite][name]).suits(model, saturates=False)]
                    bench.suite(suite, model, asked, sections, alone=options.entries is not None)
                    results.write(stored)
    write_document(HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
