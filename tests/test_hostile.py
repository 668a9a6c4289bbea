"""The command on broken and hostile files, on killed runs, and on files that would like to run code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing.cases import cases
from fuzzing.outside import boundaries
from onnx import helper

from tests import models
from tests.command import Command

ROOT = Path(__file__).resolve().parents[1]


def script(name: str, *arguments: str) -> dict[str, object]:
    """The JSON that a benchmark prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments, "--output", "-"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")
def test_mutated_models_are_refused_or_compiled() -> None:
    found = script("fuzz.py", "--cases", "30", "--spawned", "1")
    assert found["cases"] == 30
    assert found["failures"] == []
    assert set(found["outcomes"]) <= {"refused", "verified", "undone"}  # type: ignore[call-overload]


@pytest.mark.skipif(sys.platform != "linux", reason="it forks a process that has loaded everything")
@pytest.mark.parametrize("arguments", [(), ("--external",)])
def test_killed_compilations_leave_the_old_output_or_the_new_one(arguments: tuple[str, ...]) -> None:
    found = script("kill.py", "--kills", "2", "--pipeline", "fold", *arguments)
    assert found["old"] + found["new"] == found["kills"] == 2  # type: ignore[operator]
    assert found["broken"] == 0
    assert found["strays_after_the_next_run"] == []


def test_cases_are_the_same_every_time_and_of_every_kind(tmp_path: Path) -> None:
    wanted = list(cases(300))
    assert {case.kind for case in wanted} == {"structure", "growth", "external", "bytes"}
    assert len({(case.kind, case.mutation) for case in wanted}) > 45
    for case in wanted[:12]:
        written = []
        for attempt in ("a", "b"):
            folder = tmp_path / f"{case.number}{attempt}" / "case"
            folder.mkdir(parents=True)
            case.write(folder)
            written.append((folder / "model.onnx").read_bytes())
        if case.mutation != "place":  # it may name the folder
            assert written[0] == written[1]


def test_boundaries_are_where_fields_begin() -> None:
    proto = onnx.ModelProto(ir_version=8)
    proto.graph.doc_string = "g"
    assert boundaries(proto.SerializeToString())[:3] == [0, 2, 4]  # version, graph, the graph's text


# -- code ------------------------------------------------------------------------------------------------------

EVIL = "open('ran', 'w').close()\n\n\ndef run(*_):\n    pass\n"


@pytest.mark.parametrize("arguments", [(), ("-p", "prune,quant,reorder"), ("-p", "fold", "--dry-run")])
def test_nothing_in_a_model_names_code_that_is_run(command: Command, arguments: tuple[str, ...]) -> None:
    """Domains, functions, operators, metadata and text that look like Python hooks are just names."""
    (command.folder / "evil.py").write_text(EVIL)
    names = ["evil", "evil:run", "./evil.py:run", "__import__('evil')", "{evil.run()}", "evil.run"]
    function = helper.make_function(
        "evil", "run", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    proto = models.documented()
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("evil", 1))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "run", "evil"
    del proto.graph.node[1].input[1:]
    proto.producer_name = proto.doc_string = proto.graph.name = proto.graph.node[0].name = names[1]
    for index, name in enumerate(names):
        models.note(proto, **{"metric": name, "data": name, "passes": name, f"onnxcomp.{index}": name})
        proto.graph.node[0].metadata_props.add(key="metric", value=name)
    (command.folder / "bad.onnx").write_bytes(proto.SerializeToString())
    command("bad.onnx", *arguments)
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


def test_control_characters_of_names_do_not_reach_the_terminal(command: Command) -> None:
    proto = onnx.load(command.folder / "net.onnx")
    for node in proto.graph.node:
        node.name = f"\x1b[2J\x1b]0;{node.op_type}\x07\x9b1m\r{node.output[0]}"
    onnx.save(proto, "odd.onnx")
    shown = command.succeeds("odd.onnx").out
    assert "\\x1b[2J" in shown
    proto.graph.node[0].input[0] = "\x1b[31mgone\n"
    onnx.save(proto, "bad.onnx")
    message = command.fails("bad.onnx")
    for text in (shown, message):
        assert all(character.isprintable() or character == "\n" for character in text)


# -- weights that are no numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.nan, "the model's own output 'gemm7' holds NaN"), (np.inf, ""), (3e38, "")],
)
def test_weights_that_are_no_numbers(command: Command, value: float, says: str) -> None:
    proto = onnx.load(command.folder / "net.onnx")
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0] = value
    proto.graph.initializer[0].raw_data = weight.tobytes()
    onnx.save(proto, "odd.onnx")
    outcome = command("odd.onnx", "-p", "prune,reorder", "--data", "data.npz", "--report", "report.json")
    assert outcome.code == 0, outcome.err
    assert says in outcome.err
    report = json.loads(Path("report.json").read_text())
    assert not any("invalid numeric" in str(entry) for entry in report["passes"])
    onnx.checker.check_model(onnx.load("odd.compressed.onnx"))
