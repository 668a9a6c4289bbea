"""Gradients of small models against central differences, in float64 where an evaluator has that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxcomp.gradient import Derivative, Term, differentiate
from onnxcomp.graph.inferred import infer_types
from onnxcomp.model import Model
from onnxcomp.runtime.session import create
from onnxcomp.runtime.shapes import observed
from tests.exact import OPERATORS

__all__ = ["agree", "build", "derivative", "evaluator", "gradients", "node", "random"]

Array = np.ndarray[Any, Any]
Forward = Callable[[Mapping[str, Array]], Array]
FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

node = onnx.helper.make_node


def random(*shape: int, seed: int = 0) -> Array:
    """Normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, Array],
    output: str = "y",
    opset: int = 13,
    feeds: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes; everything they read is an initializer, or fed."""
    info = onnx.helper.make_tensor_value_info
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in (feeds or {"_": random(1)}).items()
    }
    graph = onnx.helper.make_graph(
        list(nodes),
        "graph",
        [info(name, kinds[name], value.shape) for name, value in (feeds or {"_": random(1)}).items()],
        [info(output, FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def derivative(
    proto: onnx.ModelProto, parameters: Sequence[str], feeds: Mapping[str, Array], terms: Sequence[Term] | None = None
) -> Derivative:
    """With shapes as they come, of the mean squared error of the first output unless told otherwise."""
    model = Model.from_proto(proto)
    shapes = {**observed(model, dict(feeds)), **{t.name: tuple(t.dims) for t in proto.graph.initializer}}
    types = {name: kind.element for name, kind in infer_types(model).items()}
    types.update({t.name: t.data_type for t in proto.graph.initializer})
    terms = terms or [Term(proto.graph.output[0].name, "mse")]
    return differentiate(proto, shapes, types, parameters, terms)


def gradients(
    found: Derivative, values: Mapping[str, Array], feeds: Mapping[str, Array], targets: Mapping[str, Array]
) -> tuple[float, dict[str, Array]]:
    """Loss and gradients, by ONNX Runtime."""
    inputs = {value.name for value in found.model.graph.input}
    fed = {name: value for name, value in {**feeds, **values}.items() if name in inputs}
    fed.update({found.targets[name]: target for name, target in targets.items()})
    session = create(found.model, threads=1)
    loss, *grads = session.run([found.loss, *found.gradients.values()], fed)
    return float(loss), dict(zip(found.gradients, grads, strict=True))


def agree(
    nodes: Sequence[onnx.NodeProto] | onnx.NodeProto,
    parameters: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    opset: int = 13,
    forward: Forward | str = "reference",
    step: float = 1e-6,
    tolerance: float = 1e-4,
) -> None:
    """Gradients of the squared error of output ``y`` by every parameter agree with differences along directions.

    Args:
        forward: "reference" computes with the evaluator of onnx in float64, "runtime" with ONNX Runtime in float32
            (with a large step: for what is linear); or a function of the parameters in float64.
    """
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    proto = build(nodes, {**parameters, **(constants or {})}, opset=opset)
    feeds = {"_": random(1)}
    found = derivative(proto, list(parameters), feeds)
    assert not found.frozen, found.frozen
    run = forward if callable(forward) else evaluator(proto, forward)
    exact = {name: value.astype(np.float64) for name, value in parameters.items()}
    target = random(*np.shape(run(exact)), seed=7)
    _, grads = gradients(found, parameters, feeds, {"y": target})

    def loss(values: Mapping[str, Array]) -> float:
        return float(np.mean((run(values).astype(np.float64) - target) ** 2))

    rng = np.random.default_rng(3)
    for name, value in exact.items():
        assert grads[name].shape == value.shape
        for _ in range(4):
            direction = rng.standard_normal(value.shape)
            ahead, back = (loss({**exact, name: value + sign * step * direction}) for sign in (1, -1))
            expected = (ahead - back) / (2 * step)
            got = float((grads[name].astype(np.float64) * direction).sum())
            usual = float(np.linalg.norm(grads[name]))
            assert abs(got - expected) <= tolerance * max(usual, abs(expected), 1e-6), (name, got, expected)


def evaluator(proto: onnx.ModelProto, kind: str = "reference") -> Forward:
    """The output of a model, from float initializers and feeds; see ``agree``."""
    single = kind == "runtime"
    element, dtype = (FLOAT, np.float32) if single else (DOUBLE, np.float64)
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == FLOAT}
    kept = [t for t in proto.graph.initializer if t.name not in values]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    for value in (*changed.graph.input, *changed.graph.output):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = element
    info = onnx.helper.make_tensor_value_info
    changed.graph.input.extend(info(name, element, value.shape) for name, value in values.items())
    if not single:
        for attribute in (attribute for each in changed.graph.node for attribute in each.attribute):
            if attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = DOUBLE
    session: Any = create(changed, threads=1) if single else ReferenceEvaluator(changed, new_ops=OPERATORS)
    unused = {"_": random(1)} if proto.graph.input[0].name == "_" else {}

    def run(given: Mapping[str, Array]) -> Array:
        fed = {name: np.asarray(value) for name, value in {**unused, **values, **given}.items()}
        exact = {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in fed.items()}
        return np.asarray(session.run(None, exact)[0])

    return run
