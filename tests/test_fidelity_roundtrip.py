"""Whatever the ONNX format can say, a model still says after it was loaded, edited elsewhere and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.codec import nested_graphs
from onnxcomp.codec.origins import drop_unused
from onnxcomp.graph.constants import assign
from onnxcomp.model import Model
from onnxcomp.storage import mapped, reader
from onnxcomp.storage.messages import copied, proto_graphs
from tests.compare import differences
from tests.constructs import CONSTRUCTS
from tests.constructs.merging import merged
from tests.generate import networks
from tests.tensors import array_of, clear_data, gs_tensors, messages_of, other_values, set_data
from tests.zoo import each_model, zoo_model

Array = np.ndarray[Any, Any]

# Not what belongs to a model as a whole, and what an attribute refers to by name.
MIXED = [name for name in CONSTRUCTS if not name.startswith(("ir_version", "model_", "standard_domain", "training"))]

each_construct = pytest.mark.parametrize("name", CONSTRUCTS)


def reloaded(proto: onnx.ModelProto, folder: Path, edit: Callable[[Model], None] | None = None) -> onnx.ModelProto:
    """The model after it was written, loaded, edited and saved."""
    source, result = folder / "net.onnx", folder / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    model = Model.load(source)
    if edit is not None:
        edit(model)
    model.save(result)
    return onnx.load(result)


# -- three settings ------------------------------------------------------------------------------------------


@each_construct
def test_an_untouched_model_is_equal_in_every_field(name: str, tmp_path: Path) -> None:
    proto = CONSTRUCTS[name]()
    assert differences(reloaded(proto, tmp_path), proto) == []


@each_construct
def test_an_edit_elsewhere_changes_nothing_else(name: str, tmp_path: Path) -> None:
    weight = np.full((4, 2), 7, np.float32)

    def edit(model: Model) -> None:
        node = next(node for node in model.graph.nodes if node.name == "elsewhere")
        assign(node.inputs[1], weight)
        node.name = "renamed"
        state = model.checkpoint()
        model.proto()
        assert not state.changed(), "writing a model must not change it"

    expected = CONSTRUCTS[name]()
    next(node for node in expected.graph.node if node.name == "elsewhere").name = "renamed"
    (message,) = messages_of(expected, "elsewhere.w")
    set_data(message, weight)
    assert differences(reloaded(CONSTRUCTS[name](), tmp_path, edit), expected) == []


@each_construct
def test_an_edit_of_every_node_changes_nothing_else(name: str) -> None:
    """In bodies and functions too."""
    expected = CONSTRUCTS[name]()
    for root in (expected.graph, *expected.functions):
        for body in proto_graphs(root):
            for message in body.node:
                message.name = f"renamed/{message.name}"
    model = Model.from_proto(CONSTRUCTS[name]())
    for item in (model.graph, *model.graph.functions):
        for graph in nested_graphs(item):
            for node in graph.nodes:
                node.name = f"renamed/{node.name}"
    assert differences(model.proto(), expected) == []


@pytest.mark.parametrize("name", [name for name in CONSTRUCTS if messages_of(CONSTRUCTS[name](), "w")])
def test_a_weight_that_is_replaced_is_the_only_difference(name: str, tmp_path: Path) -> None:
    expected = CONSTRUCTS[name]()
    (message,) = messages_of(expected, "w")
    old = array_of(message)
    array = other_values(old)

    def edit(model: Model) -> None:
        assign(next(item for item in gs_tensors(model) if item.name == "w"), array)

    found = reloaded(CONSTRUCTS[name](), tmp_path, edit)
    (stored,) = messages_of(found, "w")
    assert array_of(stored).dtype == old.dtype
    np.testing.assert_array_equal(array_of(stored), array)
    if array.size:
        assert (array != old).any()
    clear_data(stored)
    clear_data(message)
    assert differences(found, expected) == []


def test_undoing_an_edit_brings_every_field_back() -> None:
    for name, maker in CONSTRUCTS.items():
        model = Model.from_proto(maker())
        state = model.checkpoint()
        for graph in nested_graphs(model.graph):
            for node in graph.nodes:
                node.name, node.op = f"new {node.name}", "Renamed"
                node.attrs.clear()
        for item in list(gs_tensors(model)):
            item.name = f"new {item.name}"
        drop_unused(model.graph)
        model.graph.functions.clear()
        model.proto()
        state.restore()
        assert differences(model.proto(), maker()) == [], name


def test_weights_that_stay_in_their_file_are_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the other tests are too small to be left there."""
    for module in (reader, mapped):
        monkeypatch.setattr(module, "LEAST", 1)
    for name, maker in CONSTRUCTS.items():
        proto = maker()
        assert differences(reloaded(proto, tmp_path), proto) == [], name
        assert differences(Model.from_proto(proto).copy().proto(), proto) == [], name
        model = Model.from_proto(proto)
        tensors = {item.name: item for item in gs_tensors(model) if isinstance(item, gs.Constant)}
        for message in proto.graph.initializer:
            if message.name in tensors and len(messages_of(proto, message.name)) == 1:
                array = other_values(array_of(message))
                assign(tensors[message.name], array)
                set_data(message, array)
        assert differences(model.proto(), proto) == [], name


@settings(max_examples=40)
@given(st.data())
def test_any_mixture_of_constructs_comes_through(data: st.DataObject) -> None:
    """Several constructs and a network in one model, some of whose weights are replaced."""
    names = data.draw(st.lists(st.sampled_from(MIXED), min_size=1, max_size=5), label="constructs")
    net = data.draw(networks(), label="network")
    proto = merged([*(CONSTRUCTS[name]() for name in names), net.proto()])
    weights = [message.name for message in proto.graph.initializer if len(messages_of(proto, message.name)) == 1]
    chosen = set(data.draw(st.lists(st.sampled_from(weights), max_size=4), label="replaced"))

    expected = copied(proto)
    model = Model.from_proto(proto)
    assert differences(proto, expected) == [], "a message that a model is made of must not change"
    tensors = {item.name: item for item in gs_tensors(model) if isinstance(item, gs.Constant)}
    for name in sorted(chosen & tensors.keys()):
        (message,) = messages_of(expected, name)
        array = other_values(array_of(message))
        set_data(message, array)
        assign(tensors[name], array)
    found = model.proto()
    assert differences(found, expected) == []
    assert differences(Model.from_proto(found).proto(), found) == []


@pytest.mark.zoo
@each_model
def test_real_models_come_through_unchanged(name: str, tmp_path: Path) -> None:
    path = zoo_model(name)
    model = Model.load(path)
    model.save(tmp_path / "copy.onnx")
    assert differences(onnx.load(tmp_path / "copy.onnx"), onnx.load(path)) == []
