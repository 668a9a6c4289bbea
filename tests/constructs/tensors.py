"""Weights of every type, wherever they stand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.constructs.building import (
    CONSTRUCTS,
    Array,
    Maker,
    construct,
    layer,
    sparse,
    surround,
)
from tests.models import note, tensor, value


def _stored(weight: TensorProto) -> Maker:
    def maker() -> onnx.ModelProto:
        return surround([layer()], [weight], opset=23, ir_version=12)

    return maker


def _arrays() -> dict[str, Array]:
    numbers = np.array([[0, 1, 3], [2, 1, 0]])
    arrays = {name: numbers.astype(name) for name in ("float32", "float64", "float16", "complex64", "complex128")}
    for bits in (8, 16, 32, 64):
        arrays |= {f"int{bits}": numbers.astype(f"int{bits}"), f"uint{bits}": numbers.astype(f"uint{bits}")}
    for kind in TensorProto.DataType.values():
        if kind not in (TensorProto.UNDEFINED, TensorProto.STRING):
            name = TensorProto.DataType.Name(kind).lower()
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            small = np.array([[0, 1, 1], [-1, 0, -2]]) if name == "int2" else numbers
            if name == "float8e8m0":
                small = np.array([[1, 2, 4], [0.5, 1, 1]])  # powers of two alone
            arrays.setdefault(str(dtype), small.astype(dtype))
    arrays["bool"] = np.array([[True, False, False], [True, True, False]])
    arrays["0-d"] = np.array(3.5, np.float32)
    arrays["zero-size"] = np.zeros((0, 3), np.float32)
    arrays["0-d bfloat16"] = np.array(3.5, ml_dtypes.bfloat16)
    return arrays


def _in_typed_fields(array: Array) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor("w", kind, array.shape, array.reshape(-1))


for _name, _array in _arrays().items():
    CONSTRUCTS[f"tensor_{_name}"] = _stored(numpy_helper.from_array(_array, "w"))
    CONSTRUCTS[f"tensor_{_name}_in_typed_fields"] = _stored(_in_typed_fields(_array))


@construct
def tensor_of_strings() -> onnx.ModelProto:
    return _stored(helper.make_tensor("w", TensorProto.STRING, [3], [b"a", "é".encode(), b"\xff"]))()


@construct
def tensor_documentation() -> onnx.ModelProto:
    weight = tensor("w", 4, 3)
    weight.doc_string = "the weight"
    note(weight, origin="training")
    weight.data_location = TensorProto.DEFAULT
    return surround([layer()], [weight])


@construct
def initializers_that_are_inputs() -> onnx.ModelProto:
    proto = surround([layer()], [tensor("w", 4, 3), tensor("spare", 2)])
    proto.graph.input.insert(0, value("w", 4, 3))
    proto.graph.input[0].doc_string = "may be overridden"
    proto.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, None))
    return proto


@construct
def initializers_that_nothing_reads() -> onnx.ModelProto:
    proto = surround([layer()], [tensor("idle", 5), tensor("w", 4, 3), tensor("given", 2)], outputs=[value("given", 2)])
    idle = sparse(name="idle sparse")
    proto.graph.sparse_initializer.append(idle)
    proto.graph.value_info.append(value("idle", 5))
    return proto


@construct
def sparse_initializers() -> onnx.ModelProto:
    proto = surround([layer(), helper.make_node("MatMul", ["x", "s"], ["z"])])
    weight = sparse(name="s")
    weight.values.doc_string = "mostly zeros"
    half = sparse(TensorProto.FLOAT16, "h")
    proto.graph.node[0].input.append("h")
    proto.graph.sparse_initializer.extend([half, weight])
    return proto
