"""Between ONNX protobufs and graphsurgeon graphs, without loss.

graphsurgeon is the editing surface, not the codec: on its own it forgets documentation, metadata, denotations,
attribute kinds it has no type for, initializers that nothing reads or that are graph inputs, and the order of
initializers. So every graphsurgeon object is tagged with what it came from (see ``sidecar`` and ``origins``), and what
graphsurgeon drops is laid over its export (see ``overlay``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcomp.codec.origins import function_origin_of, graph_origin_of
from onnxcomp.codec.overlay import overlay_function, overlay_graph
from onnxcomp.codec.scopes import nested_graphs
from onnxcomp.codec.sidecar import SideCar, forget_undeclared
from onnxcomp.storage.mapped import Mapped, Table
from onnxcomp.storage.messages import lay_over, shell
from onnxcomp.storage.payload import Payload
from onnxcomp.storage.skeleton import Skeleton, is_reference, referred

__all__ = ["constants", "export_model", "import_model"]

# graphsurgeon reports what it cannot hold as warnings on stderr; here that is carried over instead.
G_LOGGER.severity = G_LOGGER.ERROR

_MODEL_OWNED = ("ir_version", "producer_name", "producer_version")
_MIN_IR_FOR_FREE_INITIALIZERS = 4  # before it, every initializer had to be a graph input too


def import_model(proto: onnx.ModelProto, table: Table) -> tuple[gs.Graph, onnx.ModelProto]:
    """The graph to edit, and the header: everything of the model that the graph does not hold.

    ``proto`` is taken over: the graph refers to its tensors, and what graphsurgeon cannot hold is moved out of it.
    Its references are of ``table``.
    """
    header = shell(proto, without=("graph", "functions", "opset_import"))
    aside = SideCar.take(proto)
    graph = gs.import_onnx(proto)
    aside.attach(graph)
    vars(graph)["ir_as_imported"] = proto.ir_version
    for tensor in constants(graph):
        if isinstance(tensor._values.tensor, onnx.TensorProto) and is_reference(tensor._values.tensor):
            tensor._values = Mapped(tensor._values.tensor, table[referred(tensor._values.tensor)])
    return graph, header


def export_model(graph: gs.Graph, header: onnx.ModelProto, table: Table) -> Skeleton:
    """A new model of what the graph holds now, with the header and every tag laid over it."""
    payloads = table.start()
    with _encoded(graph, table, payloads):
        exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    lay_over(header, exported, owned=_MODEL_OWNED)
    forget_undeclared(graph, exported)
    for function, function_proto in zip(graph.functions, exported.functions, strict=True):
        overlay_function(function, function_origin_of(function), function_proto)
        forget_undeclared(function, function_proto)
    overlay_graph(graph, exported.graph)
    inputs = {value.name for value in exported.graph.input} | _bare_initializers(graph)
    if exported.ir_version < _MIN_IR_FOR_FREE_INITIALIZERS and any(
        tensor.name not in inputs for tensor in exported.graph.initializer
    ):
        exported.ir_version = _MIN_IR_FOR_FREE_INITIALIZERS
    if vars(graph).get("ir_as_imported", exported.ir_version) < _MIN_IR_FOR_FREE_INITIALIZERS:
        _free_initializers(exported)
    return Skeleton(exported, payloads)


def _bare_initializers(graph: gs.Graph) -> set[str]:
    """Initializers that were no inputs in the file, whatever its version said of them."""
    origin = graph_origin_of(graph)
    return set() if origin is None else set(origin.initializer_order) - {value.name for value in origin.inputs}


def _free_initializers(exported: onnx.ModelProto) -> None:
    """Where a newer IR says so, an initializer that is an input is a default that a caller may override, and the
    runtime optimizes nothing behind it; in the model's own IR, being an input meant nothing."""
    if exported.ir_version < _MIN_IR_FOR_FREE_INITIALIZERS:
        return
    initializers = {tensor.name for tensor in exported.graph.initializer}
    for index in reversed(range(len(exported.graph.input))):
        if exported.graph.input[index].name in initializers:
            del exported.graph.input[index]


# -- weights -----------------------------------------------------------------------------------------------


@contextmanager
def _encoded(graph: gs.Graph, table: Table, payloads: list[Payload]) -> Iterator[None]:
    """Constants that graphsurgeon would copy or write wrongly stand encoded while it writes.

    It has no encoding for strings and types under a byte and a wrong one for a float8 type, it writes the name
    of a constant into the message of its value, which two constants may share, and not the name of a sparse one.
    """
    swapped: list[tuple[gs.Constant, Any]] = []
    owners: dict[int, gs.Constant] = {}
    try:
        for tensor in constants(graph):
            values = tensor._values
            message = None
            if isinstance(values, np.ndarray):
                message = table.encoded(tensor, payloads)
            elif owners.setdefault(id(values.tensor), tensor) is not tensor:
                message = type(values.tensor).FromString(values.tensor.SerializeToString())
            if isinstance(values, SparseValues):
                (values.tensor if message is None else message).values.name = tensor.name
            if message is not None:
                swapped.append((tensor, values))
                sparse = isinstance(message, onnx.SparseTensorProto)
                tensor._values = (SparseValues if sparse else LazyValues)(message)
        yield
    finally:
        for tensor, values in swapped:
            tensor._values = values


def constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Every constant of the graph, its bodies, its functions and their attributes, each once."""
    seen: set[int] = set()
    for root in (graph, *graph.functions):
        for nested in nested_graphs(root):
            candidates = [*nested.inputs, *nested.outputs]
            for node in nested.nodes:
                candidates += [*node.inputs, *node.attrs.values()]
            for tensor in candidates:
                if isinstance(tensor, gs.Constant) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor
