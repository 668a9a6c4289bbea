"""Kill compilations at random moments with a signal that nobody can catch, and look at what they leave.

    python benchmarks/kill.py                 # 100 kills
    python benchmarks/kill.py --external      # of a model whose weights are in a file beside it

Half of the kills come at a random moment of the compilation, half while its output is being written. After each, the
output must be the whole old one or the whole new one, and so must the report. After one more run, which is not killed,
nothing may be left but what it wrote, neither beside the output nor in the place for temporary files.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the generators of the tests

from fuzzing.hurry import hurry
from fuzzing.seeds import external_weights

from tests.generate import Net

HERE = Path(__file__).resolve().parent
PIPELINE = "prune(flops=0.3),quant,reorder"
OPTIONS = ("--data", "data.npz", "--timings", "off", "-q")
OUTPUTS = ("-o", "out/small.onnx", "--report", "out/report.json")
_POLL_S = 0.0002
_LONGEST_WRITE_S = 0.02


class Workplace:
    """A folder with a model, data, and the results of an earlier compilation."""

    def __init__(self, folder: Path, external: bool, pipeline: str) -> None:
        self.folder, self.pipeline = folder, pipeline
        self.out, self.temporary = folder / "out", folder / "tmp"
        for made in (self.out, self.temporary):
            made.mkdir()
        net = Net(0, (3, 8, 8))
        x = net.activation(net.batch_norm(net.conv("x", 32)))
        x = net.activation(net.conv(net.activation(net.conv(x, 64)), 32))
        net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
        proto = net.proto()
        np.savez(folder / "data.npz", **net.feeds(16))
        if external:
            (folder / "weights.bin").write_bytes(external_weights(proto))
        onnx.save_model(proto, folder / "net.onnx")
        self.earlier = {"small.onnx": _old_model(), "report.json": b'{"of": "an earlier run"}\n'}

    def reset(self) -> None:
        """Put the earlier results back; what a killed run left stays."""
        for name, data in self.earlier.items():
            (self.out / name).write_bytes(data)

    def start(self) -> int:
        """A compilation as a process of its own; returns its number."""
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        code = 70
        try:
            os.setsid()
            os.chdir(self.folder)
            os.environ["TMPDIR"] = str(self.temporary)
            tempfile.tempdir = None
            from onnxcomp import cli

            hurry()
            code = cli.run(["net.onnx", "-p", self.pipeline, *OPTIONS, *OUTPUTS])
        finally:
            os._exit(code)

    def whole(self) -> str:
        """``old`` or ``new`` where the output is that, whole."""
        if (self.out / "small.onnx").read_bytes() == self.earlier["small.onnx"]:
            return "old"
        proto = onnx.load(self.out / "small.onnx")  # with weights in other files, if there are any
        onnx.checker.check_model(proto)
        return "new" if proto.SerializeToString(deterministic=True) == self.new else "broken"

    def report_is_whole(self) -> bool:
        """Whether it can be read to its end."""
        report = json.loads((self.out / "report.json").read_bytes())
        return report == json.loads(self.earlier["report.json"]) or report["result"]["output"] == "out/small.onnx"

    def strays(self, known: set[str]) -> list[str]:
        """Files beside the outputs, and in the place for temporary files, that nothing needs."""
        beside = {path.name for path in self.out.iterdir()} - known
        return sorted(beside | {path.name for path in self.temporary.iterdir()})

    def reference(self) -> set[str]:
        """Compile once undisturbed; returns the names of the outputs."""
        if os.waitpid(self.start(), 0)[1]:
            raise SystemExit("the compilation fails without being killed")
        self.new = onnx.load(self.out / "small.onnx").SerializeToString(deterministic=True)
        return {path.name for path in self.out.iterdir()}


def _old_model() -> bytes:
    net = Net(1, (3, 8, 8))
    net.conv("x", 4)
    return net.proto().SerializeToString()


def kill(place: Workplace, rng: np.random.Generator, seconds: float, while_writing: bool) -> bool:
    """Start a compilation and kill it; whether it was still alive then.

    Args:
        place: where it works.
        rng: for the moment.
        seconds: that an undisturbed one takes.
        while_writing: wait until its temporary files are there.
    """
    before = set(os.listdir(place.out))
    start, process = time.perf_counter(), place.start()
    delay = rng.uniform(0, seconds)
    while while_writing and time.perf_counter() - start < 10 * seconds + 5:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        if time.perf_counter() - start > seconds / 4 and set(os.listdir(place.out)) - before:
            delay = time.perf_counter() - start + rng.uniform(0, _LONGEST_WRITE_S)
            break
        time.sleep(_POLL_S)
    time.sleep(max(0.0, start + delay - time.perf_counter()))
    alive = not os.waitpid(process, os.WNOHANG)[0]
    if alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return alive


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every output was whole and nothing was left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipeline", default=PIPELINE)
    parser.add_argument("--external", action="store_true", help="weights in a file beside the model")
    parser.add_argument("--output", help="JSON file; - is stdout; default: KILL.json or KILL_EXTERNAL.json here")
    given = parser.parse_args(arguments)
    output = given.output or str(HERE / ("KILL_EXTERNAL.json" if given.external else "KILL.json"))
    import onnxcomp.actions  # noqa: F401 - before the processes fork

    rng, found, left = np.random.default_rng(given.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        place = Workplace(Path(folder), given.external, given.pipeline)
        place.reference()
        start = time.perf_counter()
        outputs = place.reference()
        seconds = time.perf_counter() - start
        kills = 0
        while kills < given.kills:
            place.reset()
            if kill(place, rng, seconds, while_writing=bool(kills % 2)):
                kills += 1
                found[place.whole()] += 1
                found["broken report"] += not place.report_is_whole()
                left += bool(place.strays(outputs))
        place.reset()
        place.reference()
        strays = place.strays(outputs)
    document = {
        "date": datetime.date.today().isoformat(),
        "kills": kills,
        "old": found["old"],
        "new": found["new"],
        "broken": found["broken"] + found["broken report"],
        "kills_that_left_temporaries": left,
        "strays_after_the_next_run": strays,
        "seconds_undisturbed": round(seconds, 2),
        "external_data": given.external,
    }
    text = json.dumps(document, indent=2) + "\n"
    sys.stdout.write(text)
    if output != "-":
        Path(output).write_text(text)
    return 1 if document["broken"] or strays else 0


if __name__ == "__main__":
    raise SystemExit(main())
