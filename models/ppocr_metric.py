"""Metric of the text recogniser: the fraction of lines read without a single mistake.

    onnxcomp ~/.cache/onnxcomp/ppocr_rec/ppocr_rec.onnx --metric ppocr_metric:line_accuracy ...

The dictionary is read from the metadata of the fp32 model that fetch.py leaves in the cache.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

BLANK = 0


def character_list(model: Path) -> list[str]:
    """Return the text of each output class: the CTC blank first, the model's dictionary, the space last."""
    metadata = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def decode(probabilities: np.ndarray, characters: Sequence[str]) -> list[str]:
    """Read lines from [batch, time, classes] greedily: drop repetitions, blanks and spaces at the ends."""
    lines = []
    for best in probabilities.argmax(axis=2):
        changed = np.concatenate([[True], best[1:] != best[:-1]])
        lines.append("".join(characters[index] for index in best[changed & (best != BLANK)]).strip())
    return lines


def read_lines(outputs: list[dict[str, np.ndarray]], characters: Sequence[str] = ()) -> list[str]:
    """Return the text of every sample of every batch; ``characters`` default to the cached model's."""
    characters = characters or _cached_characters()
    return [line for batch in outputs for line in decode(next(iter(batch.values())), characters)]


def line_accuracy(outputs: list[dict[str, np.ndarray]], labels: np.ndarray, characters: Sequence[str] = ()) -> float:
    """Return the fraction of lines that equal their label; ``characters`` default to the cached model's."""
    lines = read_lines(outputs, characters)
    return float(np.mean([line == label for line, label in zip(lines, labels, strict=True)]))


def character_error_rate(
    outputs: list[dict[str, np.ndarray]], labels: np.ndarray, characters: Sequence[str] = ()
) -> float:
    """Return the number of wrong characters (Levenshtein distance) per character of the labels."""
    lines = read_lines(outputs, characters)
    errors = sum(_distance(line, label) for line, label in zip(lines, labels, strict=True))
    return errors / sum(len(label) for label in labels)


@functools.cache
def _cached_characters() -> tuple[str, ...]:
    cache = Path(os.environ.get("ONNXCOMP_CACHE") or Path.home() / ".cache" / "onnxcomp")
    return tuple(character_list(cache / "ppocr_rec" / "ppocr_rec.onnx"))


def _distance(first: str, second: str) -> int:
    """Return the Levenshtein distance of two strings."""
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, 1):
        current = [row]
        for column, right in enumerate(second, 1):
            substituted = previous[column - 1] + (left != right)
            current.append(min(previous[column] + 1, current[-1] + 1, substituted))
        previous = current
    return previous[-1]
