"""Run a command as a process of its own, and say how long it took and how much memory it held."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Limits", "Outcome", "on_cores", "run"]

_SAMPLING_S = 0.1
_LONGEST_REASON = 110


@dataclass(frozen=True)
class Limits:
    """What a process may take before it is stopped.

    Attributes:
        seconds: of wall clock.
        bytes: of memory, with its children.
    """

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Outcome:
    """How a process went.

    Attributes:
        code: its exit code; negative for a signal.
        seconds: wall clock from start to exit.
        peak_bytes: most memory that it held at once.
        output: what it wrote to stdout.
        failure: why it failed, in a few words; None when it did not.
    """

    code: int
    seconds: float
    peak_bytes: int
    output: str
    failure: str | None


def run(command: Sequence[str], log: Path, limits: Limits, cwd: Path | None = None) -> Outcome:
    """Run a command to its end, or until it exceeds a limit; stderr goes to ``log``, stdout beside it.

    Linux counts in a process's peak what the caller held when it started it, so the caller must be small.
    """
    printed = log.with_suffix(".out")
    with log.open("wb") as errors, printed.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, cwd=cwd, start_new_session=True
        )
        stopped: list[str] = []
        done = threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, limits, done, stopped), daemon=True)
        watch.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            done.set()
        seconds = time.perf_counter() - start
        watch.join()
    code = process.returncode = os.waitstatus_to_exitcode(status)
    failure = None
    if code:
        failure = stopped[0] if stopped else reason(log.read_text(errors="replace"), code)
    return Outcome(code, seconds, usage.ru_maxrss * 1024, printed.read_text(errors="replace"), failure)


def on_cores(count: int) -> list[str]:
    """What to begin a command with so that it runs on so many cores, where the machine has more."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", ",".join(map(str, cores[:count]))] if len(cores) > count else []


def reason(errors: str, code: int) -> str:
    """The last line of what a failed process wrote to stderr, or the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return f"exit code {code}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1])
    text = re.sub(r"^\w+(\.\w+)+(?=: )", lambda name: name.group().rpartition(".")[2], text)
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def _watch(pid: int, limits: Limits, done: threading.Event, stopped: list[str]) -> None:
    """Stop the process group when it exceeds a limit; ``stopped`` then holds the reason."""
    end = time.monotonic() + limits.seconds
    while not done.wait(_SAMPLING_S):
        if time.monotonic() > end:
            stopped.append(f"stopped after {limits.seconds:g} s")
        elif _memory(pid) > limits.bytes:
            stopped.append(f"stopped at {limits.bytes / 1e9:g} GB of memory")
        else:
            continue
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            stopped.clear()
        return


def _memory(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.Error:  # it has just ended
        pass
    return total
