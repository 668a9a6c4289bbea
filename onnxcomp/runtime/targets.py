"""What the teacher says of samples: computed once for each where memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Dataset, joins
from onnxcomp.model import Model
from onnxcomp.runtime.heads import Head
from onnxcomp.runtime.session import create, run, with_outputs

__all__ = ["Batch", "Targets"]

Array = np.ndarray[Any, Any]

_HALF = 0.5
_KEPT = 512 * 2**20  # bytes of outputs that are kept


class Batch:
    """Feeds that are run at once, and what the student is to give for them.

    Attributes:
        feeds: one array for each input.
        targets: by name of the student's tensor.
    """

    def __init__(self, feeds: Mapping[str, Array], targets: Mapping[str, Array]) -> None:
        self.feeds = feeds
        self.targets = targets


class Targets:
    """Batches of a data set with the teacher's answers.

    Args:
        teacher: the original model.
        dataset: of which any samples may be read at any time.
        heads: what the student is trained on.
        labels: class numbers for the head of kind ``ce``, one for each unit; else None.
    """

    def __init__(self, teacher: Model, dataset: Dataset, heads: Sequence[Head], labels: Array | None = None) -> None:
        self._dataset = dataset
        self._heads = heads
        self._labels = None if labels is None else labels.reshape(dataset.units, -1).astype(np.int64)
        self._taught = [head for head in heads if labels is None or head.kind != "ce"]
        self._session = None
        if self._taught:
            self._session = create(with_outputs(teacher.skeleton(), [head.output for head in self._taught]))
        self._kept: dict[int, dict[str, Array]] = {}
        self._room = float(_KEPT)
        self._rows: bool | None = None  # whether row i of every answer is of unit i; not known yet

    def batches(self, positions: Sequence[int], mixing: np.random.Generator | None = None) -> list[Batch]:
        """Of these units: one batch where they may be fed together, else one for each.

        Args:
            positions: of the units.
            mixing: draws, for each unit that is fed together with others, another one and a share of it that is mixed
                in: the teacher answers to the mixture (Beyer, Zhai, Royer, Markeeva, Anil and Kolesnikov 2022,
                "Knowledge distillation: a good teacher is patient and consistent", arXiv:2106.05237).
        """
        ordered = sorted(positions)
        chosen = self._dataset.pick(ordered)
        if not self._dataset.joins:
            return [self._batch([unit], feeds) for unit, feeds in zip(ordered, chosen.feeds(), strict=True)]
        parts = list(chosen.feeds())
        joined = {
            name: value if value.ndim == 0 else np.concatenate([part[name] for part in parts])
            for name, value in parts[0].items()
        }
        if mixing is not None and len(ordered) > 1:
            mixed = _mixed(joined, len(ordered), mixing)
            return [Batch(mixed, self._fresh(mixed))]
        return [self._batch(ordered, joined)]

    def _batch(self, units: Sequence[int], feeds: Mapping[str, Array]) -> Batch:
        return Batch(feeds, self._labelled(units) | self._answers(units, feeds))

    def _labelled(self, units: Sequence[int]) -> dict[str, Array]:
        if self._labels is None:
            return {}
        labels = self._labels[list(units)].reshape(-1)
        return {head.tensor: labels for head in self._heads if head.kind == "ce"}

    def _answers(self, units: Sequence[int], feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The teacher's, kept ones where there are."""
        if self._session is None:
            return {}
        if all(unit in self._kept for unit in units):
            rows = [self._kept[unit] for unit in units]
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        targets = self._fresh(feeds)
        self._keep(units, targets)
        return targets

    def _fresh(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What the teacher gives now."""
        assert self._session is not None
        found = run(self._session, feeds)
        return {head.tensor: head.target(found[head.output]) for head in self._taught}

    def _keep(self, units: Sequence[int], targets: Mapping[str, Array]) -> None:
        if len(units) > 1 and not self._are_rows(units, targets):
            return
        for index, unit in enumerate(units):
            rows = targets if len(units) == 1 else {name: value[index : index + 1] for name, value in targets.items()}
            if unit in self._kept or self._room <= 0 or any(value.ndim == 0 for value in rows.values()):
                continue
            self._kept[unit] = {name: value.copy() for name, value in rows.items()}
            self._room -= sum(value.nbytes for value in rows.values())

    def _are_rows(self, units: Sequence[int], targets: Mapping[str, Array]) -> bool:
        """Whether the answers to several units lie one behind the other on the first axis: asked of one alone, once.

        What is laid out by time first may have as many rows by chance.
        """
        if self._rows is None:
            assert self._session is not None
            found = run(self._session, next(iter(self._dataset.pick(units[:1]).feeds())))
            alone = {head.tensor: head.target(found[head.output]) for head in self._taught}
            self._rows = all(
                len(value) == len(units) and joins([alone[name], value[1:]], value) for name, value in targets.items()
            )
        return self._rows and all(len(value) == len(units) for value in targets.values())


def _mixed(feeds: Mapping[str, Array], units: int, rng: np.random.Generator) -> dict[str, Array]:
    """Every unit with a part of another; what has no values between (integers, infinities) is of the larger part."""
    other, share = rng.permutation(units), rng.random(units)
    mixed = {}
    for name, value in feeds.items():
        if value.ndim == 0 or len(value) % units:
            mixed[name] = value
            continue
        rows = value.reshape(units, -1)
        part = share[:, None].astype(np.float32)
        if value.dtype.kind == "f" and np.isfinite(value).all():
            found = (rows + part * (rows[other].astype(np.float32) - rows)).astype(value.dtype)
        else:
            found = np.where(part > _HALF, rows[other], rows)
        mixed[name] = found.reshape(value.shape)
    return mixed
