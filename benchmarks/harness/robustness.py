"""What ``fuzz.py``, ``kill.py`` and ``large.py`` found, as Markdown."""

from __future__ import annotations

import json
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
    """A section for each of the scripts' JSON files that is in the folder."""
    sections = {"FUZZ.json": _fuzz, "KILL.json": _kill, "KILL_EXTERNAL.json": _kill, "LARGE.json": _large}
    parts = []
    for name, section in sections.items():
        if (folder / name).is_file():
            parts.append(section(json.loads((folder / name).read_text(encoding="utf-8"))))
    return "".join(f"\n{part}\n" for part in parts)


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
