"""Where text for people goes: results to stdout, progress to stderr and only when somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import IO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from onnxcomp.progress import Progress, silent

__all__ = ["console", "progress_bars"]

T = TypeVar("T")

_WIDE = 160  # columns where there is no terminal: nothing is cut off there


def console(stream: IO[str] | None = None) -> Console:
    """A console for a stream (stdout by default): colours only on a terminal, no markup in names."""
    stream = sys.stdout if stream is None else stream
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Progress of the library's loops as bars on stderr; silent when ``quiet`` or when it is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console(sys.stderr), transient=True) as bars:

        def show(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
            if total is None and isinstance(items, Sized):
                total = len(items)
            task = bars.add_task(description, total=total)
            try:
                for item in items:
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

        yield show
