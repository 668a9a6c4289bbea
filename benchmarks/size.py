"""Measure what makes files small: codebooks, low-rank products, and packed models.

    python benchmarks/size.py --nncodec ENV/bin/python    # everything; a Python that has nncodec, or leave it out
    python benchmarks/size.py --suites share --models fashion --entries onnxcomp-share
    python benchmarks/size.py --suites container --models fashion
    python benchmarks/size.py --render                    # the tables again, from SIZE.json

Suites: ``share`` (codebooks, beside onnxsim's k-means), ``factorize`` (low-rank products that come close to what layers
give, beside those that come close to their weights), ``container`` (quantized, sparse and fp32 models as .onnxz, zstd
-19, xz -9; their integer weights alone by nncodec). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.size_container import FORMS, measure
from harness.size_entries import FACTORED, SHARED
from harness.size_results import ContainerSection, SizeResults
from harness.zoo import MODELS, ZooModel

HERE = Path(__file__).resolve().parent
_ROUNDS = 3  # of packing and restoring, at most
ENTRIES = {"share": SHARED, "factorize": FACTORED}
SUITES = (*ENTRIES, "container")
OF_SUITE = {
    "share": ("fashion", "ppocr_rec", "minilm", "mobilenetv2"),
    "factorize": ("fashion", "ppocr_rec", "minilm"),
    "container": tuple(MODELS),
}


def _measure(suite: str, bench: Bench, model: ZooModel, options: argparse.Namespace, results: SizeResults) -> None:
    if suite == "container":
        bench = replace(bench, repeats=min(bench.repeats, _ROUNDS))
        rows = [measure(bench, model, form, options.nncodec) for form in FORMS if form.suits(model)]
        results.container[model.name] = ContainerSection(
            date=time.strftime("%Y-%m-%d"), command=bench.command, environment=bench.environment, rows=rows
        )
        return
    entries = ENTRIES[suite]
    names = [name for name in options.entries or entries if name in entries]
    asked = [entries[name] for name in names if entries[name].suits(model, saturates=False)]
    bench.suite(suite, model, asked, getattr(results, suite), alone=options.entries is not None)


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(MODELS), default=list(MODELS), help="of the zoo")
    rows = {**SHARED, **FACTORED}
    parser.add_argument("--entries", type=names_of(rows), help="measure these rows alone, and keep the others")
    parser.add_argument("--nncodec", metavar="PYTHON", help="of an environment with the package nncodec")
    add_limits(parser, repeats=30, gigabytes=12, seconds=1800)
    options = parsed_with_reuse(parser)
    stored = HERE / "SIZE.json"
    results = SizeResults.read(stored)
    if not options.render:
        models_asked(parser, options.models)
        with started(options, "size.py", weights=True) as found:
            bench = replace(found, command=found.command.replace(str(options.nncodec), "PYTHON"))
            for suite in options.suites:
                for model in models_asked(parser, [name for name in OF_SUITE[suite] if name in options.models]):
                    _measure(suite, bench, model, options, results)
                    results.write(stored)
    write_document(HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
