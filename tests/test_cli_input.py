"""Bad models, pipelines, options: one sentence, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.command import Command

COMPILE = ("-p", "fold")


# -- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), COMPILE, (*COMPILE, "--dry-run")])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.onnx", "missing.onnx: no such file; give the path of an .onnx model"),
        ("missing/net.onnx", "missing/net.onnx: no such file; give the path of an .onnx model"),
        ("net.onnx/net.onnx", "net.onnx/net.onnx: "),
        (".", ".: is a folder; give the path of an .onnx model"),
        ("data.npz", "data.npz: is not an ONNX model"),
        ("text.onnx", "text.onnx: is not an ONNX model"),
        ("noise.onnx", "noise.onnx: is not an ONNX model"),
        ("empty.onnx", "empty.onnx: is not an ONNX model"),
        ("x" * 300, "x: "),
    ],
)
def test_what_is_no_model_is_named(command: Command, arguments: tuple[str, ...], model: str, message: str) -> None:
    (command.folder / "text.onnx").write_text("To whom it may concern\n" * 20)
    (command.folder / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(3000))
    (command.folder / "empty.onnx").write_bytes(b"")
    assert message in command.fails(model, *arguments)


def test_a_model_truncated_anywhere_is_refused(command: Command) -> None:
    whole = (command.folder / "net.onnx").read_bytes()
    cut = command.folder / "cut.onnx"
    lengths = {1, 2, 10, 100, *np.linspace(0, len(whole) - 1, 40, dtype=int), *range(len(whole) - 20, len(whole))}
    for length in sorted(lengths):
        cut.write_bytes(whole[:length])
        assert command.fails("cut.onnx", *COMPILE).startswith("cut.onnx: "), length


def change(graph: onnx.ModelProto, what: str) -> None:
    node, weight = graph.graph.node[0], graph.graph.initializer[0]
    changes: dict[str, Callable[[], object]] = {
        "an operator that does not exist": lambda: setattr(node, "op_type", "Nope"),
        "a domain without kernels": lambda: (
            setattr(node, "domain", "com.acme"),
            graph.opset_import.append(helper.make_opsetid("com.acme", 1)),
        ),
        "an input that nothing gives": lambda: node.input.__setitem__(0, "absent"),
        "an output that nothing computes": lambda: setattr(graph.graph.output[0], "name", "absent"),
        "no outputs": lambda: graph.graph.ClearField("output"),
        "a cycle": lambda: graph.graph.node[1].input.__setitem__(0, graph.graph.node[-1].output[0]),
        "the same node twice": lambda: graph.graph.node.append(node),
        "an opset of the future": lambda: setattr(graph.opset_import[0], "version", 999),
        "no opset": lambda: graph.ClearField("opset_import"),
        "a file format of the future": lambda: setattr(graph, "ir_version", 999),
        "a weight that is cut off": lambda: setattr(weight, "raw_data", weight.raw_data[:8]),
        "a weight of another shape": lambda: (weight.ClearField("dims"), weight.dims.extend([12, 36, 1, 1])),
    }
    changes[what]()


@pytest.mark.parametrize(
    "what",
    [
        "an operator that does not exist",
        "a domain without kernels",
        "an input that nothing gives",
        "an output that nothing computes",
        "no outputs",
        "a cycle",
        "the same node twice",
        "an opset of the future",
        "no opset",
        "a file format of the future",
        "a weight that is cut off",
        "a weight of another shape",
    ],
)
def test_a_model_that_does_not_run_is_refused_with_the_reason(command: Command, what: str) -> None:
    proto = onnx.load(command.folder / "net.onnx")
    change(proto, what)
    (command.folder / "bad.onnx").write_bytes(proto.SerializeToString())
    for data in ((), ("--data", "data.npz")):
        message = command.fails("bad.onnx", *COMPILE, *data)
        assert message.startswith("bad.onnx: ")
        assert "onnxruntime_src" not in message
        assert "::" not in message, "C++ names tell a user nothing"


@pytest.mark.parametrize(
    ("location", "message"),
    [("../weights.bin", "outside"), ("gone.bin", "external data"), ("short.bin", "bad.onnx: ")],
)
def test_external_data_that_cannot_be_used_is_refused(command: Command, location: str, message: str) -> None:
    (command.folder / "short.bin").write_bytes(b"1234")
    proto = onnx.load(command.folder / "net.onnx")
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (command.folder / "bad.onnx").write_bytes(proto.SerializeToString())
    assert message in command.fails("bad.onnx", *COMPILE)


# -- pipelines and options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("prnue", "there is no pass 'prnue'; did you mean 'prune'?"),
        (
            "polish",
            "there is no pass 'polish'; the passes are equalize, factorize, fold, prune, quant, recover, reorder, "
            "share",
        ),
        ("prune(flps=0.3)", "prune has no option 'flps'; did you mean 'flops'?"),
        ("prune(flops=3)", "prune: option flops=3 is not allowed: it must be > 0 and < 1"),
        ("prune(flops=0)", "it must be > 0 and < 1"),
        ("prune(flops='much')", "prune: option flops='much' is not allowed"),
        ("quant(samples=0)", "it must be >= 1 and <= 100000"),
        ("quant(mode='fast')", "it should be 'auto', 'static', 'dynamic' or 'weights'"),
        ("prune(flops=0.2,sparsity=0.2)", "flops, sparsity and speedup exclude each other"),
        ("prune(0.3)", "prune: options are named, as in prune("),
        ("prune(flops=__import__('os'))", "is no number, text, list or boolean"),
        ("prune(", "cannot be read; write it like prune(flops=0.3),quant"),
        ("prune,,quant", "cannot be read; write it like prune(flops=0.3),quant"),
        ("small-and-fats", "or name a recipe: int8, small-and-fast"),
        ("", "the pipeline is empty"),
        ("gone.toml", "gone.toml: the recipe cannot be read: No such file"),
        ("bad.toml", "bad.toml: is no TOML"),
        ("odd.toml", "there is no pass 'prnue'; did you mean 'prune'?"),
    ],
)
def test_a_bad_pipeline_is_explained(command: Command, pipeline: str, message: str) -> None:
    (command.folder / "bad.toml").write_text("[[pass\n")
    (command.folder / "odd.toml").write_text('[[pass]]\nname = "prnue"\n')
    assert message in command.fails("net.onnx", "-p", pipeline)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no model is given; name an .onnx file"),
        (("-p", "fold"), "no model is given; name an .onnx file"),
        (("net.onnx", "-p"), "'-p' requires an argument"),
        (("net.onnx", "--nope"), "no such option: --nope"),
        (("net.onnx", *COMPILE, "other.onnx"), "unexpected extra argument"),
        (("net.onnx", "-p", "quant,prune", "--keep-order"), "write prune,quant, or drop --keep-order"),
        (("net.onnx", *COMPILE, "--target", "riscv"), "unknown target 'riscv'; the targets are host, x86-avx2"),
        (("net.onnx", "--target", "riscv"), "unknown target 'riscv'; the targets are host, x86-avx2"),
        (("net.onnx", *COMPILE, "--max-drop", "0.1"), "--max-drop needs samples"),
        (("net.onnx", *COMPILE, "--data", "data.npz", "--max-drop", "-1"), "give a number from 0 on"),
        (("net.onnx", *COMPILE, "--data", "data.npz", "--max-drop", "nan"), "give a number from 0 on"),
        (("net.onnx", *COMPILE, "--max-drop", "little"), "--max-drop"),
        (
            ("net.onnx", *COMPILE, "--data", "data.npz", "--metric", "sqnr", "--max-drop", "3"),
            "--max-drop: sqnr has no largest value to drop from; use cosine or max_error",
        ),
        (("net.onnx", *COMPILE, "--seed", "-1"), "'--seed'"),
        (("net.onnx", *COMPILE, "--threads", "0"), "'--threads'"),
        (("net.onnx", *COMPILE, "--data", ""), "--data is empty"),
        (("net.onnx", "--dry-run"), "--dry-run needs a pipeline"),
        (("net.onnx", "-o", "small.onnx"), "--output needs a pipeline"),
        (("net.onnx", "--metric", "top1"), "--metric needs a pipeline"),
        (("net.onnx", *COMPILE, "--dry-run", "--report", "r.json"), "--report and --dry-run exclude each other"),
        (("--passes", "prnue"), "there is no pass 'prnue'; did you mean 'prune'?"),
        (("--replay", "gone"), "gone: its reproducer.json cannot be read (No such file or directory)"),
        (("--replay", "."), ".: its reproducer.json cannot be read"),
    ],
)
def test_bad_usage_is_explained(command: Command, arguments: tuple[str, ...], message: str) -> None:
    assert message in command.fails(*arguments)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pipeline": 3}'])
def test_a_damaged_reproducer_is_not_replayed(command: Command, text: str) -> None:
    Path("folder").mkdir()
    Path("folder/reproducer.json").write_text(text)
    message = command.fails("--replay", "folder")
    assert message.startswith("folder/reproducer.json: ")
    assert "is damaged" in message


def test_a_pass_that_needs_data_says_so_and_keeps_what_came_before(command: Command) -> None:
    outcome = command("net.onnx", "-p", "quant(mode='static')")
    assert outcome.code == 3
    assert "quant was undone: quant needs calibration data; give it with --data" in outcome.err
    onnx.checker.check_model(onnx.load("net.compressed.onnx"))
