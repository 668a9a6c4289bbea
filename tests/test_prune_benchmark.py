from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from harness.bench import Bench, told_arguments
from harness.entries import CHANNELS, ELEMENTS, Entry
from harness.large_graph import generated
from harness.process import Limits
from harness.prune_results import Discovery, PruneResults
from harness.prune_targets import check_prune
from harness.quant_results import Cost, Costs
from harness.render_prune import prune_sections
from harness.results import Environment, Ratio, Row, Section, merge
from harness.targets import Target
from harness.weights import flops_of, packed_bytes, zeros
from harness.zoo import MODELS
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.model import Model
from onnxcomp.runtime.shapes import observed

MACHINE = Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"})


def row(entry: Entry, **changes: object) -> Row:
    measured = {
        "seconds": 30.0,
        "peak_bytes": 500_000_000,
        "bytes": 2_000_000,
        "packed_bytes": 1_500_000,
        "figures": {"top-1": 0.937},
        "agreement": 0.98,
        "sqnr_db": 20.0,
        "flops": 690,
        "zeros": 0.01,
        "latency": Ratio(median=1.4, low=1.3, high=1.5),
    }
    return entry.row().model_copy(update=measured | changes)


def section(rows: list[Row], model: str = "fashion") -> Section:
    figures = {"top-1": 0.94}
    original = Row(name="fp32", tool="fp32", setting="the original", bytes=4_000_000, figures=figures)
    original.flops, original.packed_bytes, original.zeros, original.agreement = 1000, 3_000_000, 0.0, 1.0
    return Section(
        model=model,
        file="net.onnx",
        date="2025-01-01",
        command="python benchmarks/prune.py",
        environment=MACHINE,
        figures=["top-1"],
        samples={"top-1": 10_000},
        calibration_samples=512,
        rounds=3,
        threads=1,
        original=original,
        rows=rows,
    )


def of(text: str, rows: list[Row], suite: str = "channels") -> dict[str, Target]:
    """The targets of fashion that begin so, by the rest of what they ask for."""
    targets = check_prune(PruneResults(**{suite: {"fashion": section(rows)}}))
    return {target.text.removeprefix(f"{text}: "): target for target in targets if target.text.startswith(text)}


# -- tables ------------------------------------------------------------------------------------------------


def test_a_row_tells_what_was_removed_and_what_packing_makes_of_it() -> None:
    document = prune_sections(PruneResults(channels={"fashion": section([row(CHANNELS["onnxcomp-30"])])}))
    lines = [line.strip("|").split("|") for line in document.splitlines() if line.startswith("| ")]
    told = {name.strip(): cell.strip() for name, cell in zip(lines[0], lines[3], strict=True)}
    assert told["setting"] == "-p prune(flops=0.3)"
    assert (told["FLOPs removed"], told["zeros"], told["lost"]) == ("31.0 %", "1.00 %", "0.30")
    assert (told["file"], told["packed"], told["packed, smaller"]) == ("2.00 MB", "1.50 MB", "2.00x")


def test_costs_and_the_large_graph_are_told() -> None:
    cost = Cost(name="onnxcomp-channels", tool="onnxcomp", setting="-p prune", samples=256, seconds=100.0)
    costs = Costs(model="mobilenetv2", date="2025-01-01", command="c", environment=MACHINE, rows=[cost])
    found = Discovery(date="2025-01-01", environment=MACHINE, nodes=10_000, groups=2017, seconds=[0.5, 3.0, 0.75])
    results = PruneResults(costs=costs, discovery=found)
    assert "2,017 dependency groups of 10,000 nodes: 0.50, 3.00, 0.75 s" in prune_sections(results)
    targets = {target.text: target for target in check_prune(results)}
    assert targets["dependency groups of a graph of 10,000 nodes: seconds: at most 2 s"].measured == "0.75 s"
    assert targets["mobilenetv2, 256 images, two cores, channels: seconds of the process: at most 120 s"].met
    peak = targets["mobilenetv2, 256 images, two cores, channels: peak memory: at most 2000 MB"]
    assert peak.met is None
    cost.failure = "stopped after 300 s"
    missed = [target for target in check_prune(results) if target.measured == cost.failure]
    assert [target.met for target in missed] == [False]


# -- targets -----------------------------------------------------------------------------------------------


def test_limits_of_an_issue_are_met_or_missed_by_a_number() -> None:
    found = of("fashion, -30 % FLOPs", [row(CHANNELS["onnxcomp-30"], figures={"top-1": 0.93})])
    assert found["points lost of top-1: at most 0.5 points"].miss == "0.50 points"
    assert found["speed: at least 1.25 x"].met
    assert found["FLOPs removed: at least 29.95 %"].measured == "31.00 %"


def test_the_rival_is_the_best_result_of_the_same_budget() -> None:
    rows = [
        row(CHANNELS["onnxcomp-30"]),
        row(CHANNELS["onnxcomp-norms-30"], agreement=0.5),
        row(CHANNELS["onnxsim-wanda-30"], agreement=0.97),
        row(CHANNELS["onnxsim-wanda-tuned-30"], agreement=0.99, flops=750),  # it removes less
        row(CHANNELS["onnxsim-wanda-tuned-50"], agreement=0.995, flops=500),
    ]
    (target,) = [found for text, found in of("fashion, -30 % FLOPs", rows).items() if text.startswith("agreement")]
    assert "against onnxsim-wanda-30: at least 97 %" in target.text
    assert target.met


def test_weights_without_data_are_a_rival_too() -> None:
    rows = [row(ELEMENTS["onnxcomp-half"], zeros=0.5), row(ELEMENTS["onnxcomp-magnitude-half"], zeros=0.5, sqnr_db=21)]
    found = of("fashion, 50 % zeros", rows, "elements")
    assert found["SQNR, against onnxcomp-magnitude-half: at least 21 dB"].miss == "1.00 dB"
    assert found["zeros: at least 49.95 %"].met


def test_a_failed_result_misses_its_targets_and_a_failed_peer_is_none() -> None:
    failed = row(CHANNELS["onnxcomp-30"], failure="exit code 2")
    assert of("fashion, -30 % FLOPs", [failed])["all targets"].met is False
    peer = row(CHANNELS["onnxsim-wanda-30"], failure="removes 9.0 % of the FLOPs at most")
    assert not any("against" in text for text in of("fashion, -30 % FLOPs", [row(CHANNELS["onnxcomp-30"]), peer]))


# -- entries and runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", {**CHANNELS, **ELEMENTS}.values(), ids=lambda entry: entry.name)
def test_every_entry_gets_the_samples_unless_it_says_otherwise(entry: Entry, tmp_path: Path) -> None:
    model = MODELS["fashion"]
    command = entry.command(model, tmp_path / "out" / "model.onnx")
    assert (str(model.data) in command) is entry.calibrated
    assert ("no data" in entry.setting) is not entry.calibrated


def test_what_a_peer_has_left_is_taken_and_not_made_again(tmp_path: Path) -> None:
    bench = Bench(1, 1, Limits(1, 1), tmp_path, "command", MACHINE, reuse=True)
    entry = CHANNELS["onnxsim-wanda-30"]
    kept = row(entry, failure="removes 9.0 % of the FLOPs at most")
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / f"{entry.name}.row.json").write_text(kept.model_dump_json(), encoding="utf-8")
    assert bench.made_and_judged(MODELS["fashion"], entry)[0] == kept


def test_rows_measured_apart_replace_those_of_their_name_and_say_so() -> None:
    ours, peer = CHANNELS["onnxcomp-30"], CHANNELS["onnxsim-wanda-30"]
    before, after = section([row(ours), row(peer)]), section([row(ours, flops=600)])
    after.date = "2025-02-02"
    merged = merge(before, after)
    assert [(found.name, found.flops, found.date) for found in merged.rows] == [
        (ours.name, 600, "2025-02-02"),
        (peer.name, 690, None),
    ]


def test_the_command_that_is_stored_names_no_folder() -> None:
    arguments = ["--suites", "channels", "--work", "/some/where", "--reuse", "--models", "fashion", "--work=/else"]
    assert told_arguments(arguments) == ["--suites", "channels", "--models", "fashion"]


# -- counting ----------------------------------------------------------------------------------------------


def test_flops_zeros_and_packed_bytes_of_a_file(tmp_path: Path) -> None:
    weight = np.arange(1, 33, dtype=np.float32).reshape(8, 4) * np.array([0, 1, 0, 1], np.float32)
    table = np.zeros((64, 8), np.float32)  # looked up, not multiplied
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "index"], ["x"]),
            helper.make_node("MatMul", ["x", "weight"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("index", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert flops_of(path, {"index": np.zeros(3, np.int64)}) == 2 * 3 * 8 * 4
    assert zeros(Model.load(path)) == 16 / 32
    assert packed_bytes(path) == packed_bytes(tmp_path) < path.stat().st_size / 2


def test_the_large_graph_is_valid_and_its_shapes_are_right(tmp_path: Path) -> None:
    model, shapes = generated(200)
    assert 200 <= len(model.graph.nodes) < 250
    model.save(tmp_path / "large.onnx")
    onnx.checker.check_model(tmp_path / "large.onnx", full_check=True)
    assert observed(model, {"x": np.zeros(shapes["x"], np.float32)}) == shapes
