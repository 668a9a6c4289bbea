"""Mutations of a model's message: each breaks, or merely strains, one rule of the format.

A mutation is a function of a random generator and a message, which it changes in place. It raises ``NotHereError``
where the message has nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

__all__ = ["STRUCTURAL", "Mutation", "NotHereError", "all_nodes", "all_tensors", "pick"]

Mutation = Callable[[np.random.Generator, onnx.ModelProto], None]

HUGE = (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
ODD = (0, -1, -2, -(2**31), -(2**63), 1, 3, *HUGE)
TYPES = [0, *range(1, 27), 99, -1, 2**31 - 1]
NAMES = (
    "", " ", "x", "y", "a\x00b", "a\nb\x1b[31mred", "é" * 50, "n" * 70_000, "/", "..", "__import__('os')",
    "%s%n", "[bold]",
)  # fmt: skip
OPS = (
    "", "Nope", "Loop", "Identity", "Conv", "MatMul", "Constant", "If", "Concat", "Reshape", "Squeeze", "Cast", "Split",
    "Gather", "LSTM", "QuantizeLinear", "SequenceAt", "Optional", "StringSplit", "Einsum", "BatchNormalization", "STFT",
    "NonMaxSuppression", "Resize", "RandomNormal", "CumSum", "ScatterND", "GridSample", "DFT", "Unique",
)  # fmt: skip
DOMAINS = (
    "", "ai.onnx", "ai.onnx.ml", "com.microsoft", "ai.onnx.training", "org.example", "os.system", "../..", "\x00",
)  # fmt: skip


class NotHereError(Exception):
    """The message has no part of the kind that is to be changed."""


def pick(rng: np.random.Generator, items: Any) -> Any:
    """One of them, at random."""
    items = list(items)
    if not items:
        raise NotHereError
    return items[int(rng.integers(len(items)))]


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def all_graphs(proto: onnx.ModelProto) -> list[Any]:
    """The main graph, bodies and functions."""
    return [graph for root in (proto.graph, *proto.functions) for graph in _graphs(root)]


def all_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes of the main graph, of bodies and of functions."""
    return [node for graph in all_graphs(proto) for node in graph.node]


def all_tensors(proto: onnx.ModelProto) -> list[TensorProto]:
    """Initializers and tensor attributes."""
    found = [t for graph in all_graphs(proto) if hasattr(graph, "initializer") for t in graph.initializer]
    return found + [a.t for node in all_nodes(proto) for a in node.attribute if a.type == AttributeProto.TENSOR]


def _attributes(proto: onnx.ModelProto) -> list[AttributeProto]:
    return [attribute for node in all_nodes(proto) for attribute in node.attribute]


def _values(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graphs = [graph for graph in all_graphs(proto) if hasattr(graph, "input") and hasattr(graph, "initializer")]
    return [value for graph in graphs for value in (*graph.input, *graph.output, *graph.value_info)]


# -- tensors ---------------------------------------------------------------------------------------------------


def tensor_dims(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Dimensions that are absurd, negative, or whose product overflows."""
    tensor = pick(rng, all_tensors(proto))
    how = int(rng.integers(5))
    if how == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = pick(rng, ODD)
    elif how == 1:
        tensor.dims.append(pick(rng, ODD))
    elif how == 2:
        del tensor.dims[:]
    elif how == 3:
        tensor.dims[:] = [2**32, 2**32, 1]  # 0 in 64 bits
    else:
        tensor.dims.extend([1] * int(pick(rng, (5, 30, 64, 1000))))


def tensor_type(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    pick(rng, all_tensors(proto)).data_type = pick(rng, TYPES)


def tensor_bytes(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Too few or too many bytes of data."""
    tensor = pick(rng, [tensor for tensor in all_tensors(proto) if tensor.raw_data])
    data = tensor.raw_data
    tensor.raw_data = pick(rng, (data[:-1], data + b"\0", data * 2, b"", data[: len(data) // 2]))


def tensor_fields(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Data in a field of another type, in two fields, or in segments."""
    tensor = pick(rng, all_tensors(proto))
    how = int(rng.integers(5))
    if how == 0:
        tensor.float_data.extend([1.0, 2.0])
    elif how == 1:
        tensor.ClearField("raw_data")
        tensor.int64_data.extend([1, 2**63 - 1])
    elif how == 2:
        tensor.ClearField("raw_data")
        tensor.string_data.extend([b"\xff\xfe", b"a"])
    elif how == 3:
        tensor.segment.begin, tensor.segment.end = 5, 2
    else:
        tensor.data_location = TensorProto.EXTERNAL


def weights_not_finite(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    tensor = pick(rng, [t for t in all_tensors(proto) if t.data_type == TensorProto.FLOAT and len(t.raw_data) >= 4])
    values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], np.float32).copy()
    bad = pick(rng, (np.nan, np.inf, -np.inf, 3e38, 1e-45))
    values[slice(None) if rng.random() < 0.3 else int(rng.integers(values.size))] = bad
    tensor.raw_data = values.tobytes()


def integers_changed(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Integers that say how large something is: axes, shapes, lengths, trip counts."""
    tensor = pick(rng, [t for t in all_tensors(proto) if t.data_type == TensorProto.INT64 and t.raw_data])
    values = np.frombuffer(tensor.raw_data, np.int64).copy()
    values[int(rng.integers(values.size))] = pick(rng, ODD)
    tensor.raw_data = values.tobytes()


# -- graphs ----------------------------------------------------------------------------------------------------


def duplicates(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """The same initializer, node, value, function or output twice."""
    graph = pick(rng, all_graphs(proto))
    field = pick(rng, ("initializer", "node", "value_info", "input", "output"))
    items = getattr(graph, field, None)
    if not items or not hasattr(items, "add"):
        items = proto.functions or proto.opset_import
    items.append(pick(rng, items))


def cycle(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    graph = pick(rng, [graph for graph in all_graphs(proto) if graph.node])
    first, last = sorted(int(rng.integers(len(graph.node))) for _ in range(2))
    if not graph.node[first].input or not graph.node[last].output:
        raise NotHereError
    graph.node[first].input[int(rng.integers(len(graph.node[first].input)))] = graph.node[last].output[0]


def producer_removed(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    graph = pick(rng, all_graphs(proto))
    fields = [getattr(graph, field) for field in ("node", "initializer", "input", "output") if hasattr(graph, field)]
    items = pick(rng, [field for field in fields if field])
    del items[int(rng.integers(len(items)))]


def order_of_nodes(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    graph = pick(rng, [graph for graph in all_graphs(proto) if len(graph.node) > 1])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[int(index)] for index in rng.permutation(len(nodes)))


def names(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """An empty, strange or very long name of anything."""
    items = [*all_nodes(proto), *all_tensors(proto), *_values(proto), *proto.functions, proto.graph]
    pick(rng, items).name = pick(rng, NAMES)


def edges(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """A node reads or gives another tensor, none, or too many."""
    node = pick(rng, all_nodes(proto))
    tensors = [name for other in all_nodes(proto) for name in (*other.input, *other.output)]
    field = node.input if rng.random() < 0.6 else node.output
    how = int(rng.integers(4))
    if how == 0 and field:
        del field[int(rng.integers(len(field)))]
    elif how == 1:
        field.extend([pick(rng, tensors)] * int(pick(rng, (1, 2, 500))))
    elif field:
        field[int(rng.integers(len(field)))] = pick(rng, (*NAMES, pick(rng, tensors), pick(rng, tensors)))


def operators(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    node = pick(rng, all_nodes(proto))
    if rng.random() < 0.7:
        node.op_type = pick(rng, OPS)
    else:
        node.domain = pick(rng, DOMAINS)


def attributes(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Missing, repeated, of another type, huge, or a reference to a function's attribute outside of one."""
    node = pick(rng, [node for node in all_nodes(proto) if node.attribute])
    index = int(rng.integers(len(node.attribute)))
    attribute = node.attribute[index]
    how = int(rng.integers(6))
    if how == 0:
        del node.attribute[index]
    elif how == 1:
        node.attribute.append(attribute)
    elif how == 2:
        attribute.type = pick(rng, (*range(15), 99))
    elif how == 3:
        attribute.ref_attr_name = pick(rng, NAMES)
    elif how == 4:
        value = pick(rng, (0, -1, 2**63 - 1, 1e38, float("nan"), b"\xff\xfe", "text", [1, 2**40], [0.5], ["a"] * 5))
        node.attribute[index].CopyFrom(helper.make_attribute(attribute.name, value))
    else:
        attribute.name = pick(rng, NAMES)


def attribute_numbers(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    attribute = pick(rng, [attribute for attribute in _attributes(proto) if attribute.ints or attribute.HasField("i")])
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = pick(rng, ODD)
    else:
        attribute.i = pick(rng, ODD)


def declared(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Types and shapes of inputs, outputs and values."""
    value = pick(rng, _values(proto))
    tensor = value.type.tensor_type
    how = int(rng.integers(6))
    if how == 0:
        tensor.elem_type = pick(rng, TYPES)
    elif how == 1 and tensor.shape.dim:
        pick(rng, tensor.shape.dim).dim_value = pick(rng, ODD)
    elif how == 2 and tensor.shape.dim:
        pick(rng, tensor.shape.dim).dim_param = pick(rng, NAMES)
    elif how == 3:
        for _ in range(int(pick(rng, (1, 3, 100)))):
            tensor.shape.dim.add().dim_value = pick(rng, (1, 2, 2**31))
    elif how == 4:
        value.type.Clear()
    else:
        value.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [2])))


# -- the header ------------------------------------------------------------------------------------------------


def versions(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Opset imports that are missing, repeated, 0 or of the future; likewise the format's version."""
    how = int(rng.integers(6))
    if how == 0:
        del proto.opset_import[:]
    elif how == 1:
        proto.opset_import.append(helper.make_opsetid("", int(pick(rng, (1, 7, 13, 26)))))
    elif how == 2:
        proto.opset_import[0].version = pick(rng, (*ODD, 1, 6, 7, 11, 13, 25))
    elif how == 3:
        proto.opset_import[0].domain = pick(rng, DOMAINS)
    elif how == 4:
        proto.ir_version = pick(rng, (*ODD, 1, 2, 3, 5, 11))
    else:
        proto.ClearField("ir_version")


def text(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Control characters and things that look like code where people write prose."""
    word = pick(rng, NAMES)
    proto.producer_name = proto.domain = proto.doc_string = proto.graph.doc_string = word
    proto.metadata_props.add(key=word, value="onnxcomp.passes: os:system")
    pick(rng, all_nodes(proto)).doc_string = word


def fields(rng: np.random.Generator, proto: onnx.ModelProto) -> None:
    """Parts that most tools never see: sparse initializers, annotations, training, functions of the same name."""
    graph, how = proto.graph, int(rng.integers(5))
    if how == 0 and graph.initializer:
        values = pick(rng, graph.initializer)
        indices = helper.make_tensor("", TensorProto.INT64, [2], [-1, 2**62])
        graph.sparse_initializer.add(values=values, indices=indices, dims=[pick(rng, ODD), 4])
    elif how == 1:
        note = graph.quantization_annotation.add(tensor_name="x")
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="missing")
    elif how == 2:
        proto.training_info.add().algorithm.CopyFrom(graph)
    elif how == 3:
        op = pick(rng, all_nodes(proto))
        function = helper.make_function(op.domain, op.op_type, list("ab"), ["c"], [], list(proto.opset_import))
        proto.functions.append(function)
    else:
        proto.ClearField(pick(rng, ("graph", "functions", "opset_import")))


STRUCTURAL: tuple[Mutation, ...] = (
    tensor_dims, tensor_type, tensor_bytes, tensor_fields, weights_not_finite, integers_changed, duplicates, cycle,
    producer_removed, order_of_nodes, names, edges, operators, attributes, attribute_numbers, declared, versions, text,
    fields,
)  # fmt: skip
