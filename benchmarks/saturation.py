"""Show what 8-bit weights do on a CPU without VNNI, and that onnxcomp's results keep their answers there.

    python benchmarks/saturation.py            # prints the table
    python benchmarks/quant.py --suites saturation    # puts it into RESULTS.md

x86 CPUs without VNNI multiply 8-bit numbers with an instruction that adds two products in 16 bits and clips what
does not fit. A result may then answer otherwise than the same file without ONNX Runtime's fused kernels. On a CPU
with VNNI the other kind is emulated by qemu-user (Debian, Ubuntu: ``apt-get install qemu-user``, version 7.2 or
newer); without it this command says so and ends with status 1. It takes some two minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.bench import Bench, describe_environment
from harness.process import Limits
from harness.render_quant import saturation_section
from harness.saturation import emulator, measure_saturation

NO_EMULATOR = (
    "This CPU has VNNI, so nothing saturates on it, and qemu-x86_64 is not there to emulate another: "
    "install qemu-user, version 7.2 or newer (apt-get install qemu-user)."
)


def main() -> int:
    """Measure and print; returns the exit status."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    prefix = emulator()
    if prefix is None:
        print(NO_EMULATOR, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="onnxcomp-bench-") as scratch:
        work = Path(scratch)
        command = "python benchmarks/saturation.py"
        bench = Bench(1, 1, Limits(600, 8e9), work, command, describe_environment(work))
        print(saturation_section(measure_saturation(bench, prefix)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
