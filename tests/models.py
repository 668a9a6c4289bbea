"""Models with the features that a careless tool loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def tensor(name: str, *shape: int, seed: int = 0) -> TensorProto:
    values = np.random.default_rng([seed, len(name), *shape]).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def note(message: Any, **properties: str) -> None:
    """Set metadata_props."""
    for key, value in properties.items():
        message.metadata_props.add(key=key, value=value)


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(graph: onnx.GraphProto, opset: int = 18, ir_version: int = 10, **more: Any) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="maker", **more)


def documented() -> onnx.ModelProto:
    """Documentation, metadata, versions, dimensions and annotations wherever the format has a place for them."""
    first = helper.make_node("MatMul", ["x", "w"], ["h"], name="first", doc_string="the first layer")
    second = helper.make_node("Add", ["h", "b"], ["y"], name="second")
    note(first, layer="1")
    given, made = value("x", "batch", 4), value("y", "batch", 3)
    given.doc_string = "pixels"
    given.type.denotation = "IMAGE"
    given.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    hidden = value("h", None, 3)
    note(hidden, stage="hidden")
    weight, bias = tensor("w", 4, 3), tensor("b", 3)
    weight.doc_string = "the weight"
    graph = helper.make_graph([first, second], "main", [given], [made], [bias, weight], "the graph", [hidden])
    note(graph, purpose="test")
    mark = graph.quantization_annotation.add(tensor_name="h")
    mark.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    proto = model_of(graph, doc_string="a model", domain="org.example", model_version=7)
    proto.producer_version = "1.2.3"
    note(proto, author="somebody", licence="none")
    return proto


def several_opsets() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("FusedMatMul", ["x", "w"], ["h"], domain="com.microsoft", alpha=0.5),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "main",
        [value("x", "N", 4)],
        [value("y", "N", 3)],
        [tensor("w", 4, 3)],
    )
    proto = model_of(graph)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return proto


def overloaded_functions() -> onnx.ModelProto:
    """Two functions of one name and domain, told apart by their overload."""
    opsets = [helper.make_opsetid("", 18)]
    functions = []
    for overload, op in (("up", "Exp"), ("down", "Neg")):
        body = helper.make_node(op, ["a"], ["r"], doc_string=f"does {op}")
        function = helper.make_function("org.example", "act", ["a"], ["r"], [body], opsets)
        function.overload, function.doc_string = overload, f"overload {overload}"
        note(function, kind=overload)
        functions.append(function)
    nodes = [
        helper.make_node("act", ["x"], ["h"], domain="org.example", overload="up"),
        helper.make_node("act", ["h"], ["y"], domain="org.example", overload="down"),
    ]
    graph = helper.make_graph(nodes, "main", [value("x", "N", 3)], [value("y", "N", 3)])
    proto = model_of(graph, functions=functions)
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    return proto


def initializers_that_are_inputs(ir_version: int = 8) -> onnx.ModelProto:
    """A default value that callers may override; in IR 3 every initializer is an input."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "main",
        [value("w", 4, 3), value("x", 2, 4), value("b", 3)],
        [value("y", 2, 3)],
        [tensor("w", 4, 3), tensor("b", 3)],
    )
    return model_of(graph, opset=9, ir_version=ir_version)


def initializers_without_a_node() -> onnx.ModelProto:
    """Read by nothing, declared as a value, and given out as an output."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "main",
        [value("x", "N", 4)],
        [value("y", "N", 3), value("given", 2)],
        [tensor("idle", 5, 5), tensor("given", 2), tensor("w", 4, 3)],
        value_info=[value("w", 4, 3), value("idle", 5, 5)],
    )
    return model_of(graph)


def branches() -> onnx.ModelProto:
    """Both bodies of an If read one initializer of the main graph that no node there reads, and one that is read."""

    def body(name: str, op: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["h", "w"], [f"{name}.p"], name=f"{name}.product"),
            helper.make_node(op, [f"{name}.p", f"{name}.own"], [f"{name}.q"]),
            helper.make_node("Add", [f"{name}.q", "b"], [f"{name}.y"], doc_string="inner"),
        ]
        graph = helper.make_graph(nodes, name, [], [value(f"{name}.y", "N", 4)], [tensor(f"{name}.own", 4)])
        note(graph, branch=name)
        return graph

    nodes = [
        helper.make_node("Add", ["x", "b"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body("then", "Mul"), else_branch=body("else", "Sub")),
    ]
    zero = numpy_helper.from_array(np.float32(0), "zero")
    inits = [tensor("b", 4), tensor("w", 4, 4), zero]
    declared = [value("h", "N", 4), value("c", kind=TensorProto.BOOL)]
    return model_of(
        helper.make_graph(nodes, "main", [value("x", "N", 4)], [value("y", "N", 4)], inits, value_info=declared)
    )


def constant_nodes() -> onnx.ModelProto:
    """Weights in Constant nodes, as several exporters write them."""
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor("", 6, 4)),
        helper.make_node("Constant", [], ["s"], value_float=2.0),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Mul", ["h", "s"], ["y"]),
    ]
    return model_of(helper.make_graph(nodes, "main", [value("x", "N", 6)], [value("y", "N", 4)]))


def rare_attributes() -> onnx.ModelProto:
    """Attribute kinds and value types that have no place in graphsurgeon."""
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("", TensorProto.INT64, [2], [0, 3]),
        [4],
    )
    documented = helper.make_attribute("alpha", 0.5, doc_string="a slope")
    leaky = helper.make_node("LeakyRelu", ["z"], ["leaked"])
    leaky.attribute.append(documented)
    odd = helper.make_node("Odd", ["leaked"], ["odd"], domain="org.example", before=1)
    odd.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.INTS))
    odd.attribute.append(helper.make_attribute("bytes", b"\xff\xfe"))
    odd.attribute.append(helper.make_attribute("kind", helper.make_tensor_type_proto(1, [2])))
    odd.attribute.append(helper.make_attribute("after", "text"))
    optional = helper.make_tensor_type_proto(TensorProto.FLOAT, [4])
    outputs = [
        value("odd", 4),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
        helper.make_value_info("maybe", helper.make_optional_type_proto(optional)),
    ]
    nodes = [
        helper.make_node("Constant", [], ["s"], sparse_value=sparse),
        helper.make_node("Add", ["x", "s"], ["z"]),
        leaky,
        odd,
        helper.make_node("SequenceConstruct", ["z"], ["list"]),
        helper.make_node("Optional", ["z"], ["maybe"]),
        helper.make_node("Resize", ["image", "", "scales"], ["bigger", ""], mode="nearest"),
    ]
    inputs = [
        value("x", 4),
        value("image", 1, 1, 2, 2),
        helper.make_value_info("table", helper.make_map_type_proto(7, optional)),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    proto = model_of(helper.make_graph(nodes, "main", inputs, outputs, [scales]))
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    return proto


def sparse_initializer() -> onnx.ModelProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    indices = helper.make_tensor("", TensorProto.INT64, [3], [0, 5, 23])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "main", [value("x", "N", 4)], [value("y", "N", 6)]
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 6]))
    return model_of(graph)


# One array of every kind that needs its own encoding.
ARRAYS: dict[str, Array] = {
    "int4": np.array([[-8, 7, 3], [1, 0, -1]], ml_dtypes.int4),
    "uint4": np.array([15, 0, 9], ml_dtypes.uint4),
    "bfloat16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "float8_e4m3fn": np.array([0.5, 448.0], ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.array([0.5, 240.0], ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.array([0.5, 2.0], ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.array([0.5, 2.0], ml_dtypes.float8_e5m2fnuz),
    "float16": np.array([[0.1, 2.0]], np.float16),
    "complex64": np.array([1 + 2j], np.complex64),
    "bool": np.array([True, False]),
    "text": np.array([["a", "é"]], dtype=object),
    "0-d": np.array(3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "int64": np.array([[2**40]], np.int64),
}


def initializers_of(arrays: dict[str, Array]) -> onnx.ModelProto:
    """Each initializer is an output through an Identity."""
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}.out"]) for name in arrays]
    outputs = [helper.make_tensor_value_info(f"{t.name}.out", t.data_type, list(t.dims)) for t in tensors]
    return model_of(helper.make_graph(nodes, "main", [], outputs, tensors), opset=21)


FEATURES: dict[str, Callable[[], onnx.ModelProto]] = {
    maker.__name__: maker
    for maker in (
        documented,
        several_opsets,
        overloaded_functions,
        initializers_that_are_inputs,
        initializers_without_a_node,
        branches,
        constant_nodes,
        rare_attributes,
        sparse_initializer,
    )
} | {"initializers_of_ir_3": lambda: initializers_that_are_inputs(3), "all_types": lambda: initializers_of(ARRAYS)}
