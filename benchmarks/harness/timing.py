"""Time many models against each other in one process; as a command, prints the times as JSON.

python -m harness.timing MODEL ROUNDS THREADS FILE...
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from harness.accuracy import open_session
from harness.zoo import MODELS, ZooModel
from onnxcomp.data import Dataset
from onnxcomp.model import Model

SHORTEST_TURN_S = 2e-3  # below it, the clock and the call weigh too much: several runs make up a turn


def feeds_of(model: ZooModel) -> dict[str, dict[str, Any]]:
    """What to time a model with, by name: its first sample, and longer sequences made of the first samples."""
    data = Dataset.open(str(model.folder / model.figures[0].samples), Model.load(model.path))
    first = data.sample()
    if not model.lengths:
        return {"": first}
    batch = next(data.feeds())
    made = {}
    for length in model.lengths:
        parts = {name: values.shape[1] for name, values in first.items()}
        joined = {name: batch[name][: -(-length // width)].reshape(1, -1) for name, width in parts.items()}
        made[f"{length} tokens"] = {name: values[:, :length] for name, values in joined.items()}
    return made


def times(
    files: Sequence[Path], feeds: dict[str, dict[str, Any]], rounds: int, threads: int
) -> dict[str, list[list[float]]]:
    """Seconds of one run of each file in each round, for each of the feeds: [feeds][file][round].

    In a round every file has one turn, in an order drawn anew (from a fixed seed), so that all see the same
    disturbances and none always follows the same neighbour. A turn starts with an untimed run, which fetches
    the weights that the others have pushed out of the caches.
    """
    sessions = [open_session(path, threads) for path in files]
    return {name: _rounds(sessions, feed, rounds) for name, feed in feeds.items()}


def _rounds(sessions: list[ort.InferenceSession], feed: dict[str, Any], rounds: int) -> list[list[float]]:
    def seconds(index: int, runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            sessions[index].run(None, feed)
        return (time.perf_counter() - start) / runs

    warm = [min(seconds(index, 1) for _ in range(5)) for index in range(len(sessions))]
    runs = [max(1, math.ceil(SHORTEST_TURN_S / max(once, 1e-7))) for once in warm]
    random = np.random.default_rng(0)
    measured: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for index in random.permutation(len(sessions)):
            seconds(index, 1)
            measured[index].append(seconds(index, runs[index]))
    return measured


def main() -> None:
    """Parse the command line, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("rounds", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    feeds = feeds_of(MODELS[options.model])
    print(json.dumps(times(options.files, feeds, options.rounds, options.threads)))


if __name__ == "__main__":
    main()
