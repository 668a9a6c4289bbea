"""Weights that share few values: in graphs, behind other passes, before other passes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp import compress
from onnxcomp.context import Context, Decision
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning
from onnxcomp.evaluate import Evaluator, metric_named
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.stored import has_codebook
from onnxcomp.graph.trainable import made_layers
from onnxcomp.model import Model
from onnxcomp.passes.share import Share
from onnxcomp.runtime import session
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target
from tests.generate import Net, networks
from tests.quantizing import build
from tests.test_functions import with_functions
from tests.test_quant_bodies import branches, images
from tests.test_small_weights import network, samples, sqnr
from tests.zoo import COMMITTED

Array = np.ndarray[Any, Any]
RESTORING = {"Cast", "Gather", "Add", "Reshape"}


def share(model: Model, data: Dataset | None = None, **options: Any) -> dict[str, Decision]:
    """Run the pass, check the result's validity, and return the decisions by layer."""
    context = Context(target=Target.host(), data=data, scope="share")
    names = [layer.name for layer in weighted_layers(model)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)  # that there are no data
        Share(**options).run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    assert sorted(decision.layer for decision in context.decisions) == sorted(names), "one decision a layer"
    return {decision.layer: decision for decision in context.decisions}


def values_of(model: Model, output: str, feeds: dict[str, Array]) -> Array:
    found: Array = session.run(session.create(model), feeds)[output]
    return found


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    clusters=st.sampled_from([4, 16, 256]),
    opset=st.sampled_from([13, 21, 25]),
    outs=st.integers(40, 70),
    ins=st.sampled_from([64, 96, 100]),
    group=st.sampled_from([0, 7, 1000]),
)
def test_weights_of_few_values_come_back_exactly(
    seed: int, clusters: int, opset: int, outs: int, ins: int, group: int
) -> None:
    rng = np.random.default_rng(seed)
    book = rng.standard_normal(clusters if clusters < 256 else 40).astype(np.float32)
    weight = rng.choice(book, size=(ins, outs))
    model = build("g (float[N, I] x) => (float[N, O] y) { y = MatMul(x, w) }", {"w": weight}, opset)
    decisions = share(model, clusters=clusters, group=group)
    feeds = {"x": np.eye(ins, dtype=np.float32)}
    np.testing.assert_array_equal(values_of(model, "y", feeds), weight)
    if decisions["MatMul:y"].action == "shared":
        (stored,) = weighted_layers(model)
        assert stored.quantized
        assert stored.shape == (ins, outs)
    assert {kernel.op for kernel in optimized_kernels(model)} == {"MatMul"}, "restored once, at load"


@pytest.mark.parametrize(
    ("opset", "clusters", "dtype", "ops"),
    [
        (25, 4, "uint2", "Cast Gather MatMul"),
        (21, 16, "uint4", "Cast Gather MatMul"),
        (13, 256, "uint8", "Cast Gather MatMul"),
        (13, 16, "uint8", "Cast Gather Reshape Cast Gather MatMul"),
        (7, 4, "uint8", "Cast Gather Reshape Cast Gather MatMul"),
    ],
)
def test_the_graph_is_codes_and_a_codebook(opset: int, clusters: int, dtype: str, ops: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 128)).astype(np.float32)
    model = build("g (float[N, 64] x) => (float[N, 128] y) { y = MatMul(x, w) }", {"w": weight}, opset)
    before = len(model.serialize())
    share(model, clusters=clusters, group=128)
    assert [node.op for node in model.graph.nodes] == ops.split()
    constants = {str(tensor.dtype) for node in model.graph.nodes for tensor in node.inputs if tensor.name.count("uint")}
    types = {initializer.data_type for initializer in model.proto().graph.initializer}
    assert onnx.TensorProto.DataType.Value(dtype.upper()) in types, constants
    assert len(model.serialize()) < before / (3.0 if clusters == 256 else 6.0)
    assert len(np.unique(values_of(model, "y", {"x": np.eye(64, dtype=np.float32)}))) <= clusters


def test_calibration_serves_the_outputs() -> None:
    data = samples()
    plain, calibrated = network(), network()
    share(plain, clusters=4)
    decisions = share(calibrated, data, clusters=4)
    assert sqnr(network(), calibrated, data) > sqnr(network(), plain, data) + 3.0
    assert "of its outputs' variance" in decisions["Conv:c1"].reason
    assert "9 weights" in decisions["Conv:c2"].reason
    assert not {kernel.op for kernel in optimized_kernels(calibrated.serialize())} & RESTORING


def test_more_values_lose_less_and_layers_over_their_share_get_more() -> None:
    data, found = samples(), {}
    for clusters in (4, 16):
        model = network()
        share(model, data, clusters=clusters)
        found[clusters] = sqnr(network(), model, data)
    assert found[16] > found[4] + 8.0
    model = network()
    decisions = share(model, data, clusters=4, loss=1e-4)
    assert "256 values" in decisions["Conv:c1"].reason
    assert "4 values would add" in decisions["Conv:c1"].reason
    assert sqnr(network(), model, data) > found[4]  # the classifier, too small for 256 values, makes most noise
    with pytest.raises(Exception, match="needs calibration data"):
        share(network(), loss=0.1)


def test_zeros_of_an_earlier_pass_stay_zero() -> None:
    data = samples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)
        sparse = compress(network(), 'prune(granularity="element", sparsity=0.6)', data=data, timings="off").model
    zero = {layer.name: layer.array() == 0 for layer in weighted_layers(sparse)}
    decisions = share(sparse, data)
    shared = [name for name, decision in decisions.items() if decision.action == "shared"]
    assert len(shared) >= 2
    restored = {layer.name: str(layer.node.inputs[layer.weight_index].name) for layer in weighted_layers(sparse)}
    wanted = [restored[name] for name in shared]
    weights = session.run(session.create(session.with_outputs(sparse.skeleton(), wanted)), data.sample(), wanted)
    for name in shared:
        assert not weights[restored[name]][zero[name]].any()


@pytest.mark.parametrize("opset", [8, 17, 21])
def test_runs_of_channels_on_axes_of_their_own_come_back_exactly(opset: int) -> None:
    rng = np.random.default_rng(0)
    w = rng.choice(rng.standard_normal(16), size=(96, 8, 3, 3)).astype(np.float32)
    v = rng.choice(rng.standard_normal(16), size=(96, 200)).astype(np.float32)
    model = build(
        """g (float[N, 8, 3, 3] x) => (float[N, 200] y) {
            c = Conv(x, w)
            f = Flatten(c)
            y = MatMul(f, v)
        }""",
        {"w": w, "v": v},
        opset,
    )
    feeds = {"x": rng.standard_normal((4, 8, 3, 3)).astype(np.float32)}
    expected = values_of(model, "y", feeds)
    decisions = share(model, group=4)
    np.testing.assert_array_equal(values_of(model, "y", feeds), expected)
    assert "24 codebooks" in decisions["Conv:c"].reason
    assert "50 codebooks" in decisions["MatMul:y"].reason
    places = [node.inputs[1] for node in model.graph.nodes if node.op == "Add"]
    assert [tensor.shape for tensor in places] == [(24, 1, 1, 1, 1), (1, 50, 1)]
    assert not {kernel.op for kernel in optimized_kernels(model.serialize())} & RESTORING
    restored = {layer.name: (layer.quantized, layer.shape) for layer in weighted_layers(model)}
    assert restored == {"Conv:c": (True, w.shape), "MatMul:y": (True, v.shape)}
    assert made_layers(model) == {"Conv:c": ["w_codebook"], "MatMul:y": ["v_codebook"]}, "recover trains them"


def test_layers_of_bodies_share_values() -> None:
    model = branches()
    data = images(model, low=-1.0)
    original = session.run(session.create(model), data.sample())["y"]
    size = len(model.serialize())
    decisions = share(model, data, clusters=256, group=16)
    assert [decision.action for decision in decisions.values()] == ["shared"] * 3
    assert np.square(session.run(session.create(model), data.sample())["y"] - original).mean() < 1e-3 * original.var()
    assert len(model.serialize()) < size / 2
    assert not {kernel.op for kernel in optimized_kernels(model.serialize())} & {"Cast", "Gather", "Add"}


def test_layers_of_functions_share_values() -> None:
    proto = with_functions()
    model = Model.from_proto(proto)
    assert {decision.action for decision in share(model).values()} == {"shared"}
    assert len(model.serialize()) < 0.45 * len(proto.SerializeToString())
    feeds = {"x": np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)}
    exact = values_of(Model.from_proto(proto), "y", feeds)
    assert np.square(values_of(model, "y", feeds) - exact).mean() < 0.06 * exact.var()  # about 0.01 for each layer
    assert not {kernel.op for kernel in optimized_kernels(model.serialize())} & RESTORING


def test_a_weight_of_several_layers_is_stored_once() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    model = build(
        """g (int64[N] i) => (float[N, 300] y) {
            e = Gather(w, i)
            y = Gemm<transB = 1>(e, w)
        }""",
        {"w": weight},
    )
    decisions = share(model)
    assert decisions["Gather:e"].action == decisions["Gemm:y"].action == "shared"
    assert decisions["Gemm:y"].reason == "its weight is that of Gather:e"
    assert len(model.serialize()) < weight.nbytes / 6
    found = values_of(model, "y", {"i": np.arange(300)})
    np.testing.assert_allclose(found, (exact := weight @ weight.T), atol=0.25 * exact.std() * 8)
    assert {kernel.op for kernel in optimized_kernels(model)} == {"Gather", "Gemm"}


def test_the_loss_holds_for_layers_without_inputs_to_observe_too() -> None:
    table = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    for loss, wanted in ((0.1, "codebooks of 16 values"), (1e-3, "codebooks of 256 values")):
        model = build("g (int64[N] i) => (float[N, 64] y) { y = Gather(w, i) }", {"w": table}, 21)
        data = Dataset.from_arrays({"i": np.arange(32)}, model=model)
        decisions = share(model, data, loss=loss)
        assert wanted in decisions["Gather:y"].reason
        assert ("16 values would lose 0.009 of the weights' power" in decisions["Gather:y"].reason) == (loss < 0.01)
        error = np.square(values_of(model, "y", {"i": np.arange(500)}) - table).mean() / np.square(table).mean()
        assert error <= loss


def test_weights_of_constant_nodes_and_channels_of_zeros() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight[:, :16] = 0.0
    model = build("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", {"w": weight})
    proto = model.proto()
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=proto.graph.initializer[0]))
    del proto.graph.initializer[:]
    model = Model.from_proto(proto)
    decisions = share(model, group=8)
    assert decisions["MatMul:y"].action == "shared"
    found = values_of(model, "y", {"x": np.eye(64, dtype=np.float32)})
    np.testing.assert_array_equal(found[:, :16], 0.0)
    assert np.square(found - weight).mean() < 0.02
    assert len(model.serialize()) < weight.nbytes / 4


def test_picking_rows_of_constants_is_no_codebook() -> None:
    rows = np.random.default_rng(0).integers(-100, 100, size=(64, 32)).astype(np.int8)
    model = build(
        """g (float[N, 32] x) => (float[N, 32] y) {
            t = Cast<to = 1>(q)
            p = Gather(t, i)
            y = MatMul(x, p)
        }""",
        {"q": rows, "i": np.arange(32)},
    )
    assert not has_codebook(model.graph.nodes[-1].inputs[1])
    shared = build("g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }", {"w": rows.astype(np.float32)})
    share(shared)
    assert has_codebook(shared.graph.nodes[-1].inputs[1])


def test_embeddings_share_values() -> None:
    table = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    model = build("g (int64[N] i) => (float[N, 32] y) { y = Gather(w, i) }", {"w": table}, 21)
    decisions = share(model)
    assert decisions["Gather:y"].action == "shared"
    found = values_of(model, "y", {"i": np.arange(500)})
    assert np.square(found - table).mean() < 0.012 * table.var()


def test_what_cannot_share_says_why() -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((64, 64)).astype(np.float32), "v": np.zeros((64, 3), np.float32)}
    model = build(
        """g (float[N, 64] x) => (float[N, 3] y) {
            a = MatMul(x, w)
            b = MatMul(a, w)
            y = MatMul(b, v)
        }""",
        arrays,
    )
    decisions = share(model, keep=("MatMul:a",))
    assert "option keep" in decisions["MatMul:a"].reason
    assert decisions["MatMul:b"].reason == "its weight is also that of MatMul:a, which option keep names"
    assert "too few for codebooks to pay" in decisions["MatMul:y"].reason
    bad = np.where(np.eye(64, 32) > 0, np.nan, arrays["w"][:, :32]).astype(np.float32)
    model = build(
        "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": bad, "v": arrays["w"][:32]},
    )
    decisions = share(model, group=1)
    assert decisions["MatMul:a"].reason == "its weights or biases hold NaN or infinite values"
    assert decisions["MatMul:y"].reason == "the 32 weights of group=1 outputs are too few for a codebook to pay"
    kept = network()
    assert "option keep" in share(kept, keep=("Conv:c1",))["Conv:c1"].reason
    with pytest.raises(Exception, match="option keep names 'nothing'"):
        share(network(), keep=("nothing",))


@settings(max_examples=8, deadline=None)
@given(net=networks())
def test_generated_networks_stay_valid_and_near(net: Net) -> None:
    model = net.model()
    data = Dataset.from_arrays(net.feeds(8))
    original = model.copy()
    share(model, data, clusters=256)
    found = Evaluator(original, data, metric_named("sqnr")).evaluate(model).fidelity.sqnr_db
    assert found > 15.0


def test_shared_weights_can_be_trained_and_activations_quantized() -> None:
    data = samples()
    result = compress(network(), "share(clusters=4), recover(epochs=4, batch=8)", data=data, timings="off")
    actions = {decision.layer: decision.action for decision in result.report.passes[-1].decisions}
    assert actions["Conv:c1"] == "trained"
    assert len(actions) == 5
    shared = compress(network(), "share", data=data, timings="off").model
    then = compress(network(), "share, quant", data=data, timings="off")
    entry = then.report.passes[-1]
    assert entry.verification.status == "passed"
    assert {decision.layer for decision in entry.decisions} == {layer.name for layer in weighted_layers(shared)}


def test_the_same_bytes_twice() -> None:
    first, second = (compress(network(), "share", data=samples(), timings="off").model for _ in range(2))
    assert first.serialize() == second.serialize()


@pytest.mark.zoo
def test_a_residual_network_loses_little() -> None:
    result = compress(
        COMMITTED / "fashion_resnet.onnx",
        "share",
        data=str(COMMITTED / "fashion_calibration.npz"),
        test_data=str(COMMITTED / "fashion_test.npz"),
    )
    metric = result.report.result.metric
    assert metric is not None
    assert metric.original is not None
    assert metric.compressed is not None
    assert metric.original - metric.compressed <= 0.01
    assert result.report.result.size_ratio > 6.5
