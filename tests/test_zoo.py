"""The pipeline of the README on real models: it succeeds, and every layer ends with an action or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp import Model, compress
from onnxcomp.graph.groups import Group, dependency_groups, select
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.registry import pass_names
from onnxcomp.runtime import session
from onnxcomp.runtime.feeds import synthetic
from onnxcomp.runtime.shapes import observed
from tests.grouping import close, silence
from tests.zoo import COMMITTED, calibration, each_model, zoo_model

pytestmark = pytest.mark.zoo

# Few samples do not tell which channels can go; and one step shows that training runs.
_MILD = {"prune": "prune(flops=0.05)", "recover": "recover(epochs=1)"}


@pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")  # some have fewer channels to lose
@each_model
def test_the_whole_pipeline_runs_and_accounts_for_every_layer(name: str, tmp_path: Path) -> None:
    path = zoo_model(name)
    data = calibration(path, 24)
    out = tmp_path / "out.onnx"
    result = compress(path, "prune(flops=0.1),quant,reorder", data=data, output=out)
    report = result.report
    assert report.options.scheduled == "fold,prune(flops=0.1),reorder,quant"
    assert report.succeeded, [entry.verification.error for entry in report.failed_passes]
    for entry in report.passes:
        assert entry.decisions
        reasons = {decision.reason for decision in entry.decisions if decision.action == "skipped"}
        assert not reasons & {"", "the pass gave no reason"}
    assert {layer.name for layer in weighted_layers(Model.load(path))} <= {
        decision.layer for decision in report.passes[0].decisions
    }
    onnx.checker.check_model(str(out))
    original = session.create(path.read_bytes())
    compressed = session.create(out.read_bytes())
    feeds = next(data.feeds())
    shapes = {key: value.shape for key, value in session.run(original, feeds).items()}
    assert {key: value.shape for key, value in session.run(compressed, feeds).items()} == shapes
    assert report.result.bytes == out.stat().st_size
    assert report.result.size_ratio > 1.0


@pytest.mark.filterwarnings("ignore::onnxcomp.errors.OnnxcompWarning")
@pytest.mark.parametrize("alone", pass_names())
@each_model
def test_every_pass_alone_is_verified(name: str, alone: str) -> None:
    path = zoo_model(name)
    report = compress(path, _MILD.get(alone, alone), data=calibration(path, 8), timings="off").report
    assert report.succeeded, [entry.verification.error for entry in report.failed_passes]
    entry = report.passes[-1]
    assert (entry.name, entry.verification.status) == (alone, "passed")
    assert len({decision.layer for decision in entry.decisions}) == len(entry.decisions)


def test_the_committed_network_keeps_its_accuracy(tmp_path: Path) -> None:
    """What the README promises, but for time, which no test can judge on a shared machine."""
    result = compress(
        COMMITTED / "fashion_resnet.onnx",
        "prune,quant,reorder",
        data=str(COMMITTED / "fashion_calibration.npz"),
        test_data=str(COMMITTED / "fashion_test.npz"),
        output=tmp_path / "out.onnx",
    )
    metric = result.report.result.metric
    assert metric is not None
    assert metric.name == "top1"
    assert metric.original is not None
    assert metric.compressed is not None
    assert metric.original - metric.compressed <= 0.01
    assert result.report.result.size_ratio >= 4.0


@each_model
def test_dependency_groups_of_real_models_can_be_moved_and_removed(name: str) -> None:
    model, feeds, groups = _folded(name)
    before = session.run(session.create(model), feeds)
    rng = np.random.default_rng(0)
    for group in groups:
        if group.pinned is None:
            select(group, rng.permutation(group.size))
    close(session.run(session.create(model), feeds), before, 1e-4)  # rounding errors of deep models add up
    free = [group for group in groups if group.kept is None and group.size > 1]
    state = model.checkpoint()
    for group in free:
        silence(group, 0)
    silent = session.run(session.create(model), feeds)
    state.restore()
    for group in free:
        select(group, np.arange(1, group.size))
    close(session.run(session.create(model), feeds), silent, 1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "heads", "multiplicities"),
    [
        ("minilm", 6, 12, [32] * 7),  # queries, keys and values with their biases, and what reads the heads
        ("ppocr_rec", 2, 8, [45, 45, 15]),
    ],
)
def test_heads_of_real_models_are_units(name: str, layers: int, heads: int, multiplicities: list[int]) -> None:
    _, _, groups = _folded(name)
    found = [group for group in groups if group.size == heads]
    assert len(found) == layers
    for group in found:
        assert group.kept is None
        assert [slot.positions.shape[1] for slot in group.slots] == multiplicities


def _folded(name: str) -> tuple[Model, dict[str, Any], list[Group]]:
    """The model that passes see, one sample, and its groups."""
    model = compress(zoo_model(name), "fold").model
    feeds = dict(synthetic(model, 0))
    return model, feeds, dependency_groups(model, observed(model, feeds))
