"""A sample of the backend test collection of onnx through every pass; benchmarks/collection.py runs all of it."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness.cases import Case, load_cases, variants
from harness.collection import Collection, tally
from harness.differences import field_difference, kind_of_sentence, output_difference
from harness.examine import EVERY_PASS, Finding, examine, passes_alone, without_timing
from harness.pool import Done, spread
from harness.render_collection import collection_section
from harness.results import Environment

from onnxcomp.context import Context
from onnxcomp.graph.constants import assign, value_of
from onnxcomp.model import Model
from onnxcomp.passbase import Pass, Stage
from onnxcomp.registry import pass_names
from onnxcomp.runtime import session
from tests.architectures import ARCHITECTURES

# What has been got wrong before, or is unlike the others; and every so many-th model of the whole.
CHOSEN = (
    "node/test_affine_grid_2d_expanded",  # ONNX Runtime refuses a branch once its condition is known
    "node/test_celu_bfloat16",
    "node/test_conv_with_strides_padding+constant weights",
    "node/test_dropout_default_ratio",  # no numbers may be made up for its ratio
    "node/test_gemm_all_attributes+constant weights",
    "node/test_identity_opt",
    "node/test_identity_sequence",
    "node/test_if_seq",
    "node/test_layer_normalization_4d_axis1_expanded_ver18+constant weights",  # layers that fold away
    "node/test_loop13_seq",
    "node/test_lstm_with_initial_bias+constant weights",
    "node/test_matmul_3d+constant weights",
    "node/test_qlinearconv+constant weights",
    "node/test_scan9_sum",
    "node/test_strnormalizer_nostopwords_nochangecase",
    "pytorch-converted/test_Conv2d_groups_thnn",
    "pytorch-converted/test_PixelShuffle",
    "simple/test_gradient_of_add",  # ONNX Runtime does not know the operator
    "simple/test_sequence_model5",
)
EVERY = 250


@pytest.fixture(scope="module")
def cases() -> Iterator[dict[str, Case]]:
    found = {variant.name: variant for case in load_cases() for variant in variants(case)}
    gc.collect()
    gc.freeze()  # the manager collects garbage after every pass: thousands of models are none
    yield found
    gc.unfreeze()


def examined(case: Case) -> list[Finding]:
    with without_timing():
        return examine(case)


def test_a_sample_of_the_collection_comes_through_every_pass(cases: dict[str, Case]) -> None:
    names = {*CHOSEN, *[name for name in cases if not name.startswith("light/")][::EVERY]}
    findings = [found for name in sorted(names & cases.keys()) for found in examined(cases[name])]
    assert [found for found in findings if found.outcome == "failed"] == []
    outcomes = [found.outcome for found in findings]
    assert outcomes.count("transformed") >= 10
    assert outcomes.count("not runnable") >= 1


def test_every_registered_pass_is_examined(cases: dict[str, Case]) -> None:
    assert {pipeline.passes[-1].name for pipeline in passes_alone()} == set(pass_names())
    checks = [found.check for found in examined(cases["node/test_gemm_all_attributes+constant weights"])]
    assert checks == ["load and save", *pass_names(), EVERY_PASS]


def test_inputs_become_constants(cases: dict[str, Case]) -> None:
    weighted = cases["node/test_gemm_all_attributes+constant weights"]
    assert [value.name for value in weighted.proto.graph.input] == ["a"]
    assert list(weighted.sets[0][0]) == ["a"]
    assert len(weighted.proto.graph.initializer) == 2
    assert cases["node/test_gemm_all_attributes+constant inputs"].sets[0][0] == {}


# -- what must not pass ----------------------------------------------------------------------------------------


class Breaks(Pass):
    """Does something wrong to every weight that it finds."""

    name: ClassVar[str] = "breaks"
    stage: ClassVar[Stage] = Stage.FOLD
    exact: ClassVar[bool] = True

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        constants = [tensor for node in model.graph.nodes for tensor in node.inputs if value_of(tensor) is not None]
        self.spoil(model, constants)

    def spoil(self, model: Model, constants: list[Any]) -> None:
        raise NotImplementedError


class Raises(Breaks):
    """Stumbles."""

    def spoil(self, model: Model, constants: list[Any]) -> None:  # noqa: ARG002
        raise KeyError("weight")


class Narrows(Breaks):
    """Leaves a model that does not run."""

    def spoil(self, model: Model, constants: list[Any]) -> None:  # noqa: ARG002
        for tensor in constants:
            assign(tensor, value_of(tensor)[:1, :1])


class Scales(Breaks):
    """Changes what it promises not to."""

    def spoil(self, model: Model, constants: list[Any]) -> None:  # noqa: ARG002
        for tensor in constants:
            assign(tensor, value_of(tensor) * 2)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(Raises, "KeyError"), (Narrows, "cannot"), (Scales, "promises the same outputs")],
)
def test_a_pass_that_breaks_a_model_is_a_failure(
    broken: type[Pass], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(examine.__globals__, "pass_names", lambda: ["breaks"])
    monkeypatch.setitem(examine.__globals__, "pass_class", lambda _: broken)
    proto = ARCHITECTURES["one matrix in two layers"]()
    feeds = {"x": np.ones((2, 32), np.float32)}
    outputs = list(session.run(session.create(proto), feeds).values())
    findings = {found.check: found for found in examined(Case("net", proto, [(feeds, outputs)], 1e-3, 1e-6))}
    assert findings["load and save"].outcome == "left alone"
    assert findings["breaks"].outcome == "failed"
    assert complaint in findings["breaks"].detail
    assert findings[EVERY_PASS].outcome == "failed"


def test_differences_are_found() -> None:
    before = ARCHITECTURES["Gemm"]()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    assert field_difference(before, after) is None
    after.graph.node[1].doc_string = ""
    assert field_difference(before, after) == "the model.graph.node[1].doc_string from '' to ''"
    after.graph.node.pop()
    assert str(field_difference(before, after)).startswith("the model.graph.node from ")


@pytest.mark.parametrize(
    ("expected", "found", "differs"),
    [
        (np.float32([1, 2]), np.float32([1, 2.0001]), False),
        (np.float32([1, 2]), np.float32([1, 2.1]), True),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), False),
        (np.float32([1, np.nan]), np.float32([1, 2]), True),
        (np.float32([1, 2]), np.float64([1, 2]), True),
        (np.float32([1, 2]), np.float32([[1, 2]]), True),
        (np.asarray([1.0], ml_dtypes.bfloat16), np.asarray([1.008], ml_dtypes.bfloat16), False),
        (np.array(["a"], object), np.array(["b"], object), True),
        ([np.float32([1])], [np.float32([1]), np.float32([1])], True),
        ([], [], False),
        (None, None, False),
        (None, np.float32([1]), True),
    ],
)
def test_outputs_are_compared_by_value_type_and_shape(expected: Any, found: Any, differs: bool) -> None:
    assert (output_difference(expected, found, 1e-3, 1e-6) is not None) == differs


def test_sentences_of_one_kind_are_counted_as_one() -> None:
    first, second = "/tmp/a/net.onnx: input 'x1' has 3 axes", "/home/net.onnx: input 'ids' has 12 axes"
    assert kind_of_sentence(first) == kind_of_sentence(second) == "… input '…' has # axes"


# -- processes -------------------------------------------------------------------------------------------------


def work(item: str) -> str:
    if item == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hangs":
        time.sleep(600)
    if item == "raises":
        raise ValueError(item)
    return item.upper()


def test_a_process_that_dies_or_hangs_costs_its_item_only() -> None:
    items = ["a", "dies", "b", "hangs", "raises", "c"]
    found = {done.item: done for done in spread(work, items, processes=2, seconds=2.0, preparing=20.0)}
    assert {item: found[item].value for item in "abc"} == {"a": "A", "b": "B", "c": "C"}
    assert found["dies"] == Done("dies", failure="ended by SIGKILL")
    assert str(found["hangs"].failure).startswith("stopped after")
    assert found["raises"] == Done("raises", failure="ValueError: raises")


# -- counts ----------------------------------------------------------------------------------------------------


def test_findings_are_counted_and_shown() -> None:
    findings = [
        Finding("a", "quant", "transformed", reasons={"too small": 2}),
        Finding("b", "quant", "left alone", reasons={"too small": 1}),
        Finding("c", "quant", "left alone", "it has no weighted layers"),
        Finding("d", "quant", "not runnable", "SessionError: no"),
        Finding("e", "quant", "failed", "KeyError:\n  'x'"),
    ]
    environment = Environment(cpu="cpu", isa=[], cores=2, platform="os", versions=dict.fromkeys(PACKAGES, "1"))
    about = {"date": "today", "command": "run", "seconds": 60.0, "processes": 2, "models": {"node": 5}}
    result = Collection(environment=environment, **about, **tally(findings))
    assert result.outcomes == {"quant": {"failed": 1, "left alone": 2, "not runnable": 1, "transformed": 1}}
    assert [(count.text, count.models) for count in result.reasons] == [
        ("too small", 2),
        ("it has no weighted layers", 1),
    ]
    text = collection_section(result)
    assert "| quant | 1 | 2 | 0 | 0 | 1 | 1 |" in text
    assert "- 2 x quant: too small" in text
    assert "- e, quant: KeyError: 'x'" in text


PACKAGES = ("python", "onnxcomp", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
