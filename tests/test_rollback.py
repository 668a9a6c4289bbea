"""Roll-back: whatever was edited, a restored model is the model it was, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from onnxcomp.codec.origins import drop_unused, nested_graphs
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from tests import models
from tests.models import FEATURES

Edit = Callable[[gs.Graph, int], None]


def _pick(graph: gs.Graph, number: int) -> gs.Node:
    nodes = [node for root in (graph, *graph.functions) for nested in nested_graphs(root) for node in nested.nodes]
    return nodes[number % len(nodes)] if nodes else gs.Node("Identity")


def _rename_node(graph: gs.Graph, number: int) -> None:
    _pick(graph, number).name = f"n{number}"


def _rename_tensor(graph: gs.Graph, number: int) -> None:
    for tensor in (*_pick(graph, number).inputs, *_pick(graph, number).outputs):
        tensor.name = f"t{number}.{tensor.name}"


def _change_operator(graph: gs.Graph, number: int) -> None:
    node = _pick(graph, number)
    node.op, node.domain = f"Op{number}", "org.other"


def _change_attributes(graph: gs.Graph, number: int) -> None:
    node = _pick(graph, number)
    for name, value in list(node.attrs.items()):
        if isinstance(value, list):
            value.append(number)
        elif isinstance(value, gs.Constant):
            value.values = np.zeros(3, np.float32)
        elif not isinstance(value, gs.Graph):
            del node.attrs[name]
    node.attrs["added"] = number


def _replace_weight(graph: gs.Graph, number: int) -> None:
    for tensor in _pick(graph, number).inputs:
        if isinstance(tensor, gs.Constant):
            tensor.values = np.full(tensor.shape, number, np.float32)


def _to_constant(graph: gs.Graph, number: int) -> None:
    for tensor in _pick(graph, number).outputs:
        if isinstance(tensor, gs.Variable):
            tensor.to_constant(np.zeros(2, np.float32))


def _to_variable(graph: gs.Graph, number: int) -> None:
    for tensor in _pick(graph, number).inputs:
        if isinstance(tensor, gs.Constant):
            tensor.to_variable(np.float32, (2,))


def _change_shape(graph: gs.Graph, number: int) -> None:
    for tensor in (*graph.inputs, *graph.outputs, *_pick(graph, number).outputs):
        if isinstance(tensor, gs.Variable) and isinstance(tensor.shape, list) and tensor.shape:
            tensor.shape[0] = number


def _cut(graph: gs.Graph, number: int) -> None:
    _pick(graph, number).inputs.clear()


def _rewire(graph: gs.Graph, number: int) -> None:
    node = _pick(graph, number)
    between = gs.Variable(f"between{number}")
    if node.inputs:
        graph.nodes.insert(0, gs.Node("Identity", inputs=[node.inputs[0]], outputs=[between]))
        node.inputs[0] = between


def _drop_node(graph: gs.Graph, number: int) -> None:
    if graph.nodes:
        del graph.nodes[number % len(graph.nodes)]


def _clean_up(graph: gs.Graph, number: int) -> None:
    drop_unused(graph)
    graph.cleanup()
    graph.name, graph.doc_string = f"g{number}", "edited"


def _raise_opset(graph: gs.Graph, number: int) -> None:
    graph.opset += 1
    graph.import_domains[0].version += 1
    graph.import_domains.append(helper.make_opsetid(f"org.new{number}", 1))


def _drop_functions(graph: gs.Graph, _: int) -> None:
    for function in graph.functions:
        function.nodes.clear()
    graph.functions = []


def _replace_interface(graph: gs.Graph, number: int) -> None:
    graph.outputs = [gs.Variable(f"o{number}", np.float32, (1,))]
    graph.inputs.clear()


EDITS: list[Edit] = [
    _rename_node,
    _rename_tensor,
    _change_operator,
    _change_attributes,
    _replace_weight,
    _to_constant,
    _to_variable,
    _change_shape,
    _cut,
    _rewire,
    _drop_node,
    _clean_up,
    _raise_opset,
    _drop_functions,
    _replace_interface,
]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(FEATURES)),
    st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 20)), min_size=1, max_size=6),
)
def test_restore_undoes_any_edits(feature: str, edits: list[tuple[Edit, int]]) -> None:
    model = Model.from_proto(FEATURES[feature]())
    before = model.serialize()
    state = model.checkpoint()
    for _ in range(2):  # a state may be restored again
        with suppress(OnnxGraphSurgeonException):  # what one edit leaves, another may stumble over: passes do fail
            for edit, number in edits:
                edit(model.graph, number)
        state.restore()
        assert not state.changed()
        assert model.serialize() == before


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_seen(edit: Edit) -> None:
    proto = models.rare_attributes()
    proto.functions.extend(models.overloaded_functions().functions)
    proto.graph.initializer.append(models.tensor("idle", 2))
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = ["named" if name == "z" else name for name in names]
    proto.graph.node.append(helper.make_node("Concat", ["named", "scales"], ["z"], axis=0))
    proto.graph.node.append(helper.make_node("Split", ["z"], ["p"], parts=[1, 2]))
    model = Model.from_proto(proto)
    states = []
    for number in range(len(model.graph.nodes)):
        state = model.checkpoint()
        assert not state.changed()
        edit(model.graph, number)
        states.append(state.changed())
        state.restore()
    assert any(states)
    assert model.proto() == proto


def test_reading_changes_nothing() -> None:
    model = Model.from_proto(models.branches())
    state = model.checkpoint()
    for layer in weighted_layers(model):
        layer.array()
        layer.matrix()
    model.serialize()
    assert not state.changed()


def test_the_graph_cannot_be_exchanged() -> None:
    """Or a roll-back would restore a graph that the model no longer has."""
    model = Model.from_proto(models.documented())
    with pytest.raises(AttributeError):
        model.graph = gs.Graph()  # type: ignore[misc]
