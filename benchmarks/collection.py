"""Put the backend test collection of the onnx package through every pass, and count what comes out.

    python benchmarks/collection.py                       # all of it
    python benchmarks/collection.py --match 'test_conv'   # models whose name matches
    python benchmarks/collection.py --render              # the tables again, from the JSON

Ends with status 1 when a model came out wrong. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from harness.cases import load_cases, variants
from harness.collection import Collection, collect, tally
from harness.document import write_document
from harness.environment import environment
from harness.examine import Finding

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only models whose name matches this pattern; nothing is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    parser.add_argument("--timeout", type=float, default=400, help="seconds for a model; default: 400")
    parser.add_argument("--out", type=Path, default=HERE / "COLLECTION.json", help="JSON; default: beside this file")
    parser.add_argument("--render", action="store_true", help="run nothing, write RESULTS.md again")
    options = parser.parse_args()
    if not options.render:
        result = _run(options.match, options.processes, options.timeout)
        _tell(result)
        if options.match:
            return 1 if result.failures else 0
        result.write(options.out)
    stored = Collection.read(options.out)
    write_document(HERE / "RESULTS.md")
    return 1 if stored is not None and stored.failures else 0


def _run(match: str, processes: int, timeout: float) -> Collection:
    start = time.perf_counter()
    names = [variant.name for case in load_cases() if re.search(match, case.name) for variant in variants(case)]
    findings: list[Finding] = []
    for done, found in enumerate(collect(names, processes, timeout), 1):
        findings += found
        for finding in found:
            if finding.outcome == "failed":
                print(f"FAILED {finding.case}, {finding.check}: {finding.detail}", file=sys.stderr, flush=True)
        if done % 200 == 0:
            print(f"{done} of {len(names)} models, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return Collection(
        date=time.strftime("%Y-%m-%d"),
        command=shlex.join(["python", "benchmarks/collection.py", *sys.argv[1:]]),
        environment=environment(),
        seconds=time.perf_counter() - start,
        processes=processes,
        models=dict(Counter(_kind(name) for name in names)),
        **tally(sorted(findings, key=lambda finding: finding.case)),
    )


def _kind(name: str) -> str:
    kind, variant = name.partition("/")[0], name.rpartition("+")[2]
    return f"{kind} with {variant}" if "+" in name else kind


def _tell(result: Collection) -> None:
    print(f"{sum(result.models.values())} models in {result.seconds:.0f} s")
    for check, counts in result.outcomes.items():
        print(f"{check}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    for title in ("reasons", "undone", "refused", "not_runnable"):
        for count in getattr(result, title):
            print(f"{title}: {count.models} x {count.check}: {count.text}")
    print(f"{len(result.failures)} failures")


if __name__ == "__main__":
    sys.exit(main())
