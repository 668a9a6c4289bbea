"""Small files that ask for very much: nested graphs, functions that call themselves, sizes, endless loops.

Each makes a whole model; the random generator only sets how much it asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuzzing.structure import pick
from tests.models import model_of, value

__all__ = ["GROWTH", "Bomb", "calling", "function", "looping", "made_from", "nested_bytes"]

Bomb = Callable[[np.random.Generator], onnx.ModelProto]

SIZES = (2**20, 2**27, 2**30, 2**32, 2**34, 2**40, 2**62)


def _constant(name: str, numbers: Any, dtype: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, dtype), name)


def made_from(nodes: Sequence[onnx.NodeProto], constants: Sequence[TensorProto] = (), **more: Any) -> onnx.ModelProto:
    """Input x (N, 4), output y; ``nodes`` make y."""
    graph = helper.make_graph(nodes, "main", [value("x", "N", 4)], [onnx.ValueInfoProto(name="y")], constants)
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model_of(graph, opset=17, **more)


def _added(op: str, inputs: str, constants: Sequence[TensorProto] = (), **attributes: Any) -> onnx.ModelProto:
    """A node makes something large, which is summed up and added to x."""
    nodes = [
        helper.make_node(op, inputs.split(), ["large"], **attributes),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "number"], ["y"]),
    ]
    return made_from(nodes, constants)


# -- sizes -----------------------------------------------------------------------------------------------------


def filled(rng: np.random.Generator) -> onnx.ModelProto:
    size = pick(rng, SIZES)
    dims = pick(rng, ([size], [2**16, size >> 16], [-size], [size, size], [size, 0]))
    return _added("ConstantOfShape", "dims", [_constant("dims", dims)])


def counted(rng: np.random.Generator) -> onnx.ModelProto:
    bounds = pick(rng, ((0, pick(rng, SIZES), 1), (0, 5, 0), (-(2**63), 2**63 - 1, 1), (0, -5, 1)))
    return _added("Range", "a b c", [_constant(name, number) for name, number in zip("abc", bounds, strict=True)])


def repeated(rng: np.random.Generator) -> onnx.ModelProto:
    constants = [_constant("c", [[1, 2]], np.float32), _constant("sizes", [pick(rng, SIZES), pick(rng, (1, 2, 2**20))])]
    return _added(pick(rng, ("Expand", "Tile")), "c sizes", constants)


def repeated_input(rng: np.random.Generator) -> onnx.ModelProto:
    return _added("Tile", "x sizes", [_constant("sizes", [pick(rng, SIZES), pick(rng, (1, 2**20))])])


def padded(rng: np.random.Generator) -> onnx.ModelProto:
    pads = [0, pick(rng, (*SIZES, -1, -(2**62))), pick(rng, (0, 2**20)), 0]
    constants = [_constant("pads", pads), _constant("c", [[1, 2]], np.float32)]
    return _added("Pad", pick(rng, ("x pads", "c pads")), constants)


def resized(rng: np.random.Generator) -> onnx.ModelProto:
    scale = pick(rng, (1e4, 1e9, 3e38, np.inf, np.nan, -1.0, 0.0))
    scales, image = _constant("scales", [1, scale], np.float32), _constant("c", [[1, 2]], np.float32)
    nodes = _added("Resize", "x none scales", [scales, image], mode=pick(rng, ("nearest", "linear")))
    nodes.graph.node[0].input[:] = [pick(rng, ("x", "c")), "", "scales"]
    return nodes


def one_hot(rng: np.random.Generator) -> onnx.ModelProto:
    constants = [_constant("i", [0, 1]), _constant("depth", pick(rng, SIZES)), _constant("v", [0, 1], np.float32)]
    return _added("OneHot", "i depth v", constants)


def window(rng: np.random.Generator) -> onnx.ModelProto:
    return _added("HannWindow", "size", [_constant("size", pick(rng, SIZES))])


def random_numbers(rng: np.random.Generator) -> onnx.ModelProto:
    return _added(pick(rng, ("RandomNormal", "RandomUniform")), "", shape=[pick(rng, SIZES), 2])


def unpooled(rng: np.random.Generator) -> onnx.ModelProto:
    constants = [_constant("c", [[[1, 2]]], np.float32), _constant("w", [[[1]]], np.float32)]
    large = pick(rng, SIZES)
    attributes = pick(rng, ({"pads": [large, large]}, {"dilations": [large]}, {"strides": [large]}))
    return _added(pick(rng, ("Conv", "ConvTranspose")), "c w", constants, **attributes)


def hidden(rng: np.random.Generator) -> onnx.ModelProto:
    """A recurrent layer whose hidden size is not that of its weights."""
    constants = [_constant(name, np.ones((1, 16, 4)), np.float32) for name in "wr"]
    constants.append(_constant("c", np.ones((2, 1, 4)), np.float32))
    return _added("LSTM", "c w r", constants, hidden_size=pick(rng, (0, -1, 5, *SIZES)))


def outer_product(rng: np.random.Generator) -> onnx.ModelProto:
    """Every operation doubles or squares; no constant is large."""
    steps = int(pick(rng, (12, 24, 36, 60)))
    nodes, last = [], "x"
    for step in range(steps):
        nodes.append(helper.make_node("Concat", [last, last], [f"t{step}"], axis=1))
        last = f"t{step}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return made_from(nodes)


def counted_by_nodes(rng: np.random.Generator) -> onnx.ModelProto:
    """The size is computed, so that no constant shows it."""
    size = pick(rng, (2**10, 2**14, 2**17, 2**20))
    nodes = [
        helper.make_node("Mul", ["size", "size"], ["squared"]),
        helper.make_node("ConstantOfShape", ["squared"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    return made_from(nodes, [_constant("size", [size])])


def large_input(rng: np.random.Generator) -> onnx.ModelProto:
    """An input of a fixed shape that nobody can feed."""
    proto = made_from([helper.make_node("Relu", ["x"], ["y"])])
    shape = proto.graph.input[0].type.tensor_type.shape
    for dim in shape.dim:
        dim.dim_value = pick(rng, (2**20, 2**30, 2**34, 2**62, 0, -1, -(2**40)))
    for _ in range(pick(rng, (0, 0, 2, 60))):
        shape.dim.add().dim_param = "free"
    return proto


# -- recursion -------------------------------------------------------------------------------------------------


def nested(rng: np.random.Generator) -> onnx.ModelProto:
    """Bodies in bodies."""
    result = [value("y", None)]
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "innermost", [], result)
    for depth in range(int(pick(rng, (5, 20, 28, 31)))):
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], f"other{depth}", [], result)
        node = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other)
        body = helper.make_graph([node], f"depth{depth}", [], result)
    proto = made_from([])
    proto.graph.node.extend(body.node)
    proto.graph.initializer.append(_constant("yes", True, bool))
    return proto


def _length(size: int) -> bytes:
    out = b""
    while size > 127:
        out, size = out + bytes([size & 127 | 128]), size >> 7
    return out + bytes([size])


def nested_bytes(depth: int) -> bytes:
    """Graphs in attributes of nodes in graphs, deeper than any parser goes along."""
    data = b""
    for _ in range(depth):
        attribute = b"\x32" + _length(len(data)) + data  # AttributeProto.g
        node = b"\x2a" + _length(len(attribute)) + attribute  # NodeProto.attribute
        data = b"\x0a" + _length(len(node)) + node  # GraphProto.node
    return b"\x08\x08\x3a" + _length(len(data)) + data  # ModelProto.ir_version, .graph


def function(name: str, calls: Sequence[str], domain: str = "org.example") -> onnx.FunctionProto:
    """It calls others one after the other, or is a Relu."""
    names = ["a", *(f"t{index}" for index in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [names[index]], [names[index + 1]], domain=domain) for index, call in enumerate(calls)
    ]
    nodes = nodes or [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets)


def calling(name: str, functions: Sequence[onnx.FunctionProto]) -> onnx.ModelProto:
    proto = made_from([helper.make_node(name, ["x"], ["y"], domain="org.example")], functions=functions)
    proto.opset_import.append(helper.make_opsetid("org.example", 1))
    return proto


def function_calls_itself(rng: np.random.Generator) -> onnx.ModelProto:
    names = [f"f{index}" for index in range(int(pick(rng, (1, 2, 5))))]
    return calling("f0", [function(a, [b]) for a, b in zip(names, [*names[1:], names[0]], strict=True)])


def function_calls_double(rng: np.random.Generator) -> onnx.ModelProto:
    """Each function calls the next one twice: written out, they have 2^depth nodes."""
    depth = int(pick(rng, (8, 16, 26, 60)))
    functions = [function(f"f{index}", [f"f{index + 1}"] * 2) for index in range(depth)]
    return calling("f0", [*functions, function(f"f{depth}", [])])


def function_calls_deep(rng: np.random.Generator) -> onnx.ModelProto:
    depth = int(pick(rng, (50, 500, 5000)))
    functions = [function(f"f{index}", [f"f{index + 1}"]) for index in range(depth)]
    return calling("f0", [*functions, function(f"f{depth}", [])])


def long_chain(rng: np.random.Generator) -> onnx.ModelProto:
    """A sound model that exhausts the stack of whoever walks it by recursion."""
    names = ["x", *(f"t{index}" for index in range(int(pick(rng, (100, 500, 1500))) - 1)), "y"]
    return made_from([helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


# -- loops -----------------------------------------------------------------------------------------------------


def looping(body: Sequence[onnx.NodeProto], trips: int, goes: str = "going", gathers: bool = False) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        value("state", None, None),
    ]
    outputs = [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), value("next", None, None)]
    outputs += [value("row", None, None)] if gathers else []
    nodes = [helper.make_node("Identity", [goes], ["goes"]), *body]
    graph = helper.make_graph(nodes, "body", inputs, outputs)
    made = ["y", "rows"] if gathers else ["y"]
    constants = [_constant("trips", trips), _constant("yes", True, bool)]
    return made_from([helper.make_node("Loop", ["trips", "yes", "x"], made, body=graph)], constants)


def endless(rng: np.random.Generator) -> onnx.ModelProto:
    return looping([helper.make_node("Relu", ["state"], ["next"])], pick(rng, (10**3, 10**7, 2**40, 2**63 - 1, -1)))


def doubling(rng: np.random.Generator) -> onnx.ModelProto:
    double = helper.make_node("Concat", ["state", "state"], ["next"], axis=0)
    return looping([double], pick(rng, (10, 26, 40, 2**40)))


def gathering(rng: np.random.Generator) -> onnx.ModelProto:
    """Every trip adds to an output that is kept."""
    body = [helper.make_node("Relu", ["state"], ["next"]), helper.make_node("Identity", ["state"], ["row"])]
    return looping(body, pick(rng, (10**3, 10**8, 2**40)), gathers=True)


def loops_in_loops(rng: np.random.Generator) -> onnx.ModelProto:
    """Few trips each, many together."""
    trips, proto = int(pick(rng, (4, 30, 100))), looping([helper.make_node("Relu", ["state"], ["next"])], 3)
    for _ in range(int(pick(rng, (3, 6)))):
        inner = onnx.NodeProto.FromString(proto.graph.node[0].SerializeToString())
        inner.input[2], inner.output[0] = "state", "next"
        proto = looping([inner], trips)
    return proto


GROWTH: tuple[Bomb, ...] = (
    filled, counted, repeated, repeated_input, padded, resized, one_hot, window, random_numbers, unpooled, hidden,
    outer_product, counted_by_nodes, large_input, nested, function_calls_itself, function_calls_double,
    function_calls_deep, long_chain, endless, doubling, gathering, loops_in_loops,
)  # fmt: skip
