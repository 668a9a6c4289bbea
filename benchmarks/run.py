"""Measure onnxcomp and its peers on the zoo, and write the tables.

    python benchmarks/run.py                              # fashion, mobilenetv2, ppocr_rec, minilm
    python benchmarks/run.py --models fashion --entries onnxcomp-quant,ort-minmax
    python benchmarks/run.py --render                     # the tables again, from the JSON

Every entry runs as a process of its own. Then all of a model's results are judged on their full test set, and
timed against the fp32 original in turn, in one process with one thread. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.bench import add_limits, models_asked, names_of, started
from harness.document import write_document
from harness.entries import ENTRIES
from harness.results import Results
from harness.zoo import MODELS

HERE = Path(__file__).resolve().parent
SUITES = {"compile": ("fashion", "mobilenetv2", "ppocr_rec", "minilm"), "zoo": tuple(MODELS)}


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="compile", help="which models; default: compile")
    parser.add_argument("--models", type=names_of(MODELS), help=f"instead of a suite, any of {', '.join(MODELS)}")
    parser.add_argument("--entries", type=names_of(ENTRIES), default=list(ENTRIES), help="any of " + ", ".join(ENTRIES))
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="Markdown; the JSON goes beside it")
    add_limits(parser, repeats=100, gigabytes=8)
    options = parser.parse_args()
    stored = options.out.with_suffix(".json")
    results = Results.read(stored)
    if not options.render:
        models = models_asked(parser, options.models or SUITES[options.suite])
        with started(options, "run.py") as bench:
            for model in models:
                results.sections[model.name] = bench.section(model, [ENTRIES[name] for name in options.entries])
                results.write(stored)
    write_document(options.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
