"""Measure file sizes: packed models beside general archivers and the NNC standard.

    python benchmarks/size.py --nncodec ENV/bin/python    # everything; a Python that has nncodec, or leave it out
    python benchmarks/size.py --suites container --models fashion
    python benchmarks/size.py --render                    # the tables again, from SIZE.json

Suites: ``container`` (quantized, sparse and fp32 models as .onnxz, zstd -19, xz -9; their integer weights alone by
nncodec). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.size_container import FORMS, measure
from harness.size_results import ContainerSection, SizeResults
from harness.zoo import MODELS, ZooModel

HERE = Path(__file__).resolve().parent


def _container(bench: Bench, models: list[ZooModel], nncodec: str | None, results: SizeResults) -> None:
    for model in models:
        rows = [measure(bench, model, form, nncodec) for form in FORMS if form.suits(model)]
        results.container[model.name] = ContainerSection(
            date=time.strftime("%Y-%m-%d"), command=bench.command, environment=bench.environment, rows=rows
        )


SUITES: dict[str, Callable[[Bench, list[ZooModel], str | None, SizeResults], None]] = {"container": _container}


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(MODELS), default=list(MODELS), help="of the zoo")
    parser.add_argument("--nncodec", metavar="PYTHON", help="of an environment with the package nncodec")
    add_limits(parser, repeats=3, gigabytes=8, seconds=1800)
    options = parsed_with_reuse(parser)
    stored = HERE / "SIZE.json"
    results = SizeResults.read(stored)
    if not options.render:
        models = models_asked(parser, options.models)
        with started(options, "size.py") as found:
            bench = replace(found, command=found.command.replace(str(options.nncodec), "PYTHON"))
            for suite in options.suites:
                for model in models:
                    SUITES[suite](bench, [model], options.nncodec, results)
                    results.write(stored)
    write_document(HERE / "RESULTS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
