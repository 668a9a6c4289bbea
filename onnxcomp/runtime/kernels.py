"""Which operators ONNX Runtime makes of a model when it loads it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnxruntime as ort

from onnxcomp.files import scratch_folder
from onnxcomp.runtime.session import Loadable, open_session
from onnxcomp.storage.messages import proto_graphs

__all__ = ["Kernel", "optimized_kernels"]

_FATAL = 4

# The optimized model is written without its weights, which may be too many for one file.
_APART = {
    "session.optimized_model_external_initializers_file_name": "weights",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


@dataclass(frozen=True)
class Kernel:
    """A node of the optimized graph, or of a body in it."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def optimized_kernels(model: Loadable, threads: int = 1) -> list[Kernel]:
    """The nodes, in bodies too, after all of ONNX Runtime's optimizations on this machine, in order.

    Raises:
        InputError: ONNX Runtime refuses the model, or there is no room for its weights in temporary files.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    with scratch_folder() as folder:
        path = folder / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        for key, value in _APART.items():
            options.add_session_config_entry(key, value)
        open_session(model, options)
        graph = onnx.load_model(path, load_external_data=False).graph
    return [
        Kernel(node.op_type, node.name, tuple(node.input), tuple(node.output))
        for nested in proto_graphs(graph)
        for node in nested.node
    ]
