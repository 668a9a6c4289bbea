from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness.bench import Bench
from harness.entries import RECOVERY, Entry
from harness.process import Limits
from harness.recover_results import RecoverResults, Steps
from harness.recover_targets import check_recover
from harness.render_recover import recover_sections
from harness.results import Environment, Row, Section
from harness.steps import rows_of
from harness.targets import Target
from harness.zoo import MODELS, samples_in
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MACHINE = Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"})
TIMES = {"onnxcomp": [0.15, 0.35], "torch": [0.1, 0.1], "torch-channels-last": [0.05, 0.05], "onnxsim": "no rule"}
MEMORY = {name: {"bytes": size} for name, size in (("onnxcomp", 250), ("torch", 100), ("torch-channels-last", 90))}
GRADIENTS = {"onnxcomp": {"all": 5e-4, "worst": 2e-3}, "torch": {"all": 6e-4, "worst": 2e-3}}


def row(name: str, top1: float, agreement: float = 0.9, **changes: object) -> Row:
    measured = {"seconds": 100.0, "bytes": 2_000_000, "figures": {"top-1": top1, "agreement": agreement}}
    return RECOVERY[name].row().model_copy(update=measured | changes)


def section(rows: list[Row], model: str = "fashion") -> Section:
    figures = {"top-1": 0.94, "agreement": 1.0}
    original = Row(name="fp32", tool="fp32", setting="the original", bytes=4_000_000, figures=figures)
    return Section(
        model=model,
        file="net.onnx",
        date="2025-01-01",
        command="python benchmarks/recover.py",
        environment=MACHINE,
        figures=[MODELS[model].figures[0].name],
        samples={"top-1": 10_000},
        calibration_samples=60_000,
        rounds=3,
        threads=1,
        original=original,
        rows=rows,
    )


def steps() -> Steps:
    rows = rows_of(TIMES, GRADIENTS, {**MEMORY, "onnxsim": "ended by SIGKILL"})
    return Steps(model="fashion", batch=64, threads=2, rounds=2, date="d", command="c", environment=MACHINE, rows=rows)


def targets(results: RecoverResults) -> dict[str, Target]:
    return {target.text: target for target in check_recover(results)}


# -- steps -------------------------------------------------------------------------------------------------


def test_steps_are_told_beside_torch_and_checked() -> None:
    results = RecoverResults(steps={"fashion": steps()})
    lines = [line.split(" | ") for line in recover_sections(results).splitlines() if line.startswith("| onnx")]
    assert lines[0][2:6] == ["250.0 ms", "2.50x (2.00 to 3.00)", "0 MB", "2.50x"]
    assert lines[1][1].endswith("**failed**, no rule")
    found = targets(results)
    assert found["fashion, a training step: time over torch's: at most 2 x"].miss == "0.50 x"
    assert found["fashion, a training step: memory over torch's: at most 2 x"].met is False
    assert found["fashion, a training step: relative error of the gradients: at most 1000 millionths"].met
    assert found["mobilenetv2, a training step: time over torch's: at most 2 x"].met is None


def test_the_network_in_torch_computes_what_the_file_does_and_has_its_gradients() -> None:
    torch = pytest.importorskip("torch")
    from harness.stepping import Work, errors, onnxcomp_step, torch_step
    from harness.torch_network import TorchNetwork

    proto, values = _network()
    images = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    session = ReferenceEvaluator(proto)
    (expected,) = session.run(None, {"image": images})
    network = TorchNetwork(proto, set(values))
    np.testing.assert_allclose(network(torch.tensor(images)).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    work = Work(proto, values, {"image": images}, "logits", np.full((4, 5), 0.2, np.float32), threads=1)
    exact = torch_step(work, double=True)().gradients()
    assert set(exact) == set(values)
    assert errors(onnxcomp_step(work)().gradients, exact)["worst"] < 1e-4
    wrong = {name: 2 * value for name, value in exact.items()}
    assert errors(wrong, exact) == pytest.approx({"all": 1.0, "worst": 1.0})


def _network() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Depthwise convolution, normalization, ReLU6, a shortcut, pooling, classes."""
    rng = np.random.default_rng(0)
    values = {
        "w0": rng.standard_normal((6, 3, 3, 3)),
        "b0": rng.standard_normal(6),
        "scale": 1 + rng.random(6),
        "shift": rng.standard_normal(6),
        "w1": rng.standard_normal((6, 1, 3, 3)),
        "w2": rng.standard_normal((5, 6)),
        "b2": rng.standard_normal(5),
    }
    trained = {name: value.astype(np.float32) for name, value in values.items()}
    others = {
        "mean": rng.standard_normal(6).astype(np.float32),
        "variance": (1 + rng.random(6)).astype(np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "scale", "shift", "mean", "variance"], ["n0"]),
        helper.make_node("Clip", ["n0", "low", "high"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Add", ["r1", "r0"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in {**trained, **others}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), trained


def test_the_loss_that_onnxsim_differentiates_is_the_cross_entropy_of_masked_weights() -> None:
    from harness.peers.onnxsim_training import TARGET, trainable, with_loss

    proto, values = _network()
    assert set(trainable(proto)) == {"w0", "b0", "w1", "w2", "b2"}
    mask = np.random.default_rng(2).random(values["w2"].shape) < 0.5
    made = with_loss(proto, 4, {"w2": mask})
    images = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    target = np.eye(5, dtype=np.float32)[[0, 3, 2, 3]]
    (loss,) = ReferenceEvaluator(made).run(None, {"image": images, TARGET: target})
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(values["w2"] * mask, "w2"))
    (logits,) = ReferenceEvaluator(proto).run(None, {"image": images})
    right = logits[np.arange(4), [0, 3, 2, 3]]
    assert loss == pytest.approx(np.mean(np.log(np.exp(logits).sum(axis=1)) - right), rel=1e-4)


# -- recovery ----------------------------------------------------------------------------------------------


def test_what_was_lost_is_checked_against_the_original_and_the_best_peer() -> None:
    rows = [
        row("onnxcomp-channels", 0.93),
        row("onnxcomp-recover-channels", 0.937, recovery_seconds=601.0),
        row("onnxsim-blocks-channels", 0.92, seconds=50.0),
        row("onnxsim-loop-channels", 0.938, seconds=590.0),
        row("onnxsim-loop-zeros", 0.94),
    ]
    results = RecoverResults(recovery={"fashion": section(rows)})
    found = targets(results)
    text = "fashion, -50 % FLOPs, recovered"
    assert found[f"{text}: points lost of top-1: at most 0.5 points"].measured == "0.30 points"
    assert found[f"{text}: seconds of recover, two cores: at most 600 s"].miss == "1.00 s"
    assert found[f"{text}: top-1, against onnxsim-loop-channels: at least 93.8 %"].miss == "0.10 %"
    assert found[f"{text}: seconds of the process, against onnxsim-loop-channels: at most 590 s"].met
    document = recover_sections(results)
    assert "60,000 samples to train on, without labels" in document
    assert document.count("| -50 % FLOPs |") == 4
    assert "| 601.0 s | 100.0 s |" in document


def test_half_of_the_loss_is_asked_back_where_much_was_lost() -> None:
    rows = [row("onnxcomp-channels30", 0, agreement=0.2), row("onnxcomp-recover-channels30", 0, agreement=0.7)]
    found = targets(RecoverResults(recovery={"mobilenetv2": section(rows, "mobilenetv2")}))
    half = found["mobilenetv2, -30 % FLOPs, recovered: loss of agreement over that before: at most 0.5 x"]
    assert (half.met, half.measured) == (True, "0.38 x")


def test_a_failed_recovery_misses_its_targets() -> None:
    rows = [row("onnxcomp-recover-bits", 0.9, failure="quant: option bits must be 4 or 8")]
    found = targets(RecoverResults(recovery={"fashion": section(rows)}))
    assert found["fashion, 2-bit weights, recovered: all targets"].met is False


@pytest.mark.parametrize("entry", RECOVERY.values(), ids=lambda entry: entry.name)
def test_every_entry_trains_on_the_samples_for_that(entry: Entry, tmp_path: Path) -> None:
    (model,) = [MODELS[name] for name in entry.only]
    command = entry.command(model, tmp_path / "out" / "model.onnx")
    assert str(model.training_data) in command
    assert str(model.data) not in command


def test_the_seconds_of_training_are_those_that_the_peer_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import bench

    (tmp_path / "fashion").mkdir()
    entry = RECOVERY["onnxsim-ternary-bits"]
    output = tmp_path / "fashion" / entry.name / "model.onnx"

    def ran(*_arguments: object, **_options: object) -> bench.Outcome:
        output.write_bytes(b"model")
        return bench.Outcome(0, 9.0, 1, 'text\n{"seconds": 2.5}\n', None)

    monkeypatch.setattr(bench, "run", ran)
    found = Bench(1, 1, Limits(1, 1), tmp_path, "command", MACHINE)._compress(MODELS["fashion"], entry, output)
    assert (found.recovery_seconds, found.seconds, found.failure) == (2.5, 9.0, None)


def test_samples_are_counted_without_reading_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "training.npz", image=np.zeros((7, 2), np.float32))
    assert samples_in(tmp_path / "training.npz") == 7
