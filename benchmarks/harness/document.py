"""RESULTS.md as a whole, from the JSON files beside it."""

from __future__ import annotations

from pathlib import Path

from harness.collection import Collection
from harness.prune_results import PruneResults
from harness.quant_results import QuantResults
from harness.recover_results import RecoverResults
from harness.render import render
from harness.render_prune import prune_sections
from harness.render_quant import quant_sections
from harness.render_recover import recover_sections
from harness.render_reorder import reorder_sections
from harness.render_size import size_sections
from harness.reorder_results import ReorderResults
from harness.results import Results
from harness.robustness import robustness
from harness.size_results import SizeResults

__all__ = ["write_document"]

COLLECTION = Path(__file__).resolve().parents[1] / "COLLECTION.json"


def write_document(path: Path, results: Results | None = None) -> None:
    """Write the Markdown; ``results`` are those of the JSON of the same name when they are not given."""
    results = Results.read(path.with_suffix(".json")) if results is None else results
    parts = [
        render(results, Collection.read(COLLECTION)) + robustness(path.parent),
        quant_sections(QuantResults.read(path.parent / "QUANT.json")),
        prune_sections(PruneResults.read(path.parent / "PRUNE.json")),
        recover_sections(RecoverResults.read(path.parent / "RECOVER.json")),
        reorder_sections(ReorderResults.read(path.parent / "REORDER.json")),
        size_sections(SizeResults.read(path.parent / "SIZE.json")),
    ]
    path.write_text("\n".join(filter(None, parts)), encoding="utf-8")
