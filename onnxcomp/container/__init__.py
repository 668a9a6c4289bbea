"""Packed models (.onnxz): every weight entropy coded, restored bit for bit to the plain ONNX files."""
