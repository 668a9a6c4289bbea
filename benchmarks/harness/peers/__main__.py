"""Make one compressed model with a peer.

python -m harness.peers NAME MODEL CALIBRATION OUTPUT [--samples N]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from harness.peers import PEERS, Task

SAMPLES = 256  # histograms of ONNX Runtime take 128 at most


def main() -> None:
    """Parse the command line and make one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    output = options.output.resolve()
    scratch = output.parent.with_suffix(".scratch")  # outside of the output's folder, whose size is the model's
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    task = Task(options.model.resolve(), options.calibration.resolve(), output, options.samples)
    with contextlib.chdir(scratch):  # some tools leave files in the current folder
        PEERS[options.name].make(task)


if __name__ == "__main__":
    main()
