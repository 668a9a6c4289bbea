"""Measure training: onnxcomp's pass ``recover`` against torch's steps, and against onnxsim's fine-tuning.

    python models/fetch.py --training fashion mobilenetv2
    python benchmarks/recover.py                          # everything; leave the machine alone
    python benchmarks/recover.py --suites steps
    python benchmarks/recover.py --suites recovery --models fashion --entries onnxcomp-recover-zeros
    python benchmarks/recover.py --work DIR --reuse       # what peers made there before is judged already
    python benchmarks/recover.py --render                 # the tables again, from RECOVER.json

Suites: ``steps`` (time and memory of a training step, error of its gradients) and ``recovery`` (what training wins back
after pruning, zeros and few bits). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, parsed_with_reuse, started
from harness.document import write_document
from harness.entries import RECOVERY
from harness.recover_results import RecoverResults
from harness.steps import BATCHES, measure_steps
from harness.zoo import ZooModel, samples_in

HERE = Path(__file__).resolve().parent
SUITES = ("steps", "recovery")
CORES = 2  # of an entry's process


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of(BATCHES), default=list(BATCHES), help="of the zoo")
    parser.add_argument("--entries", type=names_of(RECOVERY), help="measure these rows alone, and keep the others")
    add_limits(parser, repeats=30, gigabytes=12, seconds=3600)
    parser.set_defaults(threads=2)
    options = parsed_with_reuse(parser)
    stored = HERE / "RECOVER.json"
    results = RecoverResults.read(stored)
    if not options.render:
        models = models_asked(parser, options.models)
        absent = [model.name for model in models if not model.training_data.is_file()]
        if absent and "recovery" in options.suites:
            names = " ".join(absent)
            parser.error(f"nothing to train on: {names}; run python models/fetch.py --training {names}")
        with started(options, "recover.py", weights=True, cores=CORES) as bench:
            _measure(bench, options.suites, models, options.entries, results, stored)
    write_document(HERE / "RESULTS.md")
    return 0


def _measure(
    bench: Bench,
    suites: list[str],
    models: list[ZooModel],
    entries: list[str] | None,
    results: RecoverResults,
    stored: Path,
) -> None:
    """Run the suites, and write what is there after each part."""
    for model in models if "steps" in suites and entries is None else ():
        results.steps[model.name] = measure_steps(bench, model.name)
        results.write(stored)
    for model in models if "recovery" in suites else ():
        asked = [RECOVERY[name] for name in entries or RECOVERY]
        suited = [entry for entry in asked if entry.suits(model, saturates=False)]
        replace(bench, threads=1).suite("recovery", model, suited, results.recovery, alone=entries is not None)
        if model.name in results.recovery:
            results.recovery[model.name].calibration_samples = samples_in(model.training_data)
        results.write(stored)


if __name__ == "__main__":
    sys.exit(main())
