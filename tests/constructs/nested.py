"""Graphs in graphs, and functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.constructs.building import (
    CONDITION,
    CUSTOM,
    FLOATS,
    SEQUENCE,
    body,
    branch,
    construct,
    from_newer_onnx,
    layer,
    list_of,
    sparse,
    surround,
)
from tests.constructs.nodes import attributes
from tests.models import note, tensor, value

# -- bodies --------------------------------------------------------------------------------------------------


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
    odd = layer()
    odd.output[0] = "z"
    proto = surround([branch(body("then"), body("else", reads="s")), odd], inputs=[CONDITION])
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
        [list_of("ints"), helper.make_attribute("s", b"\xff"), helper.make_attribute("kind", SEQUENCE)]
    )
    inner = body("inner", odd, reads="v", initializer=[tensor("v", 4, 3), tensor("inner.idle", 2)])
    inner.value_info.append(helper.make_value_info("kept", SEQUENCE))
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
def functionattributes() -> onnx.ModelProto:
    """Required ones, ones with default values of every kind, and references to them."""
    inner = helper.make_node("Odd", ["a"], ["r"], domain=CUSTOM, axis=0)
    for kind in AttributeProto.AttributeType.values():
        reference = AttributeProto(name=f"ref{kind}", ref_attr_name=f"attr{kind}", type=kind)
        inner.attribute.append(reference)
    inner.attribute[1].doc_string = "a reference"
    defaults = [item for items in attributes().values() for item in items]
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
    odd.attribute.extend([list_of("ints"), helper.make_attribute("s", b"\xff"), list_of("type_protos", FLOATS)])
    odd.attribute.append(AttributeProto(name="ref", ref_attr_name="needed", type=AttributeProto.GRAPH))
    then = body("then", odd, initializer=[tensor("w", 4, 3), tensor("then.idle", 2)])
    then.node[-1].input[0] = "a"
    then.value_info.append(helper.make_value_info("kept", SEQUENCE))
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


@construct
def documentation_that_is_not_utf8() -> onnx.ModelProto:
    """As exporters in other encodings wrote it; protobuf reads it and takes none of it back."""
    text = "d@c"
    weight, constant = tensor("w", 4, 3), tensor("k", 2)
    call = helper.make_node("act", ["x"], ["z"], domain=CUSTOM)
    function = _function("act", helper.make_node("Odd", ["a"], ["r"], domain=CUSTOM, doc_string=text), doc_string=text)
    constant.doc_string = weight.doc_string = text
    node = layer(axis=1, table=constant)
    proto = surround([node, call], [weight], functions=[function], doc_string=text, domain=text)
    proto.producer_name = proto.producer_version = proto.graph.name = proto.graph.doc_string = text
    note(proto, key=text)
    for message in (*proto.graph.node[0].attribute, proto.graph.node[0], proto.graph.input[0], proto.graph.output[0]):
        message.doc_string = text
    proto.graph.input[0].type.denotation = text
    return onnx.ModelProto.FromString(proto.SerializeToString().replace(b"d@c", b"d\xffc"))
