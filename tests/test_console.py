"""What terminals of different widths show: nothing is cut off, and what is meant for 80 columns fits them."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import onnx
import pytest

from onnxcomp.model import Model
from onnxcomp.report.console import Page, progress_bars
from onnxcomp.report.inspection import inspect, print_inspection
from onnxcomp.report.table import count, size, table
from tests.command import Command
from tests.generate import Net

LONG = "/".join(["", *["encoder"] * 20])


class Terminal(io.StringIO):
    """A stream that says it is a terminal; ``text`` is what is shown, without colours."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    def of_width(columns: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return Terminal()

    return of_width


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_results_and_inspection_fit_the_terminal(
    command: Command, terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    screen = terminal(columns)
    monkeypatch.setattr(sys, "stdout", screen)
    command("net.onnx", "-p", "prune(align=4),quant", "--data", "data.npz")
    command("net.onnx")
    command("--passes", "prune")
    lines = screen.text.splitlines()
    assert len(lines) > 60
    assert max(map(len, lines)) <= columns
    assert "…" not in screen.text


@pytest.mark.parametrize("columns", [40, 80])
def test_long_names_are_shown_whole(
    command: Command, terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    net = Net(0, (3, 8, 8))
    net.conv("x", 8)
    net.nodes[-1].name = LONG
    onnx.save(net.proto(), "long.onnx")
    screen = terminal(columns)
    monkeypatch.setattr(sys, "stdout", screen)
    command("long.onnx")
    rows = screen.text.partition("Weights by layer\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert "".join(row.split()[0] for row in rows) == LONG


def test_a_file_gets_lines_that_are_not_wrapped() -> None:
    stream = io.StringIO()
    page = Page(stream)
    page.line("word " * 100 + "end")
    rows = table("name", "value")
    rows.add_row("x" * 300, "1")
    page.table(rows)
    text, heading, _, row = stream.getvalue().splitlines()
    assert text == "word " * 100 + "end"
    assert heading == "name".ljust(300) + "  value"
    assert row == "x" * 300 + "      1"


def test_file_names_are_not_broken_on_a_narrow_terminal(terminal: Callable[[int], Terminal]) -> None:
    screen = terminal(40)
    Page(screen).line(f"written to {LONG}.onnx")
    assert f"{LONG}.onnx" in screen.text


def test_bars_show_the_loop_and_leave_nothing_behind(
    terminal: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(80)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bars(quiet=False) as progress:
        for _ in progress(range(3), "calibrating"):
            pass
    assert "calibrating" in screen.text
    screen = terminal(80)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bars(quiet=True) as progress:
        assert list(progress(range(3), "calibrating")) == [0, 1, 2]
    assert screen.text == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_499, "999 kB"), (999_500, "1.00 MB")],
)
def test_sizes_have_three_figures(number: int, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (9_994, "9.99 k"), (9_995, "10.0 k"), (103_210_000, "103 M")],
)
def test_counts_have_three_figures(number: int | None, text: str) -> None:
    assert count(number) == text


def test_a_model_in_memory_is_inspected(terminal: Callable[[int], Terminal]) -> None:
    net = Net(0, (3, 8, 8))
    net.conv("x", 8)
    screen = terminal(80)
    print_inspection(Page(screen), inspect(Model.from_proto(net.proto())))
    assert "224 parameters" in screen.text
    assert "None" not in screen.text
