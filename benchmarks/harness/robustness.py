"""What ``fuzz.py`` and ``kill.py`` found, as Markdown."""

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
    """A section for each of ``FUZZ.json`` and ``KILL.json`` that is in the folder."""
    parts = []
    if (folder / "FUZZ.json").is_file():
        parts.append(_fuzz(json.loads((folder / "FUZZ.json").read_text(encoding="utf-8"))))
    if (folder / "KILL.json").is_file():
        parts.append(_kill(json.loads((folder / "KILL.json").read_text(encoding="utf-8"))))
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
            "## Killed compilations",
            "",
            f"- {found['date']}, `python benchmarks/kill.py`",
            f"- {found['kills']} compilations killed with SIGKILL, half of them while they wrote: the output was the "
            f"whole old one {found['old']} times, the whole new one {found['new']} times, anything else "
            f"{found['broken']} times",
            f"- {found['kills_that_left_temporaries']} left temporary files; after the next run there were "
            f"{len(found['strays_after_the_next_run'])}",
        ]
    )
