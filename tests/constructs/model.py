"""The model, its graph and the values that it declares."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.constructs.building import (
    CONSTRUCTS,
    CUSTOM,
    FLOATS,
    OPAQUE,
    SEQUENCE,
    Maker,
    construct,
    layer,
    surround,
)
from tests.models import note, tensor, value

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


_NAMED = onnx.TypeProto(denotation="TENSOR")
_NAMED.tensor_type.CopyFrom(FLOATS.tensor_type)
CONSTRUCTS |= {
    f"values_of_type_{name}": _typed(kind)
    for name, kind in {
        "sequence": SEQUENCE,
        "sequence_of_sequences": helper.make_sequence_type_proto(SEQUENCE),
        "map": helper.make_map_type_proto(TensorProto.STRING, SEQUENCE),
        "optional": helper.make_optional_type_proto(FLOATS),
        "optional_sequence": helper.make_optional_type_proto(SEQUENCE),
        "sparse_tensor": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, ["N", 2]),
        "opaque": OPAQUE,
        "tensor_with_denotation": _NAMED,
        "float4": helper.make_tensor_type_proto(TensorProto.FLOAT4E2M1, [2]),
        "float8": helper.make_tensor_type_proto(TensorProto.FLOAT8E5M2FNUZ, [2]),
        "text": helper.make_tensor_type_proto(TensorProto.STRING, []),
        "nothing": onnx.TypeProto(),
    }.items()
}
