"""What exporters give real networks: transformed and verified, or left alone with a reason, and never broken."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from harness.cases import Case
from harness.examine import EVERY_PASS, examine, without_timing

from onnxcomp import Model, compress
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, SessionError
from onnxcomp.report.inspection import inspect
from onnxcomp.runtime import session
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.target import Target
from tests.architectures import ARCHITECTURES, build

# Which of these passes change the model; no entry means that quant alone does. Every other pass has to keep what all
# passes must: valid, running, verified, with a reason for every layer.
JUDGED = ("fold", "prune", "quant", "reorder")
NARROWING = frozenset({"prune", "quant", "reorder"})
CHANGED: dict[str, frozenset[str] | set[str]] = {
    "a function called twice": set(),
    **dict.fromkeys((name for name in ARCHITECTURES if name.startswith("Gemm")), NARROWING),
    "Gemm with the weight as A": {"quant"},
    **dict.fromkeys((name for name in ARCHITECTURES if name.startswith("Conv")), NARROWING),
    "Conv depthwise": {"quant"},
    "Conv depthwise multiplied": {"quant"},
    "ConvTranspose grouped": {"quant", "reorder"},
    **dict.fromkeys((name for name in ARCHITECTURES if " of opset " in name), NARROWING),
    **dict.fromkeys((name for name in ARCHITECTURES if "BatchNorm" in name or "Dropout" in name), NARROWING | {"fold"}),
    "Softmax of opset 11": {"quant", "reorder"},
    "Attention": {"prune", "quant"},
    "shared weights between layers": {"prune", "quant"},  # a residual branch
    "com.microsoft.Attention": {"prune", "quant"},
    "com.microsoft.MultiHeadAttention": {"prune", "quant"},
    "no weighted layers": set(),
    "no nodes": set(),
    "nothing but a constant": set(),
    "dynamic everything": NARROWING,
    "a weight with NaN": {"quant", "reorder"},
    "a weight with Inf": {"quant", "reorder"},
    "a weight of zeros": NARROWING,
    "float16": {"prune", "reorder"},
    "double": {"prune", "reorder"},
    "a weight without elements": set(),
}

# ONNX Runtime has no kernel for them, or does not know the operator.
NOT_RUNNABLE = ("an operator that nothing reads and nobody knows", "an operator that nobody knows", "bfloat16")
RUNNABLE = [name for name in ARCHITECTURES if name not in NOT_RUNNABLE]


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # the manager collects garbage after every pass, which takes long where tests have left much
    yield
    gc.unfreeze()


def case_of(name: str, proto: onnx.ModelProto) -> Case:
    """The model with made-up feeds and what it gives for them."""
    feeds = synthetic(Model.from_proto(proto))
    return Case(name, proto, [(feeds, list(session.run(session.create(proto), feeds).values()))], 1e-3, 1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # in weights that are no numbers
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_model_is_transformed_and_verified_or_left_alone_with_a_reason(name: str) -> None:
    with without_timing():
        findings = {found.check: found for found in examine(case_of(name, ARCHITECTURES[name]()))}
    for found in findings.values():
        assert found.outcome in ("transformed", "left alone"), f"{found.check} {found.outcome}: {found.detail}"
    changed = {check for check in JUDGED if findings[check].outcome == "transformed"}
    assert changed == CHANGED.get(name, {"quant"})
    assert (findings[EVERY_PASS].outcome == "transformed") >= bool(changed)


@pytest.mark.parametrize("name", NOT_RUNNABLE)
def test_a_model_that_the_runtime_refuses_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(ARCHITECTURES[name](), path)
    with pytest.raises(
        SessionError, match=r"net\.onnx: ONNX Runtime cannot load it: .*; export net\.onnx again"
    ) as info:
        compress(path, "fold,prune,quant,reorder", output=tmp_path / "out.onnx")
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == [path]


# -- versions and dimensions ---------------------------------------------------------------------------------


def result_of(proto: onnx.ModelProto, pipeline: str) -> onnx.ModelProto:
    """What the pipeline makes of it; none of its passes may fail."""
    feeds = synthetic(Model.from_proto(proto))
    with without_timing(), warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxcompWarning)  # some have no channels to lose
        result = compress(Model.from_proto(proto), pipeline, data=Dataset.from_feeds([feeds] * 2))
    assert result.report.succeeded, [step.verification.error for step in result.report.failed_passes]
    return result.model.proto()


def opset_of(proto: onnx.ModelProto) -> int:
    return next(entry.version for entry in proto.opset_import if not entry.domain)


OLD = [name for name in ARCHITECTURES if " of opset " in name and not name.startswith("Batch")]


@pytest.mark.parametrize("name", OLD)
def test_versions_stay_where_no_pass_needs_newer_ones(name: str) -> None:
    proto = ARCHITECTURES[name]()
    made = result_of(proto, "fold,prune(flops=0.1),reorder")
    assert opset_of(made) == opset_of(proto)
    assert made.ir_version <= 4  # the first in which a weight that a pass adds need not be an input


@pytest.mark.parametrize("name", OLD)
def test_quantized_old_models_have_the_versions_that_they_need(name: str) -> None:
    made = result_of(ARCHITECTURES[name](), "quant")
    assert opset_of(made) == 13  # the first with scales for each channel
    assert made.ir_version <= 7  # which came with it
    onnx.checker.check_model(made, full_check=True)


@pytest.mark.parametrize("ir_version", range(3, onnx.IR_VERSION + 1))
def test_the_format_version_is_kept(ir_version: int) -> None:
    try:
        proto = build("(float[N,16] x) => (float[N,16] y) { y = MatMul(x, w) }", {"w": (16, 16)}, 11, ir_version)
        session.create(proto)
    except SessionError:
        pytest.skip("ONNX Runtime does not know it")
    assert result_of(proto, "fold,prune,reorder").ir_version == ir_version


def test_dynamic_dimensions_survive_and_work_at_other_sizes() -> None:
    proto = ARCHITECTURES["dynamic everything"]()
    made = result_of(proto, "prune(flops=0.1),quant,reorder")
    for before, after in ((proto.graph.input, made.graph.input), (proto.graph.output, made.graph.output)):
        assert [dims(value) for value in before] == [dims(value) for value in after]
    sessions = [session.create(model) for model in (proto, made)]
    rng = np.random.default_rng(0)
    for shape in ((1, 16, 10, 6), (3, 16, 5, 17)):
        feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
        reference, found = (session.run(each, feeds)["y"] for each in sessions)
        assert reference.shape == found.shape


def dims(value: onnx.ValueInfoProto) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


# -- weights that are no numbers -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", ["a weight with NaN", "a weight with Inf"])
def test_weights_that_are_no_numbers_stay_as_they_are(name: str) -> None:
    proto = ARCHITECTURES[name]()
    made = result_of(proto, "prune(flops=0.1),quant,reorder")
    before, after = (
        next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w1")
        for model in (proto, made)
    )
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))


# -- inputs that are no tensors ------------------------------------------------------------------------------


SEQUENCES = """(seq(float[N,32]) s) => (float[N,16] y) { c = ConcatFromSequence <axis = 0> (s)  y = MatMul(c, w) }"""
BFLOAT16 = """(bfloat16[N,32] s) => (bfloat16[N,16] y) {
    c = Cast <to = 1> (s)
    m = MatMul(c, w)
    y = Cast <to = 16> (m)
}"""


@pytest.mark.parametrize("body", [SEQUENCES, BFLOAT16], ids=["sequence", "bfloat16"])
@pytest.mark.filterwarnings("ignore:quant has no calibration data")
def test_models_are_compressed_and_inspected_whatever_they_are_fed_with(body: str) -> None:
    model = Model.from_proto(build(body, {"w": (32, 16)}))
    with without_timing():
        result = compress(model, "fold,quant")
    assert result.report.succeeded
    assert [step.status for step in result.report.passes] == ["unchanged", "applied"]
    found = inspect(model, target=Target.host())
    assert [layer.op for layer in found.layers] == ["MatMul"]
    assert found.feeds is not None
