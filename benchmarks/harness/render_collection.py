"""What became of the collection, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from harness.collection import Collection, Count

__all__ = ["collection_section"]

_OUTCOMES = ("transformed", "left alone", "undone", "refused", "not runnable", "failed")
_SHOWN = 12  # of the reasons; the JSON has them all


def collection_section(collection: Collection) -> str:
    """Facts, a table of outcomes, the commonest reasons and sentences, and every failure."""
    environment = collection.environment
    wanted = ("python", "onnxcomp", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    versions = ", ".join(f"{name} {environment.versions[name]}" for name in wanted)
    models = ", ".join(f"{count:,} {kind}" for kind, count in collection.models.items())
    facts = [
        f"- {collection.date}, `{collection.command}`, {collection.seconds / 60:.1f} minutes with "
        f"{collection.processes} processes",
        f"- {environment.cpu}, {environment.cores} cores; {environment.platform}",
        f"- {versions}",
        f"- {sum(collection.models.values()):,} models: {models}",
    ]
    parts = ["## The backend test collection of onnx", "\n".join(facts), _table(collection)]
    parts += [
        _listed("Why weighted layers were left alone", collection.reasons),
        _listed("Passes that were undone because they lost too much, or gave up", collection.undone),
        _listed("Refused", collection.refused),
        _listed("Not runnable", collection.not_runnable),
        _failures(collection),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(collection: Collection) -> str:
    lines = [f"| check | {' | '.join(_OUTCOMES)} |", f"| --- |{' ---: |' * len(_OUTCOMES)}"]
    for check, counts in collection.outcomes.items():
        lines.append(f"| {check} | {' | '.join(f'{counts.get(outcome, 0):,}' for outcome in _OUTCOMES)} |")
    return "\n".join(lines)


def _listed(title: str, counts: Sequence[Count]) -> str:
    """The commonest, each with the number of models."""
    if not counts:
        return ""
    lines = [f"- {count.models:,} x {count.check}: {_escaped(count.text)}" for count in counts[:_SHOWN]]
    if rest := counts[_SHOWN:]:
        lines.append(f"- {sum(count.models for count in rest):,} x {len(rest)} other kinds, in the JSON")
    return f"{title} (models):\n\n" + "\n".join(lines)


def _failures(collection: Collection) -> str:
    if not collection.failures:
        return "No model came out wrong."
    lines = [f"- {item['model']}, {item['check']}: {_escaped(item['detail'])}" for item in collection.failures]
    return "**Came out wrong:**\n\n" + "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*")
