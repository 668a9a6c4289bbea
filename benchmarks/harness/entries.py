"""What is compared: onnxcomp with three pipelines, and the peers."""

from __future__ import annotations

import json
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from harness.peers import PEERS
from harness.results import Row
from harness.zoo import ZooModel

__all__ = ["ENTRIES", "FULL", "Entry"]

FULL = "onnxcomp-prune-quant-reorder"
PIPELINES = {FULL: "prune,quant,reorder", "onnxcomp-quant": "quant", "onnxcomp-prune": "prune"}


@dataclass(frozen=True)
class Entry:
    """A tool with a setting.

    Attributes:
        name: identifies it.
        tool, setting: what the table says.
        pipeline: of onnxcomp; None for a peer.
    """

    name: str
    tool: str
    setting: str
    pipeline: str | None = None

    def command(self, model: ZooModel, output: Path) -> list[str]:
        """The command line that writes the compressed model to ``output``."""
        if self.pipeline is None:
            return [sys.executable, "-m", "harness.peers", self.name, str(model.path), str(model.data), str(output)]
        program = str(Path(sysconfig.get_path("scripts"), "onnxcomp"))
        made = ["-p", self.pipeline, "--data", str(model.data), "-o", str(output), "--report", str(report_of(output))]
        return [program, str(model.path), *made]

    def row(self) -> Row:
        """Its row, with nothing measured yet."""
        return Row(name=self.name, tool=self.tool, setting=self.setting)


def report_of(output: Path) -> Path:
    """Where onnxcomp's report goes: outside of the output's folder, whose size is the model's."""
    return output.parent.with_suffix(".report.json")


def add_report(row: Row, output: Path) -> None:
    """Take over what onnxcomp says about its own passes."""
    path = report_of(output)
    if path.is_file():
        passes = json.loads(path.read_text(encoding="utf-8"))["passes"]
        row.passes = len(passes)
        row.verified = sum(
            entry["verification"]["status"] == "passed" and entry["status"] != "rolled back" for entry in passes
        )


ENTRIES = {
    entry.name: entry
    for entry in (
        *(Entry(name, "onnxcomp", f"-p {pipeline}", pipeline) for name, pipeline in PIPELINES.items()),
        *(Entry(name, peer.tool, peer.setting) for name, peer in PEERS.items()),
    )
}
