"""The cases of a run: which mutation of which seed, the same for the same number every time."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from fuzzing.growth import GROWTH, nested_bytes
from fuzzing.outside import BYTEWISE, EXTERNAL, with_external_data
from fuzzing.seeds import LARGE_SEEDS, SEEDS
from fuzzing.structure import STRUCTURAL, NotHereError

__all__ = ["PIPELINES", "Case", "cases"]

PIPELINES = ("fold", "prune,quant,reorder", "quant", None)
"""None looks into the model."""

# Of every 20 cases. What asks for much has few parameters.
_SHARES = {"structure": 9, "growth": 2, "external": 2, "bytes": 7}
_LARGE_EVERY = 25
_ATTEMPTS = 40
_DEPTHS = (30, 90, 110, 500, 5000)


@dataclass(frozen=True)
class Case:
    """One mutated file and what is asked of the command.

    Attributes:
        number: the seed of its random choices.
        kind: ``structure``, ``growth``, ``external`` or ``bytes``.
        index: of the case within its kind.
    """

    number: int
    kind: str
    index: int

    @property
    def pipeline(self) -> str | None:
        """A number that shares no factor with the mutations, so that each meets every pipeline."""
        return PIPELINES[self.number // len(_KINDS[self.kind]) % len(PIPELINES)] if self.number % 5 else PIPELINES[1]

    @property
    def mutation(self) -> str:
        """The name of what is done to the model."""
        kinds = _KINDS[self.kind]
        return kinds[self.index % len(kinds)].__name__

    def write(self, folder: Path) -> None:
        """Write ``model.onnx``, and what it needs, into an empty folder."""
        rng = np.random.default_rng([1, self.number])
        (folder / "model.onnx").write_bytes(_MAKERS[self.kind](rng, self.index, folder))


def cases(count: int) -> Iterator[Case]:
    """The first cases, all kinds in turn."""
    turns = [kind for kind, share in _SHARES.items() for _ in range(share)]
    turns = [turns[index * 7 % len(turns)] for index in range(len(turns))]
    made: Counter[str] = Counter()
    for number in range(count):
        kind = turns[number % len(turns)]
        yield Case(number, kind, made[kind])
        made[kind] += 1


# -- the file of each kind -------------------------------------------------------------------------------------


def _seed(rng: np.random.Generator, large: bool = False) -> onnx.ModelProto:
    seeds = LARGE_SEEDS if large else SEEDS
    return list(seeds.values())[int(rng.integers(len(seeds)))]()


def _structure(rng: np.random.Generator, index: int, _: Path) -> bytes:
    for attempt in range(_ATTEMPTS):
        proto = _seed(rng, large=attempt == 0 and index % _LARGE_EVERY == _LARGE_EVERY - 1)
        try:
            STRUCTURAL[index % len(STRUCTURAL)](rng, proto)
            if rng.random() < 0.2:
                STRUCTURAL[int(rng.integers(len(STRUCTURAL)))](rng, proto)
            return proto.SerializeToString()
        except (NotHereError, EncodeError, ValueError):  # some values have no place in a message
            continue
    raise AssertionError(f"{STRUCTURAL[index % len(STRUCTURAL)].__name__} changes no seed")


def _growth(rng: np.random.Generator, index: int, _: Path) -> bytes:
    made = GROWTH[index % len(GROWTH)]
    if made.__name__ == "nested" and rng.random() < 0.5:
        return nested_bytes(_DEPTHS[int(rng.integers(len(_DEPTHS)))])
    return made(rng).SerializeToString()


def _external(rng: np.random.Generator, index: int, folder: Path) -> bytes:
    while True:
        proto = _seed(rng)
        if proto.graph.initializer:
            break
    (folder.parent / "weights.bin").write_bytes(b"\0" * 2**20)  # what must not be read
    with contextlib.suppress(NotHereError):
        with_external_data(rng, proto, folder, EXTERNAL[index % len(EXTERNAL)])
    return proto.SerializeToString()


def _bytes(rng: np.random.Generator, index: int, _: Path) -> bytes:
    large = index % _LARGE_EVERY == _LARGE_EVERY - 1
    first, second = _seed(rng, large), _seed(rng)
    return BYTEWISE[index % len(BYTEWISE)](rng, first.SerializeToString(), second.SerializeToString())


_MAKERS: dict[str, Callable[[np.random.Generator, int, Path], bytes]] = {
    "structure": _structure,
    "growth": _growth,
    "external": _external,
    "bytes": _bytes,
}
_KINDS: dict[str, tuple[Callable[..., object], ...]] = {
    "structure": STRUCTURAL,
    "growth": GROWTH,
    "external": EXTERNAL,
    "bytes": BYTEWISE,
}
