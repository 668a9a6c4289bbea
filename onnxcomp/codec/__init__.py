"""Between ONNX protobufs and graphsurgeon graphs, without loss."""

from onnxcomp.codec.convert import constants, export_model, import_model
from onnxcomp.codec.scopes import all_graphs, nested_graphs

__all__ = ["all_graphs", "constants", "export_model", "import_model", "nested_graphs"]
