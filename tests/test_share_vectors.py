"""Weights that share few vectors: in graphs, behind other passes, before other passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import compress
from onnxcomp.context import Context
from onnxcomp.graph import cost
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.stored import has_codebook, is_restoring
from onnxcomp.graph.trainable import made_layers
from onnxcomp.model import Model
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime import session
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target
from tests.quantizing import build
from tests.test_share import share, values_of
from tests.test_small_weights import network, samples, sqnr
from tests.zoo import calibration, zoo_model

Array = np.ndarray[Any, Any]
RESTORING = {"Cast", "Gather", "Add", "Reshape", "Transpose"}
LAYERS = {
    "MatMul": ("g (float[N, 32] x) => (float[N, 96] y) { y = MatMul(x, w) }", (32, 96), (1,)),
    "Gemm": ("g (float[N, 32] x) => (float[N, 96] y) { y = Gemm(x, w) }", (32, 96), (1,)),
    "turned": ("g (float[N, 32] x) => (float[N, 96] y) { y = Gemm<transB = 1>(x, w) }", (96, 32), (0,)),
    "Conv": ("g (float[N, 8, 4, 4] x) => (float[N, 96, 2, 2] y) { y = Conv(x, w) }", (96, 8, 3, 3), (0,)),
    "groups": ("g (float[N, 16, 4, 4] x) => (float[N, 96, 2, 2] y) { y = Conv<group = 2>(x, w) }", (96, 8, 3, 3), (0,)),
    "ConvTranspose": (
        "g (float[N, 8, 2, 2] x) => (float[N, 96, 4, 4] y) { y = ConvTranspose(x, w) }",
        (8, 96, 3, 3),
        (1,),
    ),
    "table": ("g (int64[N] i) => (float[N, 32] y) { y = Gather(w, i) }", (96, 32), (0,)),
}


def of_few_vectors(shape: tuple[int, ...], kept: tuple[int, ...], clusters: int, dim: int) -> Array:
    """A weight whose outputs' flattened inputs are vectors of a codebook."""
    rng = np.random.default_rng(0)
    book = rng.standard_normal((min(clusters, 24), dim)).astype(np.float32)
    moved = [shape[axis] for axis in (*kept, *(axis for axis in range(len(shape)) if axis not in kept))]
    rows = book[rng.integers(0, len(book), (96, int(np.prod(shape)) // 96 // dim))].reshape(moved)
    return np.ascontiguousarray(np.moveaxis(rows, 0, kept[0]))


@pytest.mark.parametrize(
    ("opset", "clusters", "dim", "group"),
    [(13, 16, 2, 0), (13, 4, 2, 36), (13, 256, 2, 0), (21, 16, 4, 32), (25, 4, 2, 36), (25, 16, 4, 0)],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_weights_of_few_vectors_come_back_exactly(kind: str, clusters: int, dim: int, group: int, opset: int) -> None:
    text, shape, kept = LAYERS[kind]
    weight = of_few_vectors(shape, kept, clusters, dim)
    model = build(text, {"w": weight}, opset)
    name = weighted_layers(model)[0].name
    rng = np.random.default_rng(1)
    fed = [3, *model.graph.inputs[0].shape[1:]]
    feeds = {"i": np.arange(96)} if kind == "table" else {"x": rng.standard_normal(fed).astype(np.float32)}
    expected = values_of(model, "y", feeds)
    decision = share(model, clusters=clusters, dim=dim, group=group)[name]
    assert decision.action == "shared"
    assert f"{clusters} vectors of {dim}" in decision.reason
    np.testing.assert_array_equal(values_of(model, "y", feeds), expected)
    (stored,) = weighted_layers(model)
    assert (stored.quantized, stored.shape) == (True, shape)
    kernels = {kernel.op for kernel in optimized_kernels(model)}
    assert not kernels & (RESTORING - {"Gather"} if kind == "table" else RESTORING), "restored once, at load"


@pytest.mark.parametrize(
    ("opset", "kind", "dtype", "ops"),
    [
        (25, "Conv", "uint4", "Cast Gather Reshape Conv"),
        (25, "MatMul", "uint4", "Cast Gather Reshape Transpose MatMul"),
        (13, "turned", "uint8", "Cast Gather Reshape Cast Gather Reshape Gemm"),
    ],
)
def test_the_graph_is_codes_and_rows_of_a_codebook(opset: int, kind: str, dtype: str, ops: str) -> None:
    text, shape, _ = LAYERS[kind]
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model = build(text, {"w": weight}, opset)
    share(model, clusters=16, dim=2)
    assert [node.op for node in model.graph.nodes] == ops.split()
    restored = model.graph.nodes[-1].inputs[1]
    assert has_codebook(restored)
    assert all(is_restoring(node) for node in model.graph.nodes[:-1])
    held = {tensor.name: tensor for tensor in model.proto().graph.initializer}
    assert list(held["w_codebook"].dims) == [16, 2]
    (codes,) = (tensor for name, tensor in held.items() if name.startswith("w_codes"))
    assert codes.data_type == onnx.TensorProto.DataType.Value(dtype.upper())
    assert np.prod(codes.dims) == weight.size / 2 / (2 if opset < 21 else 1)


def test_calibration_serves_the_outputs() -> None:
    data, found = samples(), {}
    for calibrated in (None, data):
        model = network()
        decisions = share(model, calibrated, clusters=16, dim=2)
        found[calibrated is None] = sqnr(network(), model, data)
    assert found[False] > found[True] + 3.0
    assert "of its outputs' variance" in decisions["Conv:c1"].reason
    assert not {kernel.op for kernel in optimized_kernels(model.serialize())} & (RESTORING - {"Reshape"})


def test_layers_that_cannot_have_such_vectors_get_shorter_ones_and_say_why() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", (66, 65)), ("v", (65, 64)))}
    arrays["u"] = (rng.standard_normal((64, 256)) * (rng.uniform(size=(64, 256)) > 0.5)).astype(np.float32)
    arrays["t"] = rng.standard_normal((256, 64)).astype(np.float32)
    model = build(
        """g (float[N, 66] x) => (float[N, 64] y) {
            a = MatMul(x, w)
            b = MatMul(a, v)
            c = MatMul(b, u)
            y = MatMul(c, t)
        }""",
        arrays,
        21,
    )
    reasons = {name: decision.reason for name, decision in share(model, dim=4).items()}
    assert reasons["MatMul:a"].startswith("16 vectors of 2,")
    assert reasons["MatMul:a"].endswith("its 66 weights of an output are no multiple of 4")
    assert "codebooks of 16 values" in reasons["MatMul:b"]
    assert reasons["MatMul:b"].endswith("its 65 weights of an output are no multiple of 4")
    assert "codebooks of 16 values" in reasons["MatMul:c"]
    assert reasons["MatMul:c"].endswith("single values, so that its zeros stay")
    sparse = str(model.graph.nodes[[node.outputs[0].name for node in model.graph.nodes].index("c")].inputs[1].name)
    feeds = {"x": np.zeros((1, 66), np.float32)}
    restored = session.run(session.create(session.with_outputs(model.skeleton(), [sparse])), feeds, [sparse])[sparse]
    assert not restored[arrays["u"] == 0].any()
    assert reasons["MatMul:y"].startswith("16 vectors of 4, 1.13 bits a weight")
    small = build(LAYERS["MatMul"][0], {"w": arrays["t"][:48].reshape(32, 96)}, 21)
    (decision,) = share(small, clusters=256, dim=4).values()
    assert decision.reason.startswith("256 vectors of 2")
    assert decision.reason.endswith("a codebook of vectors of 4 would take more than it saves")


def test_layers_over_their_share_of_the_loss_get_shorter_vectors() -> None:
    data, model = samples(), network()
    decisions = share(model, data, clusters=16, dim=2, loss=0.02)
    assert "16 vectors of 2 would add" in decisions["Conv:c1"].reason
    coarse = network()
    share(coarse, data, clusters=16, dim=2)
    assert sqnr(network(), model, data) > sqnr(network(), coarse, data)


def test_later_passes_leave_vectors_alone_and_training_moves_them() -> None:
    data = samples()
    model = network()
    share(model, data, clusters=16, dim=4)
    assert made_layers(model)["Conv:c1"] == ["w1_codebook"]
    before = {tensor.name: tensor.raw_data for tensor in model.proto().graph.initializer}
    result = compress(model.copy(), "fold, quant", data=data, timings="off")
    assert all(entry.verification.status == "passed" for entry in result.report.passes)
    after = {tensor.name: tensor.raw_data for tensor in result.model.proto().graph.initializer}
    assert {name for name in before if "_code" in name} == {name for name in after if "_code" in name}
    assert after["w1_codebook"] == before["w1_codebook"]
    context = Context(target=Target.host(), data=data, original=network(), scope="recover")
    Recover(epochs=4, batch=8, lr=3e-4).run(model, context)
    decisions = {decision.layer: decision for decision in context.decisions}
    assert decisions["Conv:c1"].action == "trained", decisions["Conv:c1"].reason
    learnt = {tensor.name: tensor.raw_data for tensor in model.proto().graph.initializer}
    assert learnt["w1_codebook"] != before["w1_codebook"]
    assert all(learnt[name] == before[name] for name in before if "_codes" in name)


@pytest.mark.parametrize(("opset", "dim"), [(17, 1), (17, 4), (25, 2)])
def test_all_weights_are_counted_however_few_bytes_hold_them(opset: int, dim: int) -> None:
    model = network(opset)
    share(model, dim=dim)
    assert cost.parameters(model) == cost.parameters(network(opset))


def test_the_same_bytes_twice() -> None:
    first, second = network(), network()
    for model in (first, second):
        share(model, samples(), dim=4)
    assert first.serialize() == second.serialize()


def test_a_residual_network_loses_less_by_vectors_than_by_values_of_as_many_bits() -> None:
    """Two layers of it: 2.9 bits a weight, codebook and all, against 2.1."""
    path = zoo_model("fashion_resnet")
    original, data = Model.load(path), calibration(path, 16)
    keep = tuple(layer.name for layer in weighted_layers(original) if "stage1.1" not in layer.name)
    found = {}
    for clusters, dim in ((4, 1), (256, 4)):
        model = original.copy()
        share(model, data, clusters=clusters, dim=dim, keep=keep)
        found[dim] = sqnr(original, model, data)
    assert found[4] > found[1] + 1.5
