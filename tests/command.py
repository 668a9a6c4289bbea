"""Runs the command in the test's process, in a folder of its own, and looks at what it leaves behind."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxcomp import cli


@dataclass(frozen=True)
class Outcome:
    """What a run gave: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """``command("net.onnx", "-p", "quant")`` runs it; ``fails`` runs it and checks that it fails well.

    Args:
        folder: where it runs.
        capture: of what it prints.
    """

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture

    def __call__(self, *arguments: object) -> Outcome:
        self._capture.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        printed = self._capture.readouterr()
        return Outcome(code, printed.out, printed.err)

    def succeeds(self, *arguments: object) -> Outcome:
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err
        assert "error" not in outcome.err
        return outcome

    def fails(self, *arguments: object, code: int = 2) -> str:
        """The sentence that it failed with; no file came, went or changed.

        Nothing else was printed, except the order of the passes when they had begun.
        """
        before = self.files()
        outcome = self(*arguments)
        assert self.files() == before
        assert outcome.code == code, outcome
        assert not outcome.out or re.fullmatch(r"passes: .*\n", outcome.out), outcome
        return sentence(outcome.err)

    def files(self) -> dict[str, bytes]:
        """Every file below the folder with its bytes."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found}

    def report(self, *arguments: object) -> dict[str, Any]:
        """The report of a run that succeeds."""
        self.succeeds(*arguments, "--report", "report.json")
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report


def sentence(stderr: str) -> str:
    """The one line of an error, without its prefix."""
    prefix = "onnxcomp: error: "
    assert stderr.startswith(prefix), stderr
    assert stderr.endswith("\n"), stderr
    text = stderr.removeprefix(prefix).removesuffix("\n")
    assert "\n" not in text, stderr
    assert "Traceback" not in text
    assert "defect of onnxcomp" not in text
    return text
