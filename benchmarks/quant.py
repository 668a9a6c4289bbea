"""Measure quantization: onnxcomp against ONNX Runtime, onnxsim, NNCF and AMD Quark at their best settings.

    python benchmarks/quant.py                                    # everything; leave the machine alone
    python benchmarks/quant.py --suites eight --models fashion,mobilenetv2
    python benchmarks/quant.py --suites eight --models fashion --entries onnxcomp-quant    # these rows anew
    python benchmarks/quant.py --render                           # the tables again, from QUANT.json

Suites: ``eight`` (8-bit weights and activations), ``four`` (4-bit weights), ``costs`` (seconds and memory of the
calibration) and ``saturation`` (the same results on a CPU without VNNI). See README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.bench import Bench, add_limits, models_asked, names_of, say, started
from harness.calibration_cost import measure_costs
from harness.document import write_document
from harness.entries import EIGHT_BITS, FOUR_BITS
from harness.quant_results import QuantResults
from harness.saturation import emulator, measure_saturation
from harness.zoo import ZooModel

from onnxcomp.runtime.target import Target

HERE = Path(__file__).resolve().parent
SUITES = ("eight", "four", "costs", "saturation")
MODELS = ("fashion", "mnist", "mobilenetv2", "ppocr_rec", "minilm", "ppocr_cls", "ppocr_det")
SAMPLES = 128  # of the peers, to calibrate on
NO_EMULATOR = "saturation: left out, this CPU has VNNI and there is no qemu-x86_64; see benchmarks/saturation.py"


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*EIGHT_BITS, *FOUR_BITS]
    parser.add_argument("--suites", type=names_of(SUITES), default=list(SUITES), help=f"of {', '.join(SUITES)}")
    parser.add_argument("--models", type=names_of((*MODELS, "silero_vad")), default=list(MODELS), help="of the zoo")
    parser.add_argument("--entries", type=names_of(known), help="measure these rows alone, and keep the others")
    add_limits(parser, repeats=30, gigabytes=12)
    options = parser.parse_args()
    stored = HERE / "QUANT.json"
    results = QuantResults.read(stored)
    if not options.render:
        models = models_asked(parser, options.models)
        with started(options, "quant.py", SAMPLES, unfused=True) as bench:
            _measure(bench, options.suites, models, options.entries, results, stored)
    write_document(HERE / "RESULTS.md")
    return 0


def _measure(
    bench: Bench,
    suites: list[str],
    models: list[ZooModel],
    entries: list[str] | None,
    results: QuantResults,
    stored: Path,
) -> None:
    """Run the suites, and write what is there after each part."""
    saturates = Target.host().int8_saturates
    for suite, known, sections in (
        ("eight", EIGHT_BITS, results.eight_bits),
        ("four", FOUR_BITS, results.four_bits),
    ):
        for model in models if suite in suites else ():
            asked = [known[name] for name in entries or known if name in known]
            suited = [entry for entry in asked if entry.suits(model, saturates)]
            bench.suite(suite, model, suited, sections, alone=entries is not None)
            results.write(stored)
    if entries is not None:
        return
    if "costs" in suites and any(model.name == "mobilenetv2" for model in models):
        results.costs = measure_costs(bench)
        results.write(stored)
    if "saturation" in suites:
        prefix = emulator()
        if prefix is None:
            say(NO_EMULATOR)
            return
        results.saturation = measure_saturation(bench, prefix)
        results.write(stored)


if __name__ == "__main__":
    sys.exit(main())
