from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp import evaluate
from onnxcomp.data import Dataset
from onnxcomp.errors import InputError, UsageError, VerificationError
from onnxcomp.evaluate import Evaluator, compare, default_metric, fidelity, metric_named, outputs
from onnxcomp.model import Model
from onnxcomp.runtime import session

rng = np.random.default_rng(0)
X = rng.standard_normal((70, 6)).astype(np.float32)


def linear(weight: np.ndarray, op: str = "MatMul") -> Model:
    nodes = [helper.make_node(op, ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


WEIGHT = rng.standard_normal((6, 4))
NOISY = WEIGHT + 0.1 * rng.standard_normal((6, 4))


def one(reference: Any, candidate: Any) -> evaluate.Fidelity:
    return fidelity([{"y": np.asarray(reference)}], [{"y": np.asarray(candidate)}])


# -- fidelity ------------------------------------------------------------------------------------------------


def test_fidelity_streamed_over_batches_is_its_formula_over_all_values() -> None:
    data = Dataset.from_arrays({"x": X}, model=linear(WEIGHT))
    assert data.batches == 3
    found = fidelity(outputs(linear(WEIGHT), data), outputs(linear(NOISY), data))
    r, c = X @ WEIGHT, X @ NOISY
    assert found.sqnr_db == pytest.approx(10 * np.log10((r**2).sum() / ((r - c) ** 2).sum()), abs=1e-3)
    assert found.cosine == pytest.approx((r * c).sum() / np.sqrt((r**2).sum() * (c**2).sum()), abs=1e-5)
    assert found.max_error == pytest.approx(np.abs(r - c).max(), abs=1e-4)
    assert found.top1_agreement == np.mean(r.argmax(1) == c.argmax(1))
    assert found.nonfinite == 0


def test_equal_outputs_are_perfect_even_where_they_are_zero_or_infinite() -> None:
    for values in (np.ones((2, 3)), np.zeros((2, 3)), np.array([[1.0, np.inf, np.nan]])):
        assert one(values, values.copy()) == evaluate.Fidelity(math.inf, 1.0, 0.0, 1.0)


def test_values_lost_to_nan_or_infinity_are_the_worst_fidelity() -> None:
    found = one([[1.0, 2.0, 3.0]], [[1.0, np.nan, np.inf]])
    assert (found.sqnr_db, found.cosine, found.max_error, found.nonfinite) == (-math.inf, 0.0, math.inf, 2)


def test_noise_on_a_silent_output_is_no_fidelity() -> None:
    found = one(np.zeros((1, 3)), np.ones((1, 3)))
    assert (found.sqnr_db, found.cosine, found.max_error) == (-math.inf, 0.0, 1.0)


def test_of_several_outputs_the_worst_counts_and_integers_only_for_the_error() -> None:
    r = {"good": np.ones((1, 2)), "bad": np.array([[3.0, 4.0]]), "ids": np.array([10])}
    c = {"good": np.ones((1, 2)), "bad": np.array([[3.0, 5.0]]), "ids": np.array([17])}
    found = fidelity([r], [c])
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / 1))
    assert found.max_error == 7.0
    only_ids = fidelity([{"ids": r["ids"]}], [{"ids": c["ids"]}])
    assert only_ids.max_error == 7.0
    assert only_ids.top1_agreement is None


def test_agreement_of_a_sequence_counts_positions() -> None:
    r = np.zeros((1, 4, 3))
    r[0, :, 1] = 1
    c = r.copy()
    c[0, 2, 0] = 2
    assert one(r, c).top1_agreement == 0.75


def test_a_missing_or_reshaped_output_fails_verification() -> None:
    with pytest.raises(VerificationError, match=r"output 'y' has shape \(1, 2\) where the original has shape \(1, 3\)"):
        one(np.zeros((1, 3)), np.zeros((1, 2)))
    with pytest.raises(VerificationError, match="output 'y' has nothing"):
        fidelity([{"y": np.zeros(3)}], [{}])


# -- metrics -------------------------------------------------------------------------------------------------


def test_top1_is_the_default_where_labels_are_classes_and_both_models_are_measured() -> None:
    labels = (X @ WEIGHT).argmax(1)
    labels[:7] = (labels[:7] + 1) % 4  # the original is wrong on a tenth
    data = Dataset.from_arrays({"x": X}, labels, linear(WEIGHT))
    result = compare(linear(WEIGHT), linear(NOISY), data)
    assert result.metric == "top1"
    assert result.metric_original == pytest.approx(0.9)
    assert result.metric_compressed == pytest.approx(np.mean((X @ NOISY).argmax(1) == labels))
    assert result.drop == pytest.approx(result.metric_original - result.metric_compressed)
    assert result.samples == 70
    assert result.describe()["fidelity"]["sqnr_db"] == result.fidelity.sqnr_db


def test_cosine_is_the_default_elsewhere() -> None:
    scores = [{"y": np.eye(4)[:1]}, {"y": np.eye(4)[3:]}]
    assert default_metric(scores, np.array([0, 3])).name == "top1"
    for labels in (None, np.array([0, 4]), np.array([0.0, 3.0]), np.zeros((2, 2), int), np.array(["a", "b"])):
        assert default_metric(scores, labels).name == "cosine"
    assert default_metric([{"y": np.zeros((2, 4, 4))}], np.array([0, 1])).name == "cosine"


def test_labels_that_are_not_what_the_output_scores_make_no_top1() -> None:
    """An embedding beside binary labels: its largest coordinate is no class."""
    embedding, labels = rng.standard_normal((50, 384)), np.arange(50) % 2
    assert default_metric([{"y": embedding}], labels).name == "cosine"


def test_cosine_compares_with_a_perfect_original() -> None:
    result = compare(linear(WEIGHT), linear(NOISY), Dataset.from_arrays({"x": X}, model=linear(WEIGHT)))
    assert (result.metric, result.metric_original) == ("cosine", 1.0)
    assert result.metric_compressed == result.fidelity.cosine


def test_top5_counts_labels_among_the_five_largest_and_ties_earn_nothing() -> None:
    scores = np.array([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 1, 1]], np.float32)
    top1, top5 = metric_named("top1").of_outputs, metric_named("top5").of_outputs
    assert top1 is not None
    assert top5 is not None
    batches = [{"y": scores[:2]}, {"y": scores[2:]}]
    assert top5(batches, np.array([4, 5, 0])) == pytest.approx(1 / 3)
    assert top1(batches, np.array([0, 0, 0])) == pytest.approx(2 / 3)
    assert top1([{"y": np.full((2, 3), np.nan)}], np.array([0, 1])) == 0.0


@pytest.mark.parametrize(
    ("name", "perfect", "figure"),
    [
        ("agreement", 1.0, "top1_agreement"),
        ("sqnr", math.inf, "sqnr_db"),
        ("cosine", 1.0, "cosine"),
        ("max_error", 0.0, "max_error"),
    ],
)
def test_figures_of_the_fidelity_are_metrics(name: str, perfect: float, figure: str) -> None:
    data = Dataset.from_arrays({"x": X}, model=linear(WEIGHT))
    result = compare(linear(WEIGHT), linear(NOISY), data, metric_named(name))
    assert (result.metric, result.metric_original) == (name, perfect)
    assert result.metric_compressed == getattr(result.fidelity, figure)
    assert result.drop > 0


METRIC = """
import numpy as np
def wrong(outputs, labels):
    scores = np.concatenate([batch["y"] for batch in outputs])
    return np.mean(scores.argmax(1) != labels)
wrong.higher_is_better = False
def fails(outputs, labels):
    return outputs["y"]
"""


def test_a_function_of_the_user_is_a_metric(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(METRIC)
    data = Dataset.from_arrays({"x": X}, (X @ WEIGHT).argmax(1), linear(WEIGHT))
    metric = metric_named(f"{tmp_path}/metrics.py:wrong")
    result = compare(linear(WEIGHT), linear(-WEIGHT), data, metric)
    assert (result.metric_original, result.metric_compressed, result.drop) == (0.0, 1.0, 1.0)
    with pytest.raises(InputError, match=r"metrics.py:fails failed with TypeError: .*; correct it, or its data"):
        compare(linear(WEIGHT), linear(WEIGHT), data, metric_named(f"{tmp_path}/metrics.py:fails"))


def test_metrics_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown metric 'top2'; the metrics are top1, top5, agreement"):
        metric_named("top2")
    model = linear(WEIGHT)
    unlabelled = Dataset.from_arrays({"x": X}, model=model)
    with pytest.raises(InputError, match="metric top1 needs labels; add an array 'labels' to the data"):
        compare(model, model, unlabelled, metric_named("top1"))
    wide = Dataset.from_arrays({"x": X}, np.zeros((70, 2), int), model)
    with pytest.raises(InputError, match=r"scores are of shape \(70, 4\) and labels of shape \(70, 2\)"):
        compare(model, model, wide, metric_named("top1"))


# -- evaluator -----------------------------------------------------------------------------------------------


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    runs: list[Any] = []
    original = session.run

    def counted(of: Any, *arguments: Any) -> Any:
        runs.append(of)
        return original(of, *arguments)

    monkeypatch.setattr(session, "run", counted)
    return runs


@pytest.mark.parametrize(("limit", "runs_of_reference"), [(10**6, 3), (0, 9)])
def test_small_outputs_of_the_reference_are_computed_once(
    monkeypatch: pytest.MonkeyPatch, limit: int, runs_of_reference: int
) -> None:
    monkeypatch.setattr(evaluate, "_KEPT_BYTES", limit)
    reference, candidate = session.create(linear(WEIGHT)), session.create(linear(NOISY))
    data = Dataset.from_arrays({"x": X}, model=linear(WEIGHT))
    runs = count_runs(monkeypatch)
    evaluator = Evaluator(reference, data, metric_named("sqnr"))
    results = [evaluator.evaluate(candidate) for _ in range(3)]
    assert results[0] == results[1] == results[2]
    assert sum(of is reference for of in runs) == runs_of_reference
    assert sum(of is candidate for of in runs) == 9


def test_a_metric_that_fails_on_the_compressed_model_alone_blames_that_model() -> None:
    original, broken = linear(WEIGHT), linear(np.full_like(WEIGHT, np.nan))

    def strict(outputs: list[dict[str, Any]], _: Any) -> float:
        if not all(np.isfinite(value).all() for batch in outputs for value in batch.values()):
            raise ValueError("NaN")
        return 1.0

    data = Dataset.from_arrays({"x": X}, model=original)
    evaluator = Evaluator(original, data, evaluate.Metric("strict", of_outputs=strict))
    with pytest.raises(VerificationError, match="cannot be judged: metric strict failed with ValueError: NaN"):
        evaluator.evaluate(broken)


def test_outputs_of_a_large_original_are_not_kept_when_they_are_large_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.storage.skeleton.LARGE", 0)
    monkeypatch.setattr("onnxcomp.evaluate._KEPT_BYTES", 0)
    dataset = Dataset.from_arrays({"x": X})
    evaluator = Evaluator(linear(WEIGHT), dataset, metric_named("max_error"))
    assert not evaluator._reference
    assert [evaluator.evaluate(linear(WEIGHT)).metric_compressed for _ in range(2)] == [0.0, 0.0]
