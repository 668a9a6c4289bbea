"""Everything that touches ONNX Runtime: sessions, observed values, measured time, the target machine."""
