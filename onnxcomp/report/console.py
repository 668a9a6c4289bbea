"""Where text for people goes: results to stdout, progress to stderr and only when somebody watches."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import IO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from onnxcomp.printable import printable
from onnxcomp.progress import Progress, silent

__all__ = ["Page", "progress_bars"]

T = TypeVar("T")

_READABLE = 100  # columns of running text
_ITEM = re.compile(r"\s*(?:\d+\.|[-*]) ")
_UNLIMITED = 100_000  # columns where there is no terminal: nothing is wrapped there


class Page:
    """Text and tables on a stream, whole at any width: lines are wrapped for a terminal and left alone for a file.

    Args:
        stream: stdout by default.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._console = _console(self._stream)

    def line(self, text: str = "", style: str | None = None) -> None:
        """Print a line; on a narrow terminal its further lines are indented. Names of files are never broken."""
        text = printable(text)
        if self._stream.isatty():
            text = _filled(text, self._console.width, len(text) - len(text.lstrip()) + 2)
        self._console.print(text, style=style, soft_wrap=True)

    def prose(self, text: str, style: str | None = None) -> None:
        """Print a paragraph or an item of a list, in lines that are pleasant to read wherever they go."""
        text = printable(text)
        marker = _ITEM.match(text)
        width = min(_READABLE, self._console.width)
        self._console.print(_filled(text, width, marker.end() if marker else 0), style=style, soft_wrap=True)

    def table(self, rows: Table, readable: bool = False) -> None:
        """Print a table; one that cannot be made to fit is left to the terminal to wrap, and loses nothing.

        Args:
            rows: the table.
            readable: it holds running text, which is wrapped wherever it goes.
        """
        least = self._console.measure(rows).minimum
        width = min(_READABLE, self._console.width) if readable else self._console.width
        with self._console.capture() as captured:
            self._console.print(rows, width=max(width, least), crop=False, no_wrap=True)
        for line in captured.get().splitlines():
            self._stream.write(line.rstrip() + "\n")


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Progress of the library's loops as bars on stderr; silent when ``quiet`` or when it is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), *times)
    with Bars(*columns, console=_console(sys.stderr), transient=True) as bars:

        def show(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
            if total is None and isinstance(items, Sized):
                total = len(items)
            task = bars.add_task(description, total=total)
            try:
                for item in items:
                    bars.update(task, description=_title(description, item))
                    yield item
                    bars.advance(task)
            finally:
                bars.remove_task(task)

        yield show


def _filled(text: str, width: int, indent: int) -> str:
    """The text in lines of ``width``, those after the first further in by ``indent``; no word is broken."""
    return textwrap.fill(
        text, max(20, width), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def _title(description: str, item: object) -> str:
    """With the item's name, where it has one: a pass does, an array does not."""
    name = getattr(item, "name", None)
    return f"{description} {name}" if isinstance(name, str) else description


def _console(stream: IO[str]) -> Console:
    """Colours only on a terminal, no markup in names."""
    width = None if stream.isatty() else _UNLIMITED
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
