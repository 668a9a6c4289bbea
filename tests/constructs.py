"""One small model for each construct of the ONNX format.

Every model has a weight of its own, named ``w``, and a layer ``elsewhere`` that has nothing to do with the construct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.models import note, tensor, value

__all__ = ["CONSTRUCTS", "from_newer_onnx", "surround"]

Array = np.ndarray[Any, Any]
Maker = Callable[[], onnx.ModelProto]

CUSTOM = "org.example"
CONSTRUCTS: dict[str, Maker] = {}


def construct(maker: Maker) -> Maker:
    CONSTRUCTS[maker.__name__] = maker
    return maker


def from_newer_onnx(message: Any) -> None:
    """Give a message a field, number 1000, that no version of ONNX knows yet."""
    grown = type(message).FromString(message.SerializeToString() + b"\xc2\x3e\x03new")
    message.CopyFrom(grown)


def surround(
    nodes: Sequence[onnx.NodeProto],
    initializers: Iterable[TensorProto] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    opset: int = 21,
    ir_version: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    """A model of some nodes, beside a layer that has nothing to do with them.

    Args:
        initializers: by default the weight ``w`` alone.
        inputs, outputs: beside ``x`` (N, 4) and ``y`` (N, 3).
    """
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("MatMul", ["x", "elsewhere.w"], ["elsewhere.h"], name="elsewhere"),
            helper.make_node("Relu", ["elsewhere.h"], ["elsewhere.y"], name="elsewhere/act"),
        ],
        "main",
        [value("x", "N", 4), *inputs],
        [value("y", "N", 3), value("elsewhere.y", "N", 2), *outputs],
        [*([tensor("w", 4, 3)] if initializers is None else initializers), tensor("elsewhere.w", 4, 2)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(CUSTOM, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="maker", **more)


def layer(**attributes: Any) -> onnx.NodeProto:
    """A node of a custom operator that reads the weight."""
    return helper.make_node("Odd", ["x", "w"], ["y"], name="odd", domain=CUSTOM, **attributes)


def sparse(kind: int = TensorProto.FLOAT, name: str = "") -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, kind, [3], [1, 2, 3])
    indices = helper.make_tensor("", TensorProto.INT64, [3], [0, 5, 11])
    return helper.make_sparse_tensor(values, indices, [4, 3])


def body(name: str, *extra: onnx.NodeProto, reads: str = "w", **more: Any) -> onnx.GraphProto:
    """A branch that multiplies ``x`` of the graph around it."""
    nodes = [*extra, helper.make_node("MatMul", ["x", reads], [f"{name}.y"], name=f"{name}/product")]
    return helper.make_graph(nodes, name, [], [value(f"{name}.y", "N", 3)], **more)


def branch(then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)


CONDITION = value("c", kind=TensorProto.BOOL)


# -- the model -----------------------------------------------------------------------------------------------


@construct
def model_header() -> onnx.ModelProto:
    proto = surround([layer()], doc_string="a model", domain="org.example.net", model_version=7)
    proto.producer_version = "1.2.3"
    note(proto, author="somebody", empty="")
    return proto


@construct
def model_header_set_to_nothing() -> onnx.ModelProto:
    proto = surround([layer()])
    proto.producer_name = proto.producer_version = proto.domain = proto.doc_string = proto.graph.name = ""
    proto.graph.doc_string, proto.model_version = "", 0
    return proto


@construct
def model_header_unset() -> onnx.ModelProto:
    proto = surround([layer()])
    for name in ("producer_name", "ir_version"):
        proto.ClearField(name)
    proto.graph.ClearField("name")
    return proto


@construct
def opset_imports_of_several_domains() -> onnx.ModelProto:
    proto = surround([layer()])
    for domain, version in (("ai.onnx.ml", 3), ("com.microsoft", 1), ("unused.example", 12)):
        proto.opset_import.append(helper.make_opsetid(domain, version))
    return proto


@construct
def standard_domain_by_its_long_name() -> onnx.ModelProto:
    proto = surround([helper.make_node("MatMul", ["x", "w"], ["y"], domain="ai.onnx")])
    proto.opset_import[0].domain = "ai.onnx"
    return proto


@construct
def standard_domain_by_both_names() -> onnx.ModelProto:
    return surround([helper.make_node("MatMul", ["x", "w"], ["y"], domain="ai.onnx")])


@construct
def custom_domain_that_is_not_imported() -> onnx.ModelProto:
    proto = surround([layer()])
    del proto.opset_import[1]
    return proto


@construct
def training_info() -> onnx.ModelProto:
    proto = surround([layer()], [tensor("w", 4, 3), tensor("momentum", 4, 3)])
    info = proto.training_info.add()
    start = helper.make_node("Constant", [], ["zero"], value=tensor("zero", 4, 3))
    info.initialization.CopyFrom(helper.make_graph([start], "start", [], [value("zero", 4, 3)]))
    step = helper.make_node("Sub", ["w", "momentum"], ["w.next"])
    info.algorithm.CopyFrom(helper.make_graph([step], "step", [], [value("w.next", 4, 3)]))
    info.initialization_binding.add(key="momentum", value="zero")
    info.update_binding.add(key="w", value="w.next")
    return proto


@construct
def device_configurations() -> onnx.ModelProto:
    proto = surround([layer()], ir_version=11)
    proto.configuration.add(name="two", num_devices=2, device=["cpu:0", "cpu:1"])
    placed = proto.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    spec = placed.sharding_spec.add(tensor_name="w", device=[0, -1])
    spec.index_to_device_group_map.add(key=-1, value=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_value=4, num_shards=2)
    return proto


def _ir_version(version: int) -> Maker:
    def maker() -> onnx.ModelProto:
        proto = surround([layer()], opset=7 if version < 8 else 21, ir_version=version)
        if version < 4:
            proto.graph.input.extend([value("w", 4, 3), value("elsewhere.w", 4, 2)])
        return proto

    return maker


CONSTRUCTS |= {f"ir_version_{version}": _ir_version(version) for version in range(3, int(onnx.IR_VERSION) + 1)}


@construct
def ir_version_3_with_an_initializer_that_is_no_input() -> onnx.ModelProto:
    return surround([layer()], opset=7, ir_version=3)


@construct
def attributes_without_a_type() -> onnx.ModelProto:
    """As the first IR version wrote them."""
    node = layer(axis=1, alpha=0.5, mode="text", pads=[1, 1], table=tensor("t", 2))
    for attribute in node.attribute:
        attribute.ClearField("type")
    return surround([node], opset=1, ir_version=1)


@construct
def fields_of_a_newer_onnx() -> onnx.ModelProto:
    function = _function()
    constant = helper.make_node("Constant", [], ["w"], value=tensor("", 4, 3))
    proto = surround([constant, layer(axis=1, none=sparse())], [], functions=[function])
    proto.graph.value_info.append(value("elsewhere.h", "N", 2))
    for message in (
        proto.functions[0].node[0].attribute[0],
        proto.functions[0].node[0],
        proto.functions[0],
        proto.graph.initializer[0],
        proto.graph.value_info[0].type.tensor_type.shape.dim[0],
        proto.graph.value_info[0].type,
        proto.graph.value_info[0],
        proto.graph.input[0],
        proto.graph.output[0],
        proto.graph.node[0].attribute[0].t,
        proto.graph.node[0].attribute[0],
        proto.graph.node[1].attribute[0],
        proto.graph.node[1].attribute[1],
        proto.graph.node[1],
        proto.opset_import[0],
        proto.graph,
        proto,
    ):
        from_newer_onnx(message)
    return proto


# -- graphs and values ---------------------------------------------------------------------------------------


@construct
def graph_documentation() -> onnx.ModelProto:
    proto = surround([layer()])
    proto.graph.doc_string = "the graph\nwith two lines"
    note(proto.graph, purpose="test", second="é")
    return proto


@construct
def quantization_annotations() -> onnx.ModelProto:
    """Of a value, of an initializer, and of something that no longer exists."""
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    proto = surround([layer()], [tensor("w", 4, 3), scale])
    for name in ("y", "w", "gone"):
        mark = proto.graph.quantization_annotation.add(tensor_name=name)
        mark.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return proto


@construct
def value_documentation() -> onnx.ModelProto:
    proto = surround([helper.make_node("Neg", ["x"], ["h"]), layer()])
    hidden = value("h", "N", 4)
    hidden.type.denotation = "HIDDEN"
    hidden.type.tensor_type.shape.dim[1].denotation = "DATA_FEATURE"
    proto.graph.value_info.append(hidden)
    for index, declared in enumerate((hidden, proto.graph.input[0], proto.graph.output[0])):
        declared.doc_string = f"value {index}"
        declared.type.denotation = "IMAGE"
        declared.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
        note(declared, index=str(index))
    proto.graph.value_info[0].CopyFrom(hidden)
    return proto


@construct
def values_declared_twice() -> onnx.ModelProto:
    """An input, an output and an initializer that are declared as inner values too, and one twice."""
    proto = surround([helper.make_node("Neg", ["x"], ["h"]), layer()])
    again = value("y", "N", 3)
    again.doc_string = "again"
    proto.graph.value_info.extend(
        [value("w", 4, 3), value("x", "N", 4), again, value("h", "N", 4), value("h", None, 4)]
    )
    return proto


@construct
def values_of_nothing() -> onnx.ModelProto:
    proto = surround([layer()])
    proto.graph.value_info.append(value("inside/a/function", 3))
    proto.graph.value_info.append(onnx.ValueInfoProto(name="untyped"))
    return proto


@construct
def ranks_and_dimensions() -> onnx.ModelProto:
    """No type, no shape, no axes, and every kind of dimension."""
    nodes = [helper.make_node("Split4", ["x"], ["untyped", "unranked", "scalar", "dims"], domain=CUSTOM), layer()]
    proto = surround(nodes)
    dims = value("dims", None, 0, "batch size", 3, -1)
    dims.type.tensor_type.shape.dim.add(dim_param="")
    scalar = value("scalar")
    unranked = helper.make_tensor_value_info("unranked", TensorProto.FLOAT, None)
    proto.graph.value_info.extend([dims, scalar, unranked, onnx.ValueInfoProto(name="untyped")])
    proto.graph.output.append(helper.make_tensor_value_info("unranked", TensorProto.FLOAT, None))
    return proto


@construct
def unknown_element_types() -> onnx.ModelProto:
    proto = surround([helper.make_node("Neg", ["x"], ["h"]), layer()])
    for name, kind in (("h", 0), ("x", 99)):
        declared = value(name, "N", 4)
        declared.type.tensor_type.elem_type = kind
        proto.graph.value_info.append(declared)
    return proto


def _typed(kind: onnx.TypeProto) -> Maker:
    def maker() -> onnx.ModelProto:
        node = helper.make_node("Odd", ["x", "w", "in"], ["y", "out", "inner"], domain=CUSTOM, name="odd")
        inputs, outputs = [helper.make_value_info("in", kind)], [helper.make_value_info("out", kind)]
        proto = surround([node], inputs=inputs, outputs=outputs)
        proto.graph.value_info.append(helper.make_value_info("inner", kind))
        return proto

    return maker


_FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 2])
_SEQUENCE = helper.make_sequence_type_proto(_FLOATS)
_OPAQUE, _NAMED = onnx.TypeProto(denotation="HANDLE"), onnx.TypeProto(denotation="TENSOR")
_OPAQUE.opaque_type.domain, _OPAQUE.opaque_type.name = "org.example", "Handle"
_NAMED.tensor_type.CopyFrom(_FLOATS.tensor_type)
CONSTRUCTS |= {
    f"values_of_type_{name}": _typed(kind)
    for name, kind in {
        "sequence": _SEQUENCE,
        "sequence_of_sequences": helper.make_sequence_type_proto(_SEQUENCE),
        "map": helper.make_map_type_proto(TensorProto.STRING, _SEQUENCE),
        "optional": helper.make_optional_type_proto(_FLOATS),
        "optional_sequence": helper.make_optional_type_proto(_SEQUENCE),
        "sparse_tensor": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, ["N", 2]),
        "opaque": _OPAQUE,
        "tensor_with_denotation": _NAMED,
        "float4": helper.make_tensor_type_proto(TensorProto.FLOAT4E2M1, [2]),
        "float8": helper.make_tensor_type_proto(TensorProto.FLOAT8E5M2FNUZ, [2]),
        "text": helper.make_tensor_type_proto(TensorProto.STRING, []),
        "nothing": onnx.TypeProto(),
    }.items()
}


# -- nodes ---------------------------------------------------------------------------------------------------


@construct
def node_documentation() -> onnx.ModelProto:
    node = layer()
    node.doc_string = "does something"
    note(node, source="net.py:12", namespace="")
    return surround([node])


@construct
def node_without_a_name() -> onnx.ModelProto:
    node = layer()
    node.ClearField("name")
    return surround([node, helper.make_node("Neg", ["y"], ["z"])])


@construct
def node_fields_set_to_nothing() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.name = node.domain = node.overload = node.doc_string = ""
    return surround([node])


@construct
def omitted_inputs_and_outputs() -> onnx.ModelProto:
    node = helper.make_node("Odd", ["", "x", "", "w", "", ""], ["", "y", ""], domain=CUSTOM, name="odd")
    return surround([node, helper.make_node("Empty", [], [], domain=CUSTOM)])


@construct
def names_of_any_kind() -> onnx.ModelProto:
    names = ["a.b/c:0", "ünï/号", "with space", "a,b;c=d", "'quoted\"", "x" * 300]
    nodes = [helper.make_node("Neg", ["x" if i == 0 else names[i - 1]], [n], name=n) for i, n in enumerate(names)]
    nodes += [helper.make_node("Neg", ["x"], ["same"], name="same"), helper.make_node("Neg", ["x"], ["t"], name="same")]
    return surround([*nodes, layer()])


@construct
def one_tensor_read_twice() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Odd", ["w", "x", "w"], ["y"], domain=CUSTOM, name="odd"),
        helper.make_node("MatMul", ["x", "w"], ["again"]),
    ]
    return surround(nodes)


@construct
def input_that_is_an_output() -> onnx.ModelProto:
    return surround([layer()], outputs=[value("x", "N", 4), value("y", "N", 3)])


# -- attributes ----------------------------------------------------------------------------------------------


def _with_attribute(*attributes: AttributeProto) -> Maker:
    def maker() -> onnx.ModelProto:
        node = layer(after="text", before=1)
        for attribute in attributes:
            node.attribute.insert(1, attribute)
        return surround([node])

    return maker


def _list_of(name: str, *items: Any) -> AttributeProto:
    attribute = AttributeProto(name=name, type=AttributeProto.AttributeType.Value(name.upper()))
    getattr(attribute, name).extend(items)
    return attribute


def _attributes() -> dict[str, Sequence[AttributeProto]]:
    make = helper.make_attribute
    graph = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "inner", [value("a", 2)], [value("b", 2)])
    documented = [make(name, item, doc_string=f"about {name}") for name, item in (("f", 0.5), ("t", tensor("t", 2)))]
    lists = ("floats", "ints", "strings", "tensors", "graphs", "sparse_tensors", "type_protos")
    described = tensor("inner", 2, 3)
    described.doc_string = "a table"
    note(described, unit="cm")
    return {
        "float": [make("f", 0.1), make("nan", float("nan")), make("zero", -0.0), make("inf", float("-inf"))],
        "int": [make("i", -(2**63))],
        "string": [make("s", "é\n"), make("nothing", "")],
        "string_not_utf8": [make("s", b"\xff\xfe\x00")],
        "strings_not_utf8": [make("s", [b"ok", b"\xff"])],
        "tensor": [make("t", tensor("inner", 2, 3)), make("described", described)],
        "tensor_without_a_name": [make("t", numpy_helper.from_array(np.arange(3)))],
        "tensor_with_an_empty_name": [make("t", numpy_helper.from_array(np.arange(3), ""))],
        "tensor_of_strings": [make("t", numpy_helper.from_array(np.array([b"a", b"\xff"], object), "t"))],
        "tensor_that_is_missing": [AttributeProto(name="t", type=AttributeProto.TENSOR)],
        "graph": [make("g", graph)],
        "sparse_tensor": [make("sparse", sparse(TensorProto.INT8))],
        "type_proto": [make("kind", _SEQUENCE)],
        "floats": [make("fs", [0.1, float("nan")])],
        "ints": [make("is", [1, -1])],
        "strings": [make("ss", ["a", ""])],
        "tensors": [_list_of("tensors", tensor("a", 2), tensor("b", 3))],
        "graphs": [_list_of("graphs", graph, graph)],
        "sparse_tensors": [_list_of("sparse_tensors", sparse(), sparse(TensorProto.INT32))],
        "type_protos": [_list_of("type_protos", _FLOATS, _OPAQUE)],
        "empty_lists": [_list_of(name) for name in lists],
        "documentation": documented,
        "several_values": [AttributeProto(name="odd", type=AttributeProto.INT, i=3, f=2.0, ints=[1])],
        "undefined": [AttributeProto(name="odd", f=2.0, ints=[1])],
        "unset_value": [AttributeProto(name="i", type=AttributeProto.INT)],
    }


CONSTRUCTS |= {f"attribute_{name}": _with_attribute(*items) for name, items in _attributes().items()}


@construct
def attribute_of_a_newer_kind() -> onnx.ModelProto:
    return _with_attribute(AttributeProto.FromString(b"\x0a\x01n\xa0\x01\x63"))()


def _constant(name: str, item: Any) -> Maker:
    def maker() -> onnx.ModelProto:
        constant = helper.make_node("Constant", [], ["w"], name="constant", doc_string="the weight", **{name: item})
        return surround([constant, layer()], [])

    return maker


_DESCRIBED = tensor("some name", 4, 3)
_DESCRIBED.doc_string = "a weight"
note(_DESCRIBED, origin="training")
CONSTRUCTS |= {
    "constant_node": _constant("value", tensor("", 4, 3)),
    "constant_node_with_documentation": _constant("value", _DESCRIBED),
    "constant_node_of_a_list": _constant("value_floats", [1.0, 2.0]),
    "constant_node_of_an_int": _constant("value_int", 3),
    "constant_node_of_strings": _constant("value_strings", ["a", "b"]),
    "constant_node_that_is_sparse": _constant("sparse_value", sparse()),
}


# -- tensors -------------------------------------------------------------------------------------------------


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


# -- nested graphs -------------------------------------------------------------------------------------------


@construct
def branches_with_weights_of_their_own() -> onnx.ModelProto:
    then, other = (
        body("then", initializer=[tensor("w", 4, 3)]),
        body("else", reads="v", initializer=[tensor("v", 4, 3)]),
    )
    note(then, branch="then")
    then.doc_string = "taken when c"
    then.initializer[0].doc_string = "inner weight"
    then.node[0].doc_string = "inner product"
    then.output[0].type.denotation = "INNER"
    then.quantization_annotation.add(tensor_name="then.y")
    return surround([branch(then, other)], [], inputs=[CONDITION])


@construct
def branches_that_read_outer_weights() -> onnx.ModelProto:
    return surround([branch(body("then"), body("else"))], inputs=[CONDITION])


@construct
def branches_that_read_outer_sparse_weights() -> onnx.ModelProto:
    proto = surround([branch(body("then"), body("else", reads="s")), layer()], inputs=[CONDITION])
    del proto.graph.output[0]
    proto.graph.sparse_initializer.append(sparse(name="s"))
    return proto


@construct
def branches_with_the_same_names() -> onnx.ModelProto:
    """Each body has a weight and a value of one name; one name hides a weight of the graph around it."""
    bodies = [body("b", initializer=[tensor("v", 4, 3, seed=seed), tensor("u", 4, 3, seed=seed)]) for seed in (1, 2)]
    for item in bodies:
        item.node.append(helper.make_node("Sub", ["u", "v"], ["b.unused"]))
    return surround([branch(*bodies)], [tensor("u", 2), tensor("w", 4, 3)], inputs=[CONDITION])


@construct
def branches_of_rare_things() -> onnx.ModelProto:
    """Attributes, values and tensors that are hard to keep, two bodies deep."""
    odd = helper.make_node("Odd", ["x"], ["kept"], domain=CUSTOM, name="inner/odd", doc_string="odd")
    odd.attribute.extend(
        [_list_of("ints"), helper.make_attribute("s", b"\xff"), helper.make_attribute("kind", _SEQUENCE)]
    )
    inner = body("inner", odd, reads="v", initializer=[tensor("v", 4, 3), tensor("inner.idle", 2)])
    inner.value_info.append(helper.make_value_info("kept", _SEQUENCE))
    inner.sparse_initializer.append(sparse(name="inner.sparse"))
    nested = helper.make_node("If", ["c"], ["outer.h"], then_branch=inner, else_branch=body("inner.else"))
    outer = body("outer", nested)
    for message in (inner.node[0], inner, outer):
        from_newer_onnx(message)
    return surround([branch(outer, body("else"))], inputs=[CONDITION])


@construct
def branch_without_names() -> onnx.ModelProto:
    then = body("then", initializer=[tensor("w", 4, 3)])
    then.ClearField("name")
    then.output[0].ClearField("type")
    other = body(
        "else", helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.eye(4)[:, :3])), reads="k"
    )
    return surround([branch(then, other)], [], inputs=[CONDITION])


@construct
def values_of_the_outer_graph_declared_in_a_body() -> onnx.ModelProto:
    then = body("then", value_info=[value("x", "N", 4), value("w", 4, 3)])
    return surround([branch(then, body("else"))], inputs=[CONDITION])


@construct
def loop() -> onnx.ModelProto:
    step = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"]), helper.make_node("Identity", ["go"], ["go.next"])],
        "step",
        [value("i", kind=TensorProto.INT64), value("go", kind=TensorProto.BOOL), value("state", None, 4)],
        [value("go.next", kind=TensorProto.BOOL), value("next", None, 4)],
        value_info=[value("next", "N", 4)],
    )
    node = helper.make_node("Loop", ["count", "", "x"], ["h"], body=step)
    return surround(
        [node, helper.make_node("Odd", ["h"], ["y"], domain=CUSTOM)],
        [tensor("w", 4, 4), numpy_helper.from_array(np.array(3), "count")],
    )


@construct
def scan() -> onnx.ModelProto:
    step = helper.make_graph(
        [helper.make_node("Mul", ["row", "w"], ["scaled"]), helper.make_node("Identity", ["scaled"], ["out"])],
        "step",
        [value("row", 4)],
        [value("out", 4)],
        [tensor("w", 4)],
    )
    node = helper.make_node("Scan", ["x"], ["h"], body=step, num_scan_inputs=1, scan_input_axes=[0])
    return surround([node, helper.make_node("Odd", ["h"], ["y"], domain=CUSTOM)], [])


# -- functions -----------------------------------------------------------------------------------------------


def _function(name: str = "act", *nodes: onnx.NodeProto, imports: bool = True, **more: Any) -> onnx.FunctionProto:
    nodes = nodes or (helper.make_node("Odd", ["a"], ["r"], domain=CUSTOM, name="inner", axis=1),)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CUSTOM, 1)] if imports else []
    return helper.make_function(CUSTOM, name, ["a"], ["r"], nodes, opsets, **more)


def _call(name: str = "act", **more: Any) -> list[onnx.NodeProto]:
    return [layer(), helper.make_node(name, ["x"], ["called"], domain=CUSTOM, **more)]


@construct
def function_documentation() -> onnx.ModelProto:
    inner = helper.make_node("Odd", ["a"], ["r"], domain=CUSTOM, doc_string="inner")
    note(inner, line="3")
    function = _function("act", inner, doc_string="a function", value_info=[value("a", "N", 4), value("r", "N", 4)])
    function.value_info[0].doc_string = "an argument"
    note(function, kind="activation")
    return surround(_call(), functions=[function])


@construct
def functions_with_overloads() -> onnx.ModelProto:
    functions = []
    for overload, op in (("up", "Exp"), ("down", "Neg"), ("", "Abs")):
        functions.append(_function("act", helper.make_node(op, ["a"], ["r"])))
        functions[-1].overload = overload
    return surround(_call(overload="up"), functions=functions)


@construct
def function_attributes() -> onnx.ModelProto:
    """Required ones, ones with default values of every kind, and references to them."""
    inner = helper.make_node("Odd", ["a"], ["r"], domain=CUSTOM, axis=0)
    for kind in AttributeProto.AttributeType.values():
        reference = AttributeProto(name=f"ref{kind}", ref_attr_name=f"attr{kind}", type=kind)
        inner.attribute.append(reference)
    inner.attribute[1].doc_string = "a reference"
    defaults = [item for items in _attributes().values() for item in items]
    for index, item in enumerate(defaults):
        item.name = f"default{index}"
    function = _function("act", inner, attributes=["needed", "attr1"], attribute_protos=defaults)
    return surround(_call(needed=1), functions=[function])


@construct
def function_without_imports() -> onnx.ModelProto:
    return surround(_call(), functions=[_function(imports=False)])


@construct
def function_with_the_standard_domain_by_its_long_name() -> onnx.ModelProto:
    function = _function("act", helper.make_node("Neg", ["a"], ["r"], domain="ai.onnx"))
    return surround(_call(), functions=[function])


@construct
def function_with_a_constant() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["w"], value=tensor("", 4, 3), doc_string="inner weight")
    function = _function("act", constant, helper.make_node("MatMul", ["a", "w"], ["r"], name="product"))
    call = helper.make_node("act", ["x"], ["y"], domain=CUSTOM)
    return surround([call], [], functions=[function])


@construct
def function_with_branches() -> onnx.ModelProto:
    """Bodies inside a function hold everything that is hard to keep."""
    odd = helper.make_node("Odd", ["a"], ["kept"], domain=CUSTOM, name="deep/odd", doc_string="deep")
    odd.attribute.extend([_list_of("ints"), helper.make_attribute("s", b"\xff"), _list_of("type_protos", _FLOATS)])
    odd.attribute.append(AttributeProto(name="ref", ref_attr_name="needed", type=AttributeProto.GRAPH))
    then = body("then", odd, initializer=[tensor("w", 4, 3), tensor("then.idle", 2)])
    then.node[-1].input[0] = "a"
    then.value_info.append(helper.make_value_info("kept", _SEQUENCE))
    then.output[0].type.denotation = "DEEP"
    note(then, branch="then")
    other = body("else", reads="v", initializer=[tensor("v", 4, 3)])
    other.node[-1].input[0] = "a"
    other.sparse_initializer.append(sparse(name="else.sparse"))
    cond = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    inner = helper.make_node("If", ["c"], ["r"], then_branch=then, else_branch=other)
    function = _function("act", cond, inner, attributes=["needed"], value_info=[value("r", "N", 3)])
    call = helper.make_node("act", ["x"], ["y"], domain=CUSTOM)
    return surround([call], [], functions=[function])


@construct
def function_that_calls_another() -> onnx.ModelProto:
    outer = _function("outer", helper.make_node("act", ["a"], ["r"], domain=CUSTOM, overload=""))
    return surround(_call("outer"), functions=[_function(), outer])
