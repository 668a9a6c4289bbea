"""Feed the command thousands of broken and hostile models, and count how it takes them.

    python benchmarks/fuzz.py                             # 2,400 cases, and a sample of them as processes of their own
    python benchmarks/fuzz.py --cases 100 --output -      # some, and the JSON on stdout
    python benchmarks/fuzz.py --only 17                   # one, with what the command printed

Every case must end within 10 s and 2 GB with one sentence and exit code 2, or with a verified model (exit code 0, or 3
when a pass had to be undone). The cases are the same every time. ``run.py --render`` puts the counts into RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the generators of the tests

from fuzzing.cases import Case, cases
from fuzzing.trial import Limits, Verdict, try_case

HERE = Path(__file__).resolve().parent
LIMITS = Limits()
SPAWNED_LIMITS = Limits(seconds=20.0)  # start-up and timed runs included


def _forked(case: Case) -> Verdict:
    return try_case(case, LIMITS)


def _spawned(case: Case) -> Verdict:
    return try_case(case, SPAWNED_LIMITS, fork=False)


def main() -> int:
    """0 when every case ended well."""
    arguments = _arguments()
    wanted = list(cases(arguments.cases))
    if arguments.only is not None:
        verdict = _forked(next(case for case in cases(arguments.only + 1) if case.number == arguments.only))
        print(verdict)
        return 0 if verdict.good else 1
    import onnxcomp.actions  # noqa: F401 - before the processes fork

    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
        verdicts = _collect(pool.imap_unordered(_forked, wanted))
        sample = wanted[:: max(1, len(wanted) // arguments.spawned)] if arguments.spawned else []
        spawned = _collect(pool.imap_unordered(_spawned, sample))
    document = _document(verdicts, spawned, time.perf_counter() - start)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if arguments.output == "-":
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_text(text)
        _print(document)
    return 0 if all(verdict.good for verdict in (*verdicts, *spawned)) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--spawned", type=int, default=40, help="cases that run again as the user would run them")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", default=str(HERE / "FUZZ.json"), help="JSON file; - is stdout")
    parser.add_argument("--only", type=int, help="the number of the only case to run")
    return parser.parse_args()


def _collect(results) -> list[Verdict]:
    found = []
    for verdict in results:
        found.append(verdict)
        if not verdict.good:
            case = verdict.case
            name = f"{case.number} {case.kind}/{case.mutation} -p {case.pipeline}"
            print(f"{name}: {verdict.outcome}: {verdict.detail} ({verdict.seconds:.1f} s)", file=sys.stderr, flush=True)
    return sorted(found, key=lambda verdict: verdict.case.number)


def _document(verdicts: list[Verdict], spawned: list[Verdict], seconds: float) -> dict[str, object]:
    kinds: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        kinds.setdefault(verdict.case.kind, Counter())[verdict.outcome] += 1
    return {
        "date": datetime.date.today().isoformat(),
        "onnxruntime": version("onnxruntime"),
        "cases": len(verdicts),
        "outcomes": dict(sorted(Counter(verdict.outcome for verdict in verdicts).items())),
        "kinds": {kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())},
        "spawned": dict(sorted(Counter(verdict.outcome for verdict in spawned).items())),
        "longest_seconds": round(max(verdict.seconds for verdict in verdicts), 2),
        "peak_bytes": max(verdict.peak for verdict in verdicts),
        "seconds": round(seconds, 1),
        "failures": [
            {
                "case": verdict.case.number,
                "mutation": f"{verdict.case.kind}/{verdict.case.mutation}",
                "pipeline": verdict.case.pipeline,
                "outcome": verdict.outcome,
                "detail": verdict.detail[:500],
            }
            for verdict in (*verdicts, *spawned)
            if not verdict.good
        ],
    }


def _print(document: dict) -> None:
    for kind, counts in document["kinds"].items():
        print(f"{kind}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    print(f"as processes: {document['spawned']}")
    print(
        f"{document['cases']} cases, {len(document['failures'])} failures, longest {document['longest_seconds']} s, "
        f"at most {document['peak_bytes'] / 2**20:.0f} MB, {document['seconds']:.0f} s in all"
    )


if __name__ == "__main__":
    raise SystemExit(main())
