"""Work spread over processes that may hang or die: that costs the item they were at, and nothing else."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

__all__ = ["Done", "spread"]

_POLL = 1.0  # seconds between looks at the clock


@dataclass(frozen=True)
class Done:
    """One item: what came of it, or why nothing did."""

    item: Any
    value: Any = None
    failure: str | None = None


def spread(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    processes: int,
    seconds: float,
    prepare: Callable[[], Any] | None = None,
    preparing: float = 60.0,
) -> Iterator[Done]:
    """``function`` of every item, as they get done.

    Args:
        function: of a module that can be imported; what it raises is a failure of the item.
        items: anything that can be pickled.
        processes: at work at a time.
        seconds: for one item; a process that takes longer is killed and replaced.
        prepare: called in each process before its first item.
        preparing: further seconds for the first item of a process, because of that.
    """
    queue = list(items)[::-1]
    workers = [_Worker(function, prepare, preparing) for _ in range(min(processes, len(queue)))]
    try:
        while queue or any(worker.busy for worker in workers):
            for index, worker in enumerate(workers):
                if queue and not worker.busy:
                    if not worker.alive:
                        workers[index] = worker = _Worker(function, prepare, preparing)
                    worker.give(queue.pop())
            wait([worker.connection for worker in workers if worker.busy], timeout=_POLL)
            for worker in workers:
                if worker.busy and (done := worker.collect(seconds)) is not None:
                    yield done
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process and the item it is at."""

    def __init__(self, function: Callable[[Any], Any], prepare: Callable[[], Any] | None, preparing: float) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share locks with the threads of libraries
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function, prepare), daemon=True)
        self._process.start()
        theirs.close()  # so that its death shows as an end of the stream
        self._item: Any = None
        self._since = 0.0
        self._extra = preparing
        self.busy = False

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def give(self, item: Any) -> None:
        self._item, self._since, self.busy = item, time.monotonic(), True
        self.connection.send(item)

    def collect(self, seconds: float) -> Done | None:
        """What came of the item, when that is known."""
        try:
            if self.connection.poll():
                value, failure = self.connection.recv()
                self.busy, self._extra = False, 0.0
                return Done(self._item, value, failure)
        except (EOFError, ConnectionError):
            self.end()
            return Done(self._item, failure=_how_it_ended(self._process.exitcode))
        if time.monotonic() - self._since > seconds + self._extra:
            self.end()
            return Done(self._item, failure=f"stopped after {seconds:g} s")
        return None

    def end(self) -> None:
        """Kill it; harmless where it has ended."""
        self.busy = False
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, function: Callable[[Any], Any], prepare: Callable[[], Any] | None) -> None:
    if prepare is not None:
        prepare()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            result = function(item), None
        except Exception as error:
            result = None, f"{type(error).__name__}: {error}"
        try:
            connection.send(result)
        except BrokenPipeError:  # nobody waits for it any more
            return


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
