"""Run the command on a case in a process of its own, and judge how it ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzzing.cases import Case
from fuzzing.hurry import hurry

__all__ = ["Limits", "Verdict", "try_case"]

_POLL_S = 0.01
_DOCUMENTED = {0, 2, 3}
_GOOD = ("refused", "verified", "undone")


@dataclass(frozen=True)
class Limits:
    """What a case may take.

    Attributes:
        seconds: of wall clock; then it is killed.
        bytes: of memory that it may hold.
        address_space: bytes that the system gives it, so that no case takes the machine.
    """

    seconds: float = 10.0
    bytes: int = 2 * 2**30
    address_space: int = 12 * 2**30


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Attributes:
        outcome: ``refused`` with a sentence, ``verified``, ``undone`` (a pass failed and the model without it was
            written), or what went wrong: ``crash``, ``hang``, ``memory``, ``traceback``, ``defect``, ``unclear``,
            ``left files``, ``bad output``, ``exit code``.
        detail: the sentence, or what is known of the failure.
        seconds: wall clock.
        peak: bytes of memory held at once.
    """

    case: Case
    outcome: str
    detail: str
    seconds: float
    peak: int

    @property
    def good(self) -> bool:
        return self.outcome in _GOOD


@dataclass(frozen=True)
class _Ending:
    status: int
    seconds: float
    peak: int
    out: str
    err: str


def try_case(case: Case, limits: Limits, fork: bool = True) -> Verdict:
    """Write the case's file to a folder of its own, run the command on it, and look at what it leaves.

    Args:
        case: which.
        limits: of time and memory.
        fork: run in a copy of this process, which has imported everything, with timed runs cut short; else as the
            user does, which takes seconds longer.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder, log = Path(place) / "case", Path(place) / "log"
        folder.mkdir()
        log.mkdir()
        case.write(folder)
        before = _files(folder)
        command = ["model.onnx"] if case.pipeline is None else ["model.onnx", "-p", case.pipeline]
        ending = (_forked if fork else _spawned)(folder, log, command, limits)
        outcome, detail = _judge(ending, limits, before, folder)
        if outcome in ("verified", "undone") and case.pipeline is not None and not _loads(folder, log):
            outcome, detail = "bad output", "ONNX Runtime does not load what was written"
        return Verdict(case, outcome, detail, ending.seconds, ending.peak)


def _judge(ending: _Ending, limits: Limits, before: set[str], folder: Path) -> tuple[str, str]:
    lines = ending.err.splitlines()
    last = lines[-1] if lines else ""
    if ending.seconds > limits.seconds:
        return "hang", f"over {limits.seconds:g} s"
    if os.WIFSIGNALED(ending.status):
        return "crash", f"{signal.Signals(os.WTERMSIG(ending.status)).name} {last[-200:]}"
    if ending.peak > limits.bytes:
        return "memory", f"{ending.peak / 2**30:.1f} GB {last[-200:]}"
    code = os.waitstatus_to_exitcode(ending.status)
    if "Traceback" in ending.err + ending.out:
        return "traceback", last
    if "defect of onnxcomp" in ending.err or "out of memory" in ending.err:
        return "defect", last
    if code not in _DOCUMENTED:
        return "exit code", f"{code} {last}"
    left = _files(folder) - before
    written = any(name.endswith(".compressed.onnx") for name in left)
    if any(name.endswith(".tmp") for name in left) or (code == 2 and left):
        return "left files", ", ".join(sorted(left))
    if code == 0:
        return "verified", ""
    if code == 3:
        return ("undone", last) if written else ("unclear", f"exit code 3 and no output: {last}")
    clear = len(lines) == 1 and last.startswith("onnxcomp: error: ") and last.isprintable() and len(last) < 1200
    return ("refused" if clear else "unclear"), ending.err.strip()


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# -- processes -------------------------------------------------------------------------------------------------


def _forked(folder: Path, log: Path, command: Sequence[str], limits: Limits) -> _Ending:
    def run() -> int:
        from onnxcomp import cli

        hurry()
        return cli.run([*command, "-q"] if len(command) > 1 else command)

    return _child(run, folder, log, limits)


def _spawned(folder: Path, log: Path, command: Sequence[str], limits: Limits) -> _Ending:
    def run() -> int:
        os.execv(sys.executable, [sys.executable, "-c", "from onnxcomp.cli import main; main()", *command])

    return _child(run, folder, log, limits)


def _loads(folder: Path, log: Path) -> bool:
    def run() -> int:
        import onnxruntime

        (path,) = folder.glob("*.compressed.onnx")
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return 0

    return _child(run, folder, log, Limits()).status == 0


def _child(run: Callable[[], int], folder: Path, log: Path, limits: Limits) -> _Ending:
    """Run a function in a forked process with limits, and collect what it prints."""
    start = time.perf_counter()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (limits.address_space, limits.address_space))
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
            code = run()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    while True:
        found, status, usage = os.wait4(process, os.WNOHANG)
        seconds = time.perf_counter() - start
        if found:
            break
        if seconds > limits.seconds:
            os.kill(process, signal.SIGKILL)
            _, status, usage = os.wait4(process, 0)
            break
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it started
    out, err = ((log / name).read_text(errors="replace") for name in ("out", "err"))
    return _Ending(status, seconds, usage.ru_maxrss * 1024, out, err)
