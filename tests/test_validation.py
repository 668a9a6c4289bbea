"""Models and external data that would do harm before ONNX Runtime is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzzing.growth import calling, function, nested_bytes
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import InputError
from onnxcomp.model import Model
from onnxcomp.storage.validation import check_structure, external_file, external_range
from tests import models
from tests.generate import Net, networks


@pytest.mark.parametrize("make", models.FEATURES.values(), ids=models.FEATURES)
def test_every_sound_model_passes(make: Callable[[], onnx.ModelProto]) -> None:
    check_structure(make())


@given(networks())
def test_every_drawn_network_passes(net: Net) -> None:
    check_structure(net.proto())


def weight(proto: onnx.ModelProto) -> TensorProto:
    return proto.graph.initializer[0]


def repeat(field: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        items = getattr(proto.graph, field)
        items.append(items[0])

    return change


def nest(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], [models.value("y", None)])
    for _ in range(25):
        node = helper.make_node("If", ["w"], ["y"], then_branch=body)
        body = helper.make_graph([node], "deeper", [], [models.value("y", None)])
    proto.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.CopyFrom(body)


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "an initializer twice": (repeat("initializer"), "has the initializer 'b' twice"),
    "a node twice": (repeat("node"), r"node 'first' \(MatMul\) computes 'h', which is computed or given already"),
    "an input twice": (repeat("input"), "has the input 'x' twice"),
    "an attribute twice": (
        lambda p: p.graph.node[0].attribute.extend([helper.make_attribute("axis", 1)] * 2),
        r"node 'first' \(MatMul\) has the attribute 'axis' twice",
    ),
    "an operator set twice": (
        lambda p: p.opset_import.append(helper.make_opsetid("", 7)),
        "has the operator set '' twice",
    ),
    "a cycle": (
        lambda p: p.graph.node[0].input.__setitem__(0, "y"),
        r"node 'first' \(MatMul\) reads 'y' before it is computed: nodes are out of order or in a circle",
    ),
    "nothing computes an input": (
        lambda p: p.graph.node[1].input.__setitem__(0, "gone"),
        r"node 'second' \(Add\) reads 'gone', which nothing computes",
    ),
    "nothing computes an output": (
        lambda p: setattr(p.graph.output[0], "name", "gone"),
        "nothing computes its output 'gone'",
    ),
    "negative dimensions": (lambda p: weight(p).dims.__setitem__(0, -3), r"'b' has the dimensions \(-3,\)"),
    "dimensions that overflow": (
        lambda p: weight(p).dims.extend([2**62, 2**62]),
        r"initializer 'b' holds 12 bytes where its dimensions .* take over 10\^30",
    ),
    "too many dimensions": (lambda p: weight(p).dims.extend([1] * 64), "'b' has 65 dimensions, more than the 64"),
    "too few bytes": (
        lambda p: setattr(weight(p), "raw_data", b"1"),
        "holds 1 bytes where its dimensions .3,. take 12",
    ),
    "no data": (lambda p: weight(p).ClearField("raw_data"), "holds 0 values where its dimensions .3,. take 3"),
    "a type that does not exist": (lambda p: setattr(weight(p), "data_type", 77), "'b' has the type 77, which onnx"),
    "segments": (lambda p: setattr(weight(p).segment, "begin", 1), "'b' is stored in segments"),
    "a sparse tensor of petabytes": (
        lambda p: p.graph.sparse_initializer.append(
            helper.make_sparse_tensor(
                numpy_helper.from_array(np.ones(1, np.float32), "s"),
                numpy_helper.from_array(np.zeros(1, np.int64)),
                [2**30, 2**20],
            )
        ),
        "sparse initializer 's' has over 2 GB of zeros written out",
    ),
    "bodies in bodies": (nest, "its bodies are nested over 20 deep"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named(what: str) -> None:
    proto = models.documented()
    change, message = BROKEN[what]
    change(proto)
    with pytest.raises(InputError, match=message) as caught:
        Model.from_proto(proto)
    assert str(caught.value).startswith("the model: ")
    assert "; " in str(caught.value), "it names a remedy"


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ({"a": ["a"]}, "its function 'a' calls itself"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "its function '[bc]' calls itself"),
        (
            {"a": ["b"] * 200, "b": ["c"] * 200, "c": []},
            "its functions, written out, have 80200 nodes, more than 20,000",
        ),
        ({chr(97 + n): [chr(98 + n)] * 2 for n in range(24)} | {"y": []}, "its functions, written out, have"),
        ({f"f{n}": [f"f{n + 1}"] for n in range(150)} | {"f150": []}, "its functions call each other over 100 deep"),
    ],
)
def test_functions_that_grow_without_bound_are_refused(calls: dict[str, list[str]], message: str) -> None:
    proto = calling(next(iter(calls)), [function(name, callees) for name, callees in calls.items()])
    with pytest.raises(InputError, match=message):
        check_structure(proto)


def test_functions_that_share_functions_pass() -> None:
    calls = {"a": ["b", "c", "b"], "b": ["c"] * 3, "c": []}
    check_structure(calling("a", [function(name, callees) for name, callees in calls.items()]))


@pytest.mark.parametrize("depth", [50, 5000])
def test_graphs_nested_deeper_than_any_parser_goes_are_no_model(tmp_path: Path, depth: int) -> None:
    (tmp_path / "net.onnx").write_bytes(nested_bytes(depth))
    with pytest.raises(InputError, match=r"net\.onnx: "):
        Model.load(tmp_path / "net.onnx")


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    data = models.documented().SerializeToString().replace(b"first", b"\xff\xfe\xfd\xfc\xfb")
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"net\.onnx: "):
        Model.load(tmp_path / "net.onnx")


# -- external data ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights, a folder in it, links, a pipe; and weights outside of it."""
    inside = tmp_path / "inside"
    (inside / "below").mkdir(parents=True)
    for place in (tmp_path / "outside.bin", inside / "w.bin", inside / "below" / "w.bin"):
        place.write_bytes(b"data")
    (inside / "in.bin").symlink_to("w.bin")
    (inside / "out.bin").symlink_to("../outside.bin")
    (inside / "up").symlink_to("..")
    (inside / "zero").symlink_to("/dev/zero")
    (inside / "round").symlink_to("round")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize("location", ["w.bin", "below/w.bin", "./w.bin", "below/../w.bin", "in.bin"])
def test_files_in_the_models_folder_are_found(folder: Path, location: str) -> None:
    found = external_file(folder / "net.onnx", location, "w")
    assert found.read_bytes() == b"data"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../outside.bin", "is outside the model's folder"),
        ("below/../../outside.bin", "is outside the model's folder"),
        ("out.bin", "is outside the model's folder"),
        ("up/outside.bin", "is outside the model's folder"),
        ("/etc/passwd", "is outside the model's folder"),
        ("//etc/passwd", "is outside the model's folder"),
        ("..\\outside.bin", "is outside the model's folder"),
        (".", "is outside the model's folder"),
        ("", "is no name of a file"),
        ("a\0b", "is no name of a file"),
        ("zero", "is outside the model's folder"),
        ("pipe", "is no plain file"),
        ("below", "is no plain file"),
        ("gone.bin", "No such file or directory; copy it beside the model"),
        ("round", "symbolic links"),
        ("w" * 5000, "File name too long"),
    ],
)
def test_other_places_are_refused(folder: Path, location: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        external_file(folder / "net.onnx", location, "w")
    assert str(caught.value).startswith(f"{folder / 'net.onnx'}: external data of 'w' cannot be used: ")
    assert len(str(caught.value)) < 400


def test_links_of_a_cache_of_models_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("net.onnx", "ab12"), ("net.onnx_data", "cd34")):
        (blobs / blob).write_bytes(b"data")
        (snapshot / name).symlink_to(blobs / blob)
    assert external_file(snapshot / "net.onnx", "net.onnx_data", "w").read_bytes() == b"data"


@pytest.mark.parametrize(
    ("offset", "length", "expected", "found"),
    [(None, None, 100, (0, 100)), ("64", "16", 16, (64, 16)), ("64", None, 36, (64, 36)), ("", "", None, (0, 100))],
)
def test_ranges_inside_of_a_file(
    offset: str | None, length: str | None, expected: int | None, found: tuple[int, int]
) -> None:
    assert external_range(Path("net.onnx"), "w", 100, offset, length, expected) == found


@pytest.mark.parametrize(
    ("offset", "length", "message"),
    [
        ("-1", "16", "its offset is '-1' and no number of bytes"),
        ("0", "-16", "its length is '-16' and no number of bytes"),
        ("ten", "16", "its offset is 'ten' and no number"),
        ("1_0", "16", "no number"),
        ("٣", "16", "no number"),
        ("9" * 5000, "16", "no number"),
        (str(2**63 - 1), "16", "are beyond the end of its file of 100"),
        ("90", "16", "bytes 90 to 106 are beyond the end of its file of 100"),
        ("0", "15", "it has 15 bytes where its type and dimensions take 16"),
        ("99", None, "it has 1 bytes where"),
        ("101", None, "are beyond the end"),
    ],
)
def test_other_ranges_are_refused(offset: str, length: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        external_range(Path("net.onnx"), "w", 100, offset, length, 16)
    assert str(caught.value).startswith("net.onnx: external data of 'w' cannot be used:")
