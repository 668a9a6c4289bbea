"""What is written, and that nothing is lost when it cannot be: places, full disks, interruptions."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest

from onnxcomp import compress
from onnxcomp.errors import UsageError
from tests.command import Command, sentence

FOLD = ("net.onnx", "-p", "fold")
QUANT = ("net.onnx", "-p", "quant", "--data", "data.npz")


def in_a_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    # A job in the background of a shell ignores Ctrl-C, and its children inherit that.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from onnxcomp.cli import main; main()"
    settings = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([sys.executable, "-c", code, *arguments], **settings)  # type: ignore[call-overload,no-any-return]


# -- places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone/file", "gone/file: its folder gone does not exist; create it first"),
        ("folder", "folder: is a folder; give the name of a file to write"),
        ("data.npz/file", "data.npz/file: data.npz is no folder; name another place"),
        ("x" * 300, "cannot be written: File name too long; name another file"),
        ("data.npz", "data.npz: is the data, which"),
        ("net.onnx", "net.onnx: is the model, which"),
        ("./net.onnx", "net.onnx: is the model, which"),
        ("link.onnx", "link.onnx: is the model, which"),
        ("twin.onnx", "twin.onnx: is the model, which"),
    ],
)
def test_a_file_that_cannot_or_must_not_be_written_is_refused(
    command: Command, option: str, path: str, message: str
) -> None:
    Path("folder").mkdir()
    Path("link.onnx").symlink_to("net.onnx")
    os.link("net.onnx", "twin.onnx")
    assert message in command.fails(*QUANT, option, path)
    if option == "--report":
        assert message in command.fails("net.onnx", "--data", "data.npz", option, path)


@pytest.mark.parametrize("option", ["-o", "--report"])
def test_files_that_are_read_by_the_way_are_not_replaced(command: Command, option: str) -> None:
    model = onnx.load("net.onnx")
    onnx.save(model, "apart.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    Path("judge.py").write_text("def score(outputs, labels):\n    return 1.0\n")
    Path("folder").mkdir()
    Path("data.npz").rename("folder/0.npz")
    run = ("apart.onnx", "-p", "quant", "--data", "folder", "--metric", "judge.py:score", option)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert "weights.bin: is the model's external data, which" in command.fails(*run, "weights.bin")
    assert "judge.py: is the metric, which" in command.fails(*run, "judge.py")
    assert "folder/0.npz: is the data, which" in command.fails(*run, "folder/0.npz")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    with pytest.raises(UsageError, match=r"weights\.bin: is the model's external data"):
        compress("apart.onnx", "fold", output="weights.bin")


def test_the_report_may_not_replace_the_result(command: Command) -> None:
    assert "small.onnx: is the result, which the report would replace" in command.fails(
        *FOLD, "-o", "small.onnx", "--report", "./small.onnx"
    )


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write everywhere")
def test_what_is_protected_from_writing_is_refused(command: Command) -> None:
    folder = Path("folder")
    folder.mkdir(mode=0o555)
    assert "may not be written" in command.fails(*FOLD, "-o", "folder/small.onnx")
    Path("old.onnx").write_bytes(b"old")
    Path("old.onnx").chmod(0o444)
    assert "old.onnx: may not be written; name another file" in command.fails(*FOLD, "-o", "old.onnx")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where even root cannot write")
def test_a_folder_that_takes_no_files_is_refused_before_the_work(command: Command) -> None:
    assert "may not be written; name another place" in command.fails(*FOLD, "-o", "/proc/small.onnx")
    assert "may not be written; name another place" in command.fails(*FOLD, "--report", "/proc/report.json")


def test_the_default_name_stands_beside_the_model(command: Command) -> None:
    folder = command.folder / "a.b"
    folder.mkdir()
    (command.folder / "net.onnx").rename(folder / "net.v2.onnx")
    outcome = command.succeeds(folder / "net.v2.onnx", "-p", "fold")
    written = folder / "net.v2.compressed.onnx"
    assert outcome.out.splitlines()[-2] == f"written to {written}"
    onnx.checker.check_model(onnx.load(written), full_check=True)


def test_an_old_file_is_replaced_with_its_permissions_and_a_link_stays(command: Command) -> None:
    Path("old.onnx").write_bytes(b"old")
    Path("old.onnx").chmod(0o640)
    Path("link.onnx").symlink_to("old.onnx")
    command.succeeds(*FOLD, "-o", "link.onnx")
    assert Path("link.onnx").is_symlink()
    assert Path("old.onnx").stat().st_mode & 0o777 == 0o640
    onnx.checker.check_model(onnx.load("old.onnx"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_not_replaced(command: Command) -> None:
    os.mkfifo("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    outcome = command(*FOLD, "-o", "pipe")
    reader.join(30)
    assert outcome.code == 0
    assert Path("pipe").is_fifo()
    onnx.checker.check_model(onnx.load_from_string(received[0]))


# -- full disks ----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_whole(command: Command) -> None:
    resource = pytest.importorskip("resource")
    Path("small.onnx").write_bytes(b"old")
    before = command.files()

    def little_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    result = in_a_process(*FOLD, "-o", "small.onnx", preexec_fn=little_space)
    assert result.returncode == 2
    assert sentence(result.stderr) == "small.onnx: cannot be written: File too large"
    assert command.files() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_the_end_leaves_the_old_file_whole(
    command: Command, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("small.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    assert command.fails(*FOLD, "-o", "small.onnx") == "small.onnx: cannot be written: No space left on device"


def test_when_the_report_finds_no_space_the_model_is_there_and_that_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    synchronize = os.fsync

    def full_the_second_time(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", full_the_second_time)
    outcome = command(*FOLD, "--report", "report.json")
    assert outcome.code == 2
    assert sentence(outcome.err) == (
        "report.json: cannot be written: No space left on device (the model was written to net.compressed.onnx)"
    )
    assert set(command.files()) == {"net.onnx", "data.npz", "net.compressed.onnx"}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("net.onnx",), (*FOLD, "--report", "-")])
def test_a_full_disk_behind_stdout_is_one_sentence(command: Command, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = in_a_process(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 2
    assert "No space left on device" in sentence(result.stderr)
    assert command.folder.exists()


def test_a_reader_that_had_enough_ends_it_quietly(command: Command) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        result = in_a_process("net.onnx", capture_output=False, stdout=closed, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (141, "")
    assert command.folder.exists()


# -- interruptions -------------------------------------------------------------------------------------------

FEEDS = """
import os, signal
import numpy as np

def interrupted():
    with open("calls", "a") as calls:
        calls.write("x")
    for value in range(12):
        if value == 0 and os.path.getsize("calls") == int(os.environ["CALLS"]):
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
        yield {"x": np.full((1, 3, 8, 8), value, np.float32)}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("calls", [1, 8])
def test_an_interruption_leaves_everything_as_it_was(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, calls: int
) -> None:
    """The samples are asked for again and again, so the signal comes before the first pass or in a later one."""
    (command.folder / "feeds.py").write_text(FEEDS)
    Path("small.onnx").write_bytes(b"old")
    before = command.files()
    monkeypatch.setenv("SIGNAL", str(int(number)))
    monkeypatch.setenv("CALLS", str(calls))
    result = in_a_process("net.onnx", "-p", "quant", "--data", "feeds:interrupted", "-o", "small.onnx")
    assert (result.returncode, result.stderr) == (130, "onnxcomp: error: interrupted; nothing was written\n")
    assert Path("calls").stat().st_size == calls
    Path("calls").unlink()
    assert command.files() == before
