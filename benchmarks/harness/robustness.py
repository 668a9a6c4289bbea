"""What ``fuzz.py``, ``kill.py`` and ``large.py`` found, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["robustness"]

_KINDS = {
    "structure": "one rule of the format broken: names, dimensions, types, edges, attributes, versions",
    "growth": "small files that ask for very much: nesting, functions, sizes, endless loops",
    "external": "external data in other places, of other kinds and sizes",
    "bytes": "bits, bytes and pieces changed, cut, moved, joined",
}


def robustness(folder: Path) -> str:
    """A section for each of the scripts' JSON files that is in the folder, and what was aimed at."""
    sections = {"FUZZ.json": _fuzz, "KILL.json": _kill, "KILL_EXTERNAL.json": _kill, "LARGE.json": _large}
    names = ("COLLECTION.json", *sections)
    found = {name: json.loads((folder / name).read_text("utf-8")) for name in names if (folder / name).is_file()}
    parts = [section(found[name]) for name, section in sections.items() if name in found]
    rows = [row for name in found for row in _targets(name, found[name])]
    if rows:
        lines = [f"| {target} | {measured} | {'met' if met else 'missed'} |" for target, measured, met in rows]
        heading = [
            "## Targets: any model in, nothing lost",
            "",
            "| target | measured | result |",
            "| --- | --- | --- |",
        ]
        parts.append("\n".join([*heading, *lines]))
    return "".join(f"\n{part}\n" for part in parts)


def _targets(name: str, found: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """What was aimed at, what was measured, and whether that is enough."""
    if name == "COLLECTION.json":
        failures, minutes = len(found["failures"]), found["seconds"] / 60
        models = sum(found["models"].values())
        yield "backend collection: models that come out wrong: 0", f"{failures} of {models:,}", not failures
        yield "backend collection: at most 20 minutes on 2 cores", f"{minutes:.1f} minutes", minutes <= 20
    elif name == "FUZZ.json":
        failures, seconds, size = len(found["failures"]), found["longest_seconds"], found["peak_bytes"] / 2**30
        yield "at least 2,000 mutated files, failures: 0", f"{failures} of {found['cases']:,}", not failures
        yield "a mutated file: at most 10 s and 2 GB", f"{seconds:.1f} s, {size:.2f} GB", seconds <= 10 and size <= 2
    elif name.startswith("KILL"):
        broken, strays = found["broken"], len(found["strays_after_the_next_run"])
        title = "100 kills" + (", weights apart" if found["external_data"] else "")
        measured = f"{broken} of {found['kills']} broken, {strays} left"
        yield f"{title}: broken outputs 0, temporaries after the next run 0", measured, not broken and not strays
    elif name == "LARGE.json":
        time, memory = found["through"]["time_ratio"], found["through"]["memory_ratio"]
        yield "0.5 GB loaded and saved: at most 1.5 of onnx's time", f"{time:.2f}", time <= 1.5
        yield "0.5 GB loaded and saved: at most 1.2 of onnx's peak memory", f"{memory:.2f}", memory <= 1.2
        for row in found["compile"]["rows"]:
            peak = row["peak_over_weights"]
            title = f"3 GB compiled by `{row['pipeline']}`: at most 1.3 of the weights in memory"
            yield title, f"{peak:.2f}", peak <= 1.3


def _fuzz(found: dict[str, Any]) -> str:
    outcomes = sorted(found["outcomes"])
    lines = [
        "## Broken and hostile models",
        "",
        f"- {found['date']}, `python benchmarks/fuzz.py`, onnxruntime {found['onnxruntime']}",
        f"- {found['cases']:,} mutated files through the command, each in a process of its own with 10 s and 2 GB; "
        f"{sum(found['spawned'].values())} again as a user would start them",
        f"- longest {found['longest_seconds']:.1f} s, most memory {found['peak_bytes'] / 2**20:,.0f} MB; "
        "the machine ran other work as well",
        f"- {len(found['failures'])} failures: no other ending than a sentence and exit code 2, a verified model, or a "
        "verified model without a pass that had to be undone",
        "",
        f"| kind | {' | '.join(outcomes)} |",
        f"| --- |{' ---: |' * len(outcomes)}",
    ]
    for kind, counts in found["kinds"].items():
        lines.append(f"| {_KINDS[kind]} | {' | '.join(str(counts.get(outcome, 0)) for outcome in outcomes)} |")
    lines += [f"- case {f['case']}, {f['mutation']}: {f['outcome']}, {f['detail']}" for f in found["failures"]]
    return "\n".join(lines)


def _kill(found: dict[str, Any]) -> str:
    return "\n".join(
        [
            f"## Killed compilations{', weights in a file of their own' if found['external_data'] else ''}",
            "",
            f"- {found['date']}, `python benchmarks/kill.py{' --external' if found['external_data'] else ''}`",
            f"- {found['kills']} compilations killed with SIGKILL, half of them while they wrote: the output was the "
            f"whole old one {found['old']} times, the whole new one {found['new']} times, anything else "
            f"{found['broken']} times",
            f"- {found['kills_that_left_temporaries']} left temporary files; after the next run there were "
            f"{len(found['strays_after_the_next_run'])}",
        ]
    )


def _large(found: dict[str, Any]) -> str:
    through, compiled = found["through"], found["compile"]
    low, high = through["time_ratio_spread"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    rows = [
        f"| `-p {row['pipeline']}` | {row['size_ratio']:.2f}x | {row['latency_ratio']:.2f}x "
        f"| {row['sqnr_db']:.1f} dB | {row['seconds']:.0f} s "
        f"| {row['peak_bytes'] / 1e9:.2f} GB | {row['peak_over_weights']:.2f}x |"
        for row in compiled["rows"]
    ]
    return "\n".join(
        [
            "## Models of gigabytes",
            "",
            f"- {found['date']}, `python benchmarks/large.py`, {versions}",
            f"- loaded and saved, {through['weight_bytes'] / 1e6:,.0f} MB of weights in one file, "
            f"{through['rounds']} rounds in turn: {through['time_ratio']:.2f} of the time of onnx's own load and save "
            f"({low:.2f} to {high:.2f}), "
            f"{through['memory_ratio']:.2f} of its peak memory "
            f"({through['peak_bytes']['onnxcomp'] / 1e6:,.0f} against {through['peak_bytes']['onnx'] / 1e6:,.0f} MB); "
            "the files are the same, byte for byte",
            f"- compiled: a transformer of {compiled['weight_bytes'] / 1e9:.2f} GB of float32 weights",
            "",
            "| pipeline | smaller | speed | SQNR | whole command | peak memory | over the weights |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )
