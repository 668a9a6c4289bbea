"""Files are written whole or not at all, and what dead processes left goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from onnxcomp import files
from onnxcomp.errors import InputError
from onnxcomp.files import held, open_atomic, remove_unheld, scratch_folder, write_atomic

pytestmark = pytest.mark.filterwarnings("error")

DIES_WHILE_WRITING = """
import os, signal, sys
from onnxcomp.files import open_atomic
with open_atomic(sys.argv[1]) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
DIES_IN_A_SCRATCH_FOLDER = """
import os, signal
from onnxcomp.files import scratch_folder
with scratch_folder() as folder:
    (folder / "large").write_bytes(b"data")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_and_die(program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_a_stream_becomes_the_file_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with open_atomic(path) as stream:
        stream.write(b"ne")
        stream.flush()
        assert path.read_bytes() == b"old"
        stream.write(b"w")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), open_atomic(path) as stream:
        stream.write(b"ne" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.onnx"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has such a device")
def test_a_full_disk_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"^/dev/full: cannot be written: No space left on device$"):
        write_atomic("/dev/full", b"new" * 10_000)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    run_and_die(DIES_WHILE_WRITING, path)
    assert len(os.listdir(tmp_path)) == 2  # a killed process cannot clean up
    assert path.read_bytes() == b"old"
    write_atomic(tmp_path / "other.json", b"new")
    assert sorted(os.listdir(tmp_path)) == ["net.onnx", "other.json"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with open_atomic(path) as stream:
        stream.write(b"slow")
        writer = multiprocessing.get_context("spawn").Process(target=write_atomic, args=(tmp_path / "other", b"fast"))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
    assert path.read_bytes() == b"slow"
    assert (tmp_path / "other").read_bytes() == b"fast"


def test_many_writers_of_one_file_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    failures: list[BaseException] = []

    def write(byte: bytes) -> None:
        try:
            for _ in range(30):
                write_atomic(path, byte * 1000)
                assert len(set(path.read_bytes())) == 1
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(bytes([65 + index]),)) for index in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_files_of_other_programs_stay(tmp_path: Path) -> None:
    names = {"notes.tmp", ".onnxcomp-notes", "onnxcomp-1.tmp"}
    for name in names:
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / ".onnxcomp-pipe.tmp")  # opened without care, it would keep the writer waiting
    (tmp_path / ".onnxcomp-link.tmp").symlink_to(tmp_path / "notes.tmp")
    write_atomic(tmp_path / "net.onnx", b"new")
    assert names < set(os.listdir(tmp_path))


def test_a_scratch_folder_that_another_process_took_for_a_stray_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = os.open
    taken: list[str] = []

    def open_after_the_other(path: str, flags: int, *more: int, **others: int) -> int:
        if not taken and os.path.isdir(path):
            taken.append(str(path))
            os.rmdir(path)
        return opened(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", open_after_the_other)
    with scratch_folder() as folder:
        assert folder.is_dir()
        assert taken
        assert str(folder) not in taken
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_goes_and_takes_those_of_killed_processes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    run_and_die(DIES_IN_A_SCRATCH_FOLDER)
    (left,) = tmp_path.iterdir()
    with scratch_folder() as folder:
        (folder / "profile.json").touch()
        assert not left.exists()
        with scratch_folder() as second:
            assert sorted(tmp_path.iterdir()) == sorted([folder, second])
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_locked_a_scratch_folder_stays_while_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which removes no file that is open."""
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files, "fcntl", None)
    unlink, opened = os.unlink, set[Path]()

    def unlink_on_windows(path: str | Path, **options: int) -> None:
        if Path(path) in opened:
            raise PermissionError(path)
        unlink(path, **options)

    monkeypatch.setattr(files.os, "unlink", unlink_on_windows)
    with scratch_folder() as living:
        opened.add(living.with_suffix(".held"))
        (living / "weights").write_bytes(b"in use")
        with scratch_folder() as second:
            assert (living / "weights").read_bytes() == b"in use"
            assert second != living
        opened.clear()
    assert not os.listdir(tmp_path)
    (tmp_path / "onnxcomp-left.tmp/deep").mkdir(parents=True)
    (tmp_path / "onnxcomp-left.held").write_bytes(b"")
    with scratch_folder() as last:
        assert sorted(os.listdir(tmp_path)) == [last.with_suffix(".held").name, last.name]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize(("place", "message"), [("gone/net.onnx", "does not exist"), (".", "is a folder")])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_atomic(tmp_path / place, b"new")
    assert os.listdir(tmp_path) == []


def test_permissions_of_the_file_that_is_replaced_stay(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomic(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_file_behind_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "net.onnx", tmp_path / "net.onnx"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".onnx")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    write_atomic(Path(os.devnull), b"new")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(sys.platform == "win32", reason="there a file that is open is not removed")
def test_a_file_that_is_held_or_needed_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    with held(path) as there:
        assert there
        remove_unheld(path, lambda: False)
        assert path.exists()
    remove_unheld(path, lambda: True)
    assert path.exists()
    remove_unheld(path, lambda: False)
    assert not path.exists()
    with held(path) as there:
        assert not there
