"""Samples and metrics on the command line: what is accepted, and what is refused with one sentence."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.data import Dataset
from onnxcomp.evaluate import compare, metric_named
from onnxcomp.model import Model
from tests.command import Command

QUANT = ("net.onnx", "-p", "quant", "--data")
X = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
NAN = np.where(np.arange(16).reshape(16, 1, 1, 1) == 3, np.nan, X).astype(np.float32)


class Trap:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


# -- arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": X}, "has no array for input 'x' (float32 of shape (N, 3, 8, 8)); add it (arrays there: y)"),
        ({"x": X, "z": X}, "array 'z' is no input of the model; remove it (inputs: x)"),
        ({"x": X[:, 0]}, "array 'x' has shape (16, 8, 8) where the model takes float32 of shape (N, 3, 8, 8)"),
        ({"x": X[:, :, :5]}, "array 'x' has shape (16, 3, 5, 8) where the model takes"),
        ({"x": np.float32(3)}, "array 'x' has shape () where the model takes"),
        ({"x": X.astype(np.uint8)}, "array 'x' is uint8 where the model takes float32"),
        ({"x": X.astype(np.complex64)}, "array 'x' is complex64 where the model takes float32"),
        ({"x": X[:0]}, "holds no samples; give at least one"),
        ({"x": NAN}, "sample 3: array 'x' holds NaN or infinite values as float32; remove those samples"),
        ({"x": X, "labels": np.zeros(15, int)}, "labels have shape (15,) but there are 16 samples"),
        ({"x": X, "labels": np.int64(3)}, "labels have shape () but there are 16 samples"),
        ({"x": np.array([Trap()] * 16)}, "x.npy holds pickled Python objects; save plain arrays"),
        ({"x": X, "labels": np.array([Trap()] * 16)}, "labels.npy holds pickled Python objects"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(command: Command, arrays: dict[str, Any], message: str) -> None:
    np.savez("bad.npz", **arrays)
    error = command.fails(*QUANT, "bad.npz")
    assert error.startswith("bad.npz: ")
    assert message in error
    assert not Path("unpickled").exists()


def test_arrays_of_different_length_are_explained(command: Command) -> None:
    folder = Path("folder")
    folder.mkdir()
    np.savez(folder / "a.npz", x=X[:1])
    np.savez(folder / "b.npz", x=X[:1, :, :4])
    assert command.fails(*QUANT, "folder").startswith("folder/b.npz: array 'x' has shape (1, 3, 4, 8)")
    np.savez(folder / "b.npz", x=X[:1], labels=np.zeros(1))
    assert command.fails(*QUANT, "folder").startswith("folder/a.npz: has no array 'labels'")


def broken_files() -> None:
    Path("text.npz").write_text("no archive")
    Path("empty.npz").write_bytes(b"")
    np.savez_compressed("whole.npz", x=X)
    whole = Path("whole.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[:3000])
    Path("damaged.npz").write_bytes(whole[:400] + b"\xff" * 60 + whole[460:])
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile("nothing.npz", "w"):
        pass
    np.save("array.npy", X)
    Path("folder").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.npz", "no such file; give an .npz file, a folder of them, or module:function"),
        ("text.npz", "is not an .npz file"),
        ("empty.npz", "is not an .npz file"),
        ("cut.npz", "is not an .npz file"),
        ("damaged.npz", "is not an .npz file"),
        ("other.npz", "is not an .npz file"),
        ("array.npy", "is not an .npz file"),
        ("net.onnx", "is not an .npz file"),
        ("nothing.npz", "holds no arrays"),
        ("folder", "holds no .npz files"),
    ],
)
@pytest.mark.parametrize("option", ["--data", "--test-data"])
def test_files_that_hold_no_samples_are_named(command: Command, name: str, message: str, option: str) -> None:
    broken_files()
    assert command.fails("net.onnx", "-p", "fold", option, name).startswith(f"{name}: {message}")


# -- functions -----------------------------------------------------------------------------------------------

FUNCTIONS = """
import numpy as np

def feed(value=1.0): return {"x": np.full((1, 3, 8, 8), value, np.float32)}
def good():
    for value in range(12): yield feed(value)
def labelled():
    for value in range(12): yield feed(value), value % 5
def raises():
    yield feed()
    raise RuntimeError("first line\\nsecond line.")
def exits(): raise SystemExit(0)
def exits_later():
    yield feed()
    raise SystemExit(0)
def empty(): return iter(())
def none(): return None
def number(): yield 3
def text(): yield {"x": "abc"}
def nothing(): yield {"x": None}
def ragged(): yield {"x": [[1, 2], [3]]}
def unnamed(): yield {1: 2}
def rank(): yield {"x": np.ones((1, 3, 8), np.float32)}
def takes(argument): yield feed()
constant = 3
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("feeds:absent", "feeds has no function 'absent'"),
        ("feeds:constant", "feeds has no function 'constant'"),
        ("feeds:", "names no function; give module:function"),
        (":good", "names no function; give module:function"),
        ("absent:good", "cannot import absent (ModuleNotFoundError"),
        ("absent.py:good", "there is no file absent.py"),
        ("broken:good", "cannot import broken (SyntaxError"),
        ("leaves:good", "cannot import leaves (SystemExit"),
        ("feeds:raises", "failed with RuntimeError: first line second line; correct the function"),
        ("feeds:exits", "failed with SystemExit: 0; correct the function"),
        ("feeds:exits_later", "failed with SystemExit: 0; correct the function"),
        ("feeds:empty", "holds no samples"),
        ("feeds:none", "failed with TypeError: 'NoneType' object is not iterable"),
        ("feeds:takes", "failed with TypeError: takes() missing 1 required positional argument"),
        ("feeds:number", "yields int; yield a dict from input names to arrays"),
        ("feeds:text", "feed 0: array 'x' is <U3 where the model takes float32"),
        ("feeds:nothing", "feed 0: array 'x' is object where the model takes float32"),
        ("feeds:ragged", "failed with ValueError"),
        ("feeds:unnamed", "feed 0: has no array for input 'x'"),
        ("feeds:rank", "feed 0: array 'x' has shape (1, 3, 8)"),
    ],
)
def test_functions_that_give_no_samples_are_explained(command: Command, function: str, message: str) -> None:
    module(command, "feeds", FUNCTIONS)
    module(command, "broken", "def good(:\n")
    module(command, "leaves", "raise SystemExit(0)\n")
    error = command.fails(*QUANT, function)
    assert error.startswith(f"{function}: ")
    assert message in error


def module(command: Command, name: str, text: str) -> None:
    (command.folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize("source", ["samples_here:labelled", "samples_here.py:labelled"])
def test_a_function_of_the_current_folder_gives_samples(command: Command, source: str) -> None:
    module(command, "samples_here", FUNCTIONS)
    report = command.report(*QUANT, source, "--metric", "top1")
    assert report["data"]["calibration"]["source"] == source
    assert (report["data"]["calibration"]["samples"], report["data"]["evaluation"]["samples"]) == (9, 3)
    assert report["data"]["held_out"] is True
    assert report["result"]["metric"]["name"] == "top1"


def test_a_folder_of_feeds_of_varying_shape_gives_samples(command: Command) -> None:
    Path("folder").mkdir()
    for index in range(10):
        np.savez(f"folder/{index}.npz", x=X[: 1 + index % 3], labels=np.zeros(1 + index % 3, int))
    report = command.report(*QUANT, "folder", "--metric", "top1")
    assert report["data"]["calibration"]["samples"] + report["data"]["evaluation"]["samples"] == 10
    assert [entry["status"] for entry in report["passes"]] == ["applied", "applied"]


def test_a_quarter_of_the_samples_is_held_out_unless_others_are_given(command: Command) -> None:
    report = command.report(*QUANT, "data.npz")
    assert (report["data"]["calibration"]["samples"], report["data"]["evaluation"]["samples"]) == (12, 4)
    np.savez("test.npz", x=X[:7])
    report = command.report(*QUANT, "data.npz", "--test-data", "test.npz")
    assert (report["data"]["calibration"]["samples"], report["data"]["evaluation"]["samples"]) == (16, 7)
    assert report["warnings"] == []


def test_too_few_samples_serve_both_purposes_with_a_warning(command: Command) -> None:
    np.savez("few.npz", x=X[:3])
    outcome = command.succeeds(*QUANT, "few.npz")
    assert outcome.err == (
        "onnxcomp: warning: evaluated on the calibration samples, which are too few to hold some out\n"
    )


# -- metrics -------------------------------------------------------------------------------------------------

METRICS = """
import numpy as np

def joined(outputs): return np.concatenate([next(iter(batch.values())) for batch in outputs])
def share(outputs, labels): return float(np.mean(joined(outputs).argmax(1) == labels))
def loss(outputs, labels): return float(np.mean(joined(outputs) ** 2))
loss.higher_is_better = False
def shouts(outputs, labels):
    print("SHOUT")
    return 1.0
def raises(outputs, labels): raise ValueError("not today")
def exits(outputs, labels): raise SystemExit(0)
def takes(): return 1.0
def text(outputs, labels): return "good"
def none(outputs, labels): return None
def array(outputs, labels): return np.zeros(3)
def nan(outputs, labels): return float("nan")
def infinite(outputs, labels): return float("inf")
"""


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("top_one", "unknown metric 'top_one'; the metrics are top1, top5, agreement"),
        ("metrics:absent", "metrics has no function 'absent'"),
        ("metrics:raises", "metric metrics:raises failed with ValueError: not today"),
        ("metrics:exits", "metric metrics:exits failed with SystemExit: 0"),
        ("metrics:takes", "metric metrics:takes failed with TypeError"),
        ("metrics:text", "metric metrics:text returns str 'good', which is no number; let it return a float"),
        ("metrics:none", "metric metrics:none returns NoneType None, which is no number"),
        ("metrics:array", "metric metrics:array returns ndarray"),
        ("metrics:nan", "metric metrics:nan is nan for the original; correct it, or its data"),
        ("metrics:infinite", "metric metrics:infinite is inf for the original"),
    ],
)
def test_metrics_that_give_no_number_are_explained(command: Command, metric: str, message: str) -> None:
    module(command, "metrics", METRICS)
    assert message in command.fails(*QUANT, "data.npz", "--metric", metric)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "metric top1 needs labels; add an array 'labels' to the data"),
        (np.full(16, 5), "top1 needs labels from 0 to 4, but they go from 5 to 5"),
        (np.full(16, -1), "top1 needs labels from 0 to 4, but they go from -1 to -1"),
        (np.zeros(16), "top1 needs integer labels, but they are float64"),
        (np.full(16, "cat"), "top1 needs integer labels, but they are <U3"),
        (np.zeros((16, 2), int), "top1 needs class scores and one integer label for each"),
    ],
)
def test_labels_that_are_no_classes_are_explained(command: Command, labels: Any, message: str) -> None:
    np.savez("bad.npz", x=X, **({} if labels is None else {"labels": labels}))
    assert message in command.fails(*QUANT, "bad.npz", "--metric", "top1")


@pytest.mark.parametrize("name", ["top1", "top5", "agreement", "sqnr", "cosine", "max_error"])
def test_the_metric_that_is_reported_is_that_of_the_file_that_is_written(command: Command, name: str) -> None:
    np.savez("test.npz", x=X, labels=np.arange(16) % 5)
    metric = command.report(*QUANT, "data.npz", "--test-data", "test.npz", "--metric", name)["result"]["metric"]
    original, small = Model.load("net.onnx"), Model.load("net.compressed.onnx")
    again = compare(original, small, Dataset.open("test.npz", original), metric_named(name))
    assert (metric["name"], metric["samples"]) == (name, 16)
    assert metric["compressed"] == pytest.approx(again.metric_compressed)
    assert metric["original"] == (None if name == "sqnr" else pytest.approx(again.metric_original))


def test_a_function_is_a_metric_and_may_be_better_when_lower(command: Command) -> None:
    module(command, "own_metrics", METRICS)
    np.savez("test.npz", x=X, labels=np.arange(16) % 5)
    both = ("data.npz", "--test-data", "test.npz", "--metric")
    own = command.report(*QUANT, *both, "own_metrics:share")["result"]["metric"]
    top1 = command.report(*QUANT, *both, "top1")["result"]["metric"]
    assert (own["original"], own["compressed"]) == (top1["original"], top1["compressed"])
    assert own["higher_is_better"] is True
    assert command.report(*QUANT, *both, "own_metrics.py:loss")["result"]["metric"]["higher_is_better"] is False


def test_what_a_metric_prints_does_not_mix_with_a_report_on_stdout(command: Command) -> None:
    module(command, "loud", METRICS)
    outcome = command.succeeds(*QUANT, "data.npz", "--metric", "loud:shouts", "--report", "-")
    assert outcome.json()["result"]["metric"]["name"] == "loud:shouts"
    assert "SHOUT" in outcome.err
