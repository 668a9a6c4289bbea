"""Write the first output of a model for some samples; it imports little, because it may run in an emulator.

python -m harness.outputs MODEL SAMPLES OUTPUT COUNT [--plain]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort

BATCH = 16


def main() -> None:
    """Parse the command line, run the model and write the array."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--plain", action="store_true", help="without ONNX Runtime's optimizations")
    options = parser.parse_args()
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    if options.plain:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(options.samples) as stored:
        values = stored[name][: options.count]
    parts = [session.run(None, {name: values[at : at + BATCH]})[0] for at in range(0, len(values), BATCH)]
    np.save(options.output, np.concatenate(parts))


if __name__ == "__main__":
    main()
