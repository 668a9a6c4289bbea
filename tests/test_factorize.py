"""factorize: graphs before and after as text, budgets, planted products, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.compiler import compress
from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, UsageError
from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.cost import cost
from onnxcomp.graph.factors import columns_of, forms_of, kernel_of, macs_of, unfactorizable, write_factors
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.linalg.low_rank import Factors, Truncation, last_factor, with_middle
from onnxcomp.model import Model
from onnxcomp.passes.factorize import Factorize
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import session
from onnxcomp.runtime.factor_times import FactorTimes, LayerTime
from onnxcomp.runtime.sensitivity import Weighting, output_moments
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimedComparison, TimingTable
from tests.zoo import zoo_model

Array = np.ndarray[Any, Any]
TARGET = Target.parse("x86-avx2")  # multiples of 8


def text(model: Model) -> list[str]:
    """Each node as ``outputs = Op(inputs)``, with the shapes of its constants."""

    def named(tensor: Any) -> str:
        return f"{tensor.name}{list(tensor.shape)}" if is_constant(tensor) else str(tensor.name)

    return [f"{node.outputs[0].name} = {node.op}({', '.join(map(named, node.inputs))})" for node in model.graph.nodes]


# -- writing factors -----------------------------------------------------------------------------------------


def single(op: str, seed: int, opset: int, **attributes: Any) -> tuple[Model, dict[str, Array]]:
    """A layer of 6 inputs and 8 outputs."""
    rng = np.random.default_rng(seed)
    kernel = attributes.pop("kernel", (3, 2))
    shape = {"Conv": (8, 6, *kernel), "MatMul": (6, 8), "Gemm": (8, 6) if attributes.get("transB") else (6, 8)}[op]
    spatial = (7, 6, 5)[: len(kernel)]
    fed = {"Conv": (2, 6, *spatial), "MatMul": (2, 3, 6), "Gemm": (6, 3) if attributes.get("transA") else (3, 6)}[op]
    inputs = ["x", "w"] if op == "MatMul" else ["x", "w", "b"]
    nodes = [helper.make_node(op, inputs, ["y"], name="layer", **attributes)]
    constants = {"w": shape, "b": (8,)} if op != "MatMul" else {"w": shape}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, fed)
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model.from_proto(proto), {"x": rng.standard_normal(fed).astype(np.float32)}


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", {}),
        ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("Conv", {"auto_pad": "SAME_LOWER", "kernel_shape": [3, 2]}),
        ("Conv", {"kernel": (1, 1), "strides": [2, 2]}),
        ("Conv", {"kernel": (3,), "pads": [1, 1]}),
        ("Conv", {"kernel": (1, 3), "pads": [0, 1, 0, 1]}),
        ("Conv", {"kernel": (2, 3, 2)}),
        ("MatMul", {}),
        ("Gemm", {}),
        ("Gemm", {"transB": 1, "beta": 0.5}),
        ("Gemm", {"transA": 1, "alpha": 0.5}),
    ],
)
@pytest.mark.parametrize("opset", [9, 17])
def test_every_form_written_computes_its_product(op: str, attributes: dict[str, Any], opset: int) -> None:
    model, feeds = single(op, 1, opset, **attributes)
    rng = np.random.default_rng(2)
    for form in forms_of(weighted_layers(model)[0]):
        whole, product = model.copy(), model.copy()
        layer, dense = weighted_layers(product)[0], weighted_layers(whole)[0]
        columns, taps = columns_of(layer, form), form.taps(kernel_of(layer))
        q = len(columns) // taps
        middle = rng.standard_normal((4, taps * 3)) if form.middle else None
        factors = Factors(rng.standard_normal((3, q)), rng.standard_normal((8, 4 if form.middle else taps * 3)), middle)
        W = np.empty((1, 8, len(columns)))
        W[0][:, columns] = factors.product()
        dense.set_matrix(W)
        shapes = observed(whole, feeds)
        counted = macs_of([layer], form, (3, 4) if form.middle else (3,), shapes["x"], shapes["y"])
        write_factors(product, [layer], form, factors)
        expected, found = (session.run(session.create(m), feeds)["y"] for m in (whole, product))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert counted == cost(product, observed(product, feeds)).flops // 2


def test_names_and_nodes_of_what_is_written() -> None:
    model, _ = single("Conv", 0, 17, pads=[1, 0, 1, 1])
    layer = weighted_layers(model)[0]
    form = next(form for form in forms_of(layer) if form.middle)
    write_factors(model, [layer], form, Factors(np.ones((3, 6)), np.ones((8, 4)), np.ones((4, 18))))
    assert text(model) == [
        "layer/basis/output = Conv(x, layer/basis/weight[3, 6, 1, 1])",
        "layer/core/output = Conv(layer/basis/output, layer/core/weight[4, 3, 3, 2])",
        "y = Conv(layer/core/output, w[8, 4, 1, 1], b[8])",
    ]
    core, last = model.graph.nodes[1:]
    assert (core.attrs["pads"], last.attrs["pads"], last.name) == ([1, 0, 1, 1], [0, 0, 0, 0], "layer")


# -- the pass ------------------------------------------------------------------------------------------------


def built(body: str, arrays: dict[str, Array]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{body}')
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type.lower()}{index}"
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def low_rank(rng: np.random.Generator, rank: int, outputs: int, inputs: int) -> Array:
    scale = 1.0 / np.sqrt(rank * inputs)
    return scale * rng.standard_normal((outputs, rank)) @ rng.standard_normal((rank, inputs))


def transformer(seed: int = 0, rank: int | None = None) -> tuple[Model, Dataset]:
    """Queries, keys and values of one input of 32 channels, and a wider layer behind them."""
    rng = np.random.default_rng(seed)
    q, k, v = np.split(low_rank(rng, rank or 32, 96, 32), 3)
    arrays = {"wq": q.T, "wk": k.T, "wv": v.T, "w1": low_rank(rng, rank or 32, 64, 32).T, "b": rng.standard_normal(64)}
    model = built(
        """
        g (float[n, t, 32] x) => (float[n, t, 64] y) {
            xq = MatMul(x, wq)
            xk = MatMul(x, wk)
            xv = MatMul(x, wv)
            kt = Transpose<perm = [0, 2, 1]>(xk)
            s = MatMul(xq, kt)
            p = Softmax<axis = -1>(s)
            a = MatMul(p, xv)
            z = MatMul(a, w1)
            y = Add(z, b)
        }""",
        arrays,
    )
    samples = rng.standard_normal((64, 9, 32)) * np.exp(-np.arange(32) / 8)
    return model, Dataset.from_arrays({"x": samples.astype(np.float32)}, model=model)


def convolutions(seed: int = 0, rank: int | None = None) -> tuple[Model, Dataset]:
    """A 3x3 convolution (of products of ``rank`` over its channels), a strided one, a 1x1, a classifier."""
    rng = np.random.default_rng(seed)
    spatial = low_rank(rng, rank or 32, 32 * 9, 32).reshape(32, 3, 3, 32).transpose(0, 3, 1, 2)
    arrays = {
        "w0": rng.standard_normal((32, 3, 3, 3)) / 5,
        "w1": spatial,
        "w2": low_rank(rng, rank or 48, 48, 32 * 9).reshape(48, 32, 3, 3),
        "w3": low_rank(rng, rank or 48, 48, 48)[:, :, None, None],
        "b": rng.standard_normal(32),
        "w4": rng.standard_normal((48, 5)),
        "c": rng.standard_normal(5),
    }
    model = built(
        """
        g (float[n, 3, 6, 6] x) => (float[n, 5] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w0)
            r = Relu(a)
            d = Conv<pads = [1, 1, 1, 1]>(r, w1, b)
            s = Relu(d)
            e = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(s, w2)
            t = Relu(e)
            f = Conv(t, w3)
            m = GlobalAveragePool(f)
            l = Flatten(m)
            y = Gemm(l, w4, c)
        }""",
        arrays,
    )
    samples = rng.standard_normal((64, 3, 6, 6)).astype(np.float32)
    return model, Dataset.from_arrays({"x": samples}, model=model)


def apply(model: Model, data: Dataset | None, table: TimingTable | None = None, **options: Any) -> dict[str, str]:
    """Run the pass, as a rule without measuring any time; what it decided, by layer."""
    context = Context(target=TARGET, data=data, scope="factorize", timings=table or TimingTable(measures=False))
    before = {layer.name for layer in weighted_layers(model)}
    Factorize.with_options(options).run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    decided = {decision.layer: f"{decision.action}: {decision.reason}" for decision in context.decisions}
    assert decided.keys() == before
    assert len(context.decisions) == len(before)
    return decided


def outputs(model: Model, data: Dataset) -> Array:
    running = session.create(model)
    return np.concatenate([session.run(running, feeds)["y"] for feeds in data.feeds()])


def noise(model: Model, data: Dataset, expected: Array) -> float:
    return float(np.square(outputs(model, data) - expected).mean() / expected.var())


def macs(model: Model, data: Dataset) -> dict[str, int]:
    return {name: entry.macs for name, entry in cost(model, observed(model, data.sample())).per_layer.items()}


def test_attention_shares_its_first_factor() -> None:
    model, data = transformer(rank=8)
    expected = outputs(model, data)
    decided = apply(model, data, flops=0.5)
    assert text(model) == [
        "matmul0/basis/output = MatMul(x, matmul0/basis/weight[32, 8])",
        "xq = MatMul(matmul0/basis/output, wq[8, 32])",
        "xk = MatMul(matmul0/basis/output, wk[8, 32])",
        "xv = MatMul(matmul0/basis/output, wv[8, 32])",
        "kt = Transpose(xk)",
        "s = MatMul(xq, kt)",
        "p = Softmax(s)",
        "a = MatMul(p, xv)",
        "matmul7/basis/output = MatMul(a, matmul7/basis/weight[32, 8])",
        "z = MatMul(matmul7/basis/output, w1[8, 64])",
        "y = Add(z, b[64])",
    ]
    shared = "factorized: two factors of rank 8, the first shared by matmul0 and matmul1 and matmul2"
    assert decided["matmul1"].startswith(shared)
    assert decided["matmul7"].startswith("factorized: two factors of rank 8; relative output error")
    assert noise(model, data, expected) < 1e-7
    longer = {"x": np.random.default_rng(5).standard_normal((3, 17, 32)).astype(np.float32)}  # another batch and length
    assert session.run(session.create(model), longer)["y"].shape == (3, 17, 64)


def test_unrelated_queries_and_keys_have_factors_of_their_own() -> None:
    model, data = transformer()
    rng = np.random.default_rng(1)
    for layer in weighted_layers(model)[:3]:
        layer.set_matrix(low_rank(rng, 8, 32, 32)[None])
    apply(model, data, flops=0.4)
    assert {node.name for node in model.graph.nodes} >= {"matmul0/basis", "matmul1/basis", "matmul2/basis"}


@given(seed=st.integers(0, 2**16))
@settings(max_examples=2)
def test_planted_products_are_reproduced(seed: int) -> None:
    model, data = convolutions(seed, rank=8)
    expected = outputs(model, data)
    decided = apply(model, data, flops=0.4)
    assert any(reason.startswith("factorized") for reason in decided.values())
    assert noise(model, data, expected) < 1e-6
    model, data = transformer(seed, rank=8)
    expected = outputs(model, data)
    apply(model, data, flops=0.5)
    assert noise(model, data, expected) < 1e-6


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_so_large_a_share_of_the_operations_goes(share: float) -> None:
    model, data = convolutions()
    before = macs(model, data)
    touched = sum(before[layer.name] for layer in weighted_layers(model) if unfactorizable(layer) is None)
    expected = outputs(model, data)
    apply(model, data, flops=share)
    gone = (sum(before.values()) - sum(macs(model, data).values())) / touched
    assert share <= gone < share + 0.1
    assert noise(model, data, expected) < share


def test_what_cannot_be_reached_is_told() -> None:
    model, data = convolutions()
    with pytest.warns(OnnxcompWarning, match="of the multiply-accumulates of the layers that may become products"):
        apply(model, data, flops=0.97)


def test_energy_and_error_are_kept() -> None:
    model, data = convolutions()
    expected = outputs(model, data)
    careful, bold = model.copy(), model.copy()
    apply(careful, data, energy=0.99)
    decided = apply(bold, data, energy=0.7)
    assert sum(macs(bold, data).values()) < sum(macs(careful, data).values()) <= sum(macs(model, data).values())
    errors = [float(reason.split("error ")[1]) for reason in decided.values() if reason.startswith("factorized")]
    assert errors
    assert max(errors) < 0.6  # of what the layers before it have lost as well
    small, large = model.copy(), model.copy()
    apply(small, data, error=0.01)
    apply(large, data, error=0.2)
    assert noise(small, data, expected) < 0.03
    assert sum(macs(large, data).values()) < sum(macs(small, data).values())
    default = model.copy()
    apply(default, data)
    assert default.serialize() == small.serialize()


def test_the_data_count_and_not_the_weights() -> None:
    model, data = transformer()
    expected = outputs(model, data)
    plain = model.copy()
    apply(model, data, flops=0.3)
    with pytest.warns(OnnxcompWarning, match="truncated SVD"):
        apply(plain, data, flops=0.3, metric="weights")
    assert noise(model, data, expected) < 0.5 * noise(plain, data, expected)


def test_without_data_the_weights_are_decomposed() -> None:
    model, data = transformer(rank=8)
    expected = outputs(model, data)
    with pytest.warns(OnnxcompWarning, match="give samples with --data"):
        decided = apply(model, None, flops=0.3)
    assert any("relative weight error" in reason for reason in decided.values())
    assert noise(model, data, expected) < 1e-6


class Clock(TimingTable):
    """Says how fast everything is."""

    def __init__(self, layers: float, model: float = 2.0) -> None:
        super().__init__()
        self.layers, self.model = layers, model

    def compare(self, what: str, *_: Any, **__: Any) -> TimedComparison:
        ratio = self.model if what == "layers factorized" else self.layers if " as " in what else 1e9
        return TimedComparison("", what, ratio, ratio, ratio, 1.0, 1.0 / ratio)


def test_products_that_are_no_faster_are_not_made() -> None:
    model, data = convolutions()
    before = model.serialize()
    decided = apply(model, data, Clock(1.02), error=0.3)
    assert model.serialize() == before
    assert decided["conv2"] == "skipped: by the times measured it would be 1.02 times as fast at best"


def test_what_makes_the_model_no_faster_is_undone() -> None:
    model, data = convolutions()
    before = model.serialize()
    decided = apply(model, data, Clock(1.5, model=1.01), error=0.3)
    assert model.serialize() == before
    assert "the model would run 1.01 times as fast" in decided["conv2"]
    assert not any(reason.startswith(("factorized", "adjusted")) for reason in decided.values())


def test_a_form_that_turns_out_slower_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Any, ...]] = set()

    def of(_: Any, layers: Any, form: Any, ranks: Any) -> LayerTime:
        known = (layers[0].name, form, ranks) in seen
        seen.add((layers[0].name, form, ranks))
        slow = not known and len([key for key in seen if key[:2] == (layers[0].name, form)]) > 2  # beyond the probes
        return LayerTime(1.0, 0.9 if slow and form.middle else 1.5)

    monkeypatch.setattr(FactorTimes, "of", of)
    model, data = convolutions()
    decided = apply(model, data, Clock(1.5), error=0.3)
    assert any(reason.startswith("factorized") for reason in decided.values())
    assert "0.90" not in "".join(reason for reason in decided.values() if reason.startswith("factorized"))


def test_a_speed_is_reached_as_measured() -> None:
    model, data = convolutions()
    small = model.copy()
    apply(small, data, speedup=1.3)  # unmeasured: as operations say
    saved = 1.0 - sum(macs(small, data).values()) / sum(macs(model, data).values())
    assert saved > 0.15
    with pytest.warns(OnnxcompWarning, match="not 3x"):
        apply(model, data, Clock(1.5, model=1.2), speedup=3)


def test_layers_are_timed_once_for_each_shape() -> None:
    model, data = transformer()
    table = TimingTable()
    times = FactorTimes(observed(model, data.sample()), table)
    layers = weighted_layers(model)
    form = forms_of(layers[0])[0]
    found = times.of([layers[0]], form, (8,))
    assert found is not None
    assert found.ratio > 0
    assert found.whole_ms > 0
    assert table.measured == 2
    assert times.of([layers[1]], form, (8,)) == found  # a layer of the same shape
    assert table.measured == 2
    assert times.of(layers[:3], form, (8,)) is not None
    assert table.measured == 4


def test_what_cannot_be_a_product_is_told() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "w0": rng.standard_normal((16, 16, 3, 3)),
        "w1": rng.standard_normal((16, 4, 3, 3)),
        "w2": rng.standard_normal((16, 16, 2, 2)),
        "w3": np.where(rng.random((16, 16, 3, 3)) < 0.5, 0, rng.standard_normal((16, 16, 3, 3))),
        "w4": rng.standard_normal((8, 16, 1, 1)),
    }
    model = built(
        """
        g (float[n, 16, 8, 8] x) => (float[n, 8, h, w] y) {
            a = Conv(x, w0)
            b = Conv(a, w0)
            c = Conv<group = 4>(b, w1)
            d = ConvTranspose<strides = [2, 2]>(c, w2)
            e = Conv(d, w3)
            y = Conv(e, w4)
        }""",
        arrays,
    )
    data = Dataset.from_arrays({"x": rng.standard_normal((16, 16, 8, 8)).astype(np.float32)}, model=model)
    before = model.serialize()
    assert apply(model, data) == {
        "conv0": "skipped: its weight is shared",
        "conv1": "skipped: its weight is shared",
        "conv2": "skipped: a grouped or depthwise kernel is not factorized",
        "convtranspose3": "skipped: transposed convolutions are not factorized",
        "conv4": "skipped: its weight is sparse: factors would fill its zeros",
        "conv5": "skipped: no product of aligned ranks has fewer operations",
    }
    assert model.serialize() == before


def test_options() -> None:
    assert str(Pipeline.parse("factorize(flops=0.3)")) == "factorize(flops=0.3)"
    with pytest.raises(UsageError, match="exclude each other"):
        Factorize.with_options({"flops": 0.3, "speedup": 1.2})
    model, data = convolutions()
    told = Factorize().prospect(model, observed(model, data.sample()), TARGET)
    assert told.startswith("4 of 5 layers could become products")
    assert Factorize().effort(model, data) is not None
    assert Factorize().effort(model, None) is None


def test_the_same_bytes_come_out_again() -> None:
    made = []
    for _ in range(2):
        model, data = convolutions()
        apply(model, data, flops=0.4)
        made.append(model.serialize())
    assert made[0] == made[1]


def test_quant_and_recover_work_on_what_comes_out(tmp_path: Path) -> None:
    model, _ = convolutions()
    model.save(tmp_path / "net.onnx")
    samples = np.random.default_rng(3).standard_normal((128, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    result = compress(
        Model.load(tmp_path / "net.onnx"),
        "factorize(flops=0.4),quant,recover(epochs=10)",
        data=str(tmp_path / "data.npz"),
        timings=TimingTable(measures=False),
    )
    assert [record.status for record in result.report.passes] == ["unchanged", *["applied"] * 3]
    for record, action in zip(result.report.passes[-2:], ("quantized", "trained"), strict=True):
        done = {decision.layer for decision in record.decisions if decision.action == action}
        assert any(name.endswith("/basis") for name in done)


def test_ranks_of_a_whole_tucker_form_are_consistent() -> None:
    rng = np.random.default_rng(0)
    W, H = rng.standard_normal((16, 4 * 8)), np.eye(32)
    first = np.eye(8)
    factors = with_middle(Factors(first, last_factor(W, H, first)), H, 8)
    np.testing.assert_allclose(factors.product(), Truncation.of(W, H).factors(8).product(), atol=1e-6)


@pytest.mark.zoo
def test_a_third_of_a_residual_network_loses_little() -> None:
    models = Path(__file__).parent.parent / "models"
    files = {"data": str(models / "fashion_calibration.npz"), "test_data": str(models / "fashion_test.npz")}
    original = Model.load(zoo_model("fashion_resnet"))
    result = compress(original, "factorize(flops=0.3)", metric="top1", **files)
    report = result.report.result
    assert report.flops < 0.72 * 103_214_592
    assert report.metric is not None
    assert report.metric.compressed > report.metric.original - 0.01


# -- what counts for the model -------------------------------------------------------------------------------


def test_outputs_count_as_the_layers_behind_read_them() -> None:
    rng = np.random.default_rng(0)
    arrays = {"w1": rng.standard_normal((8, 6)), "w2": rng.standard_normal((6, 4)) * [1, 1, 0.1, 0.1]}
    model = built("g (float[n, t, 8] x) => (float[n, t, 4] y) { h = MatMul(x, w1) y = MatMul(h, w2) }", arrays)
    data = Dataset.from_arrays({"x": rng.standard_normal((64, 32, 8)).astype(np.float32)}, model=model)
    found = output_moments(model, weighted_layers(model), data, np.random.default_rng(1))
    assert set(found) == {"matmul0"}  # of what the model gives out nothing is asked
    G, expected = found["matmul0"], arrays["w2"] @ arrays["w2"].T
    G, expected = G / np.trace(G), expected / np.trace(expected)
    np.testing.assert_allclose(G, expected, atol=0.05 * np.abs(expected).max())
    few = Dataset.from_arrays({"x": rng.standard_normal((1, 5, 8)).astype(np.float32)}, model=model)
    assert output_moments(model, weighted_layers(model), few, np.random.default_rng(1)) == {}


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid"])
def test_targets_are_drawn_from_what_is_predicted(op: str) -> None:
    """The gradient by logits z is p - t: of a class that is always predicted, none is left."""
    rng = np.random.default_rng(0)
    arrays = {"w1": rng.standard_normal((8, 16)), "w2": np.eye(16)[:, :3], "b": np.array([0.0, 0.0, -50.0])}
    body = f"h = MatMul(x, w1) r = MatMul(h, w2) z = Add(r, b) y = {op}(z)"
    model = built(f"g (float[n, 8] x) => (float[n, 3] y) {{ {body} }}", arrays)
    data = Dataset.from_arrays({"x": rng.standard_normal((512, 8)).astype(np.float32) / 4}, model=model)
    G = output_moments(model, weighted_layers(model), data, np.random.default_rng(1))["matmul0"] / 512
    logits = (rng.standard_normal((512, 8)) / 4 @ arrays["w1"])[:, :2]
    p = 1 / (1 + np.exp(-(logits[:, 0] - logits[:, 1] if op == "Softmax" else logits[:, 0])))
    scale = 1.0 if op == "Softmax" else 9.0  # the mean over three outputs
    assert G[0, 0] * scale == pytest.approx(np.mean(p * (1 - p)), rel=0.3)
    assert np.abs(G[2:, 2:]).max() < 1e-6


def test_weighting_is_undone_and_keeps_the_energy() -> None:
    rng = np.random.default_rng(0)
    mixed, W = rng.standard_normal((6, 6)), rng.standard_normal((6, 9))
    weighting = Weighting.of(mixed @ mixed.T, W @ W.T).scaled(3.0)
    np.testing.assert_allclose(weighting.undone(weighting.applied(W)), W, atol=1e-9)
    assert np.square(weighting.applied(W)).sum() == pytest.approx(9 * np.square(W).sum())
    assert Weighting.of(np.full((6, 6), np.nan), W @ W.T) == Weighting()
    assert Weighting.of(None) == Weighting()


def test_what_the_model_ignores_is_lost_first() -> None:
    """Half of the outputs are read with weights that are next to nothing."""
    rng = np.random.default_rng(0)
    read = rng.standard_normal((32, 24)) * np.where(np.arange(32) < 8, 1.0, 1e-3)[:, None]
    arrays = {"w1": rng.standard_normal((32, 32)), "w2": read}
    model = built("g (float[n, 32] x) => (float[n, 24] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }", arrays)
    data = Dataset.from_arrays({"x": rng.standard_normal((256, 32)).astype(np.float32)}, model=model)
    expected = outputs(model, data)
    apply(model, data, flops=0.25)
    assert noise(model, data, expected) < 0.02
