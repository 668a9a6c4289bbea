"""Calibration and evaluation samples."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.arrays import ArraySource, Column, read_npz
from onnxcomp.errors import InputError
from onnxcomp.model import Model
from onnxcomp.runtime.inputs import Array, model_inputs, require_tensors
from onnxcomp.runtime.trial import Trial
from onnxcomp.sources import LABELS, FeedSource, FolderSource, FunctionSource, Source

__all__ = ["Dataset", "joins"]

MAX_BATCH = 32

_SECONDS = 60.0  # for a few first runs, more for large models: the samples are the user's, so slow ones are meant

_GOLDEN = (math.sqrt(5) - 1) / 2


class Dataset:
    """Samples for a model: feeds to iterate over as often as needed, and labels where there are any.

    Example::

        data = Dataset.open("calibration.npz", model)
        calibration, held_out = data.split(0.75)
        for feeds in calibration.feeds():
            ...  # {"input": array of shape (batch, 1, 28, 28)}
    """

    def __init__(self, source: Source, units: Sequence[int], labels: list[Array] | None, batch: int) -> None:
        """Used by the constructors below; ``units`` ascend."""
        self._source = source
        self._units = units
        self._labels = labels
        self._batch = batch

    @classmethod
    def open(cls, source: str, model: Model) -> Dataset:
        """Samples of one of three kinds of sources, checked against the model's inputs.

        - ``file.npz``: one array for each input, its first axis the samples; an array with one axis more than
          the input holds one whole feed in each entry. Optional ``labels``, one for each sample.
        - a folder of ``.npz`` files, one feed each, shapes may vary. Optional labels: an array ``labels`` in
          every file (a scalar, or one entry for each row of the feed), or a file ``labels.npy`` or
          ``labels.npz`` (array ``labels``) beside them with one entry for each file, in the order of their
          names.
        - ``module:function`` or ``file.py:function``: a function that yields feeds (dicts from input names to
          arrays), or pairs of feeds and label. It is called again for every iteration.

        Samples of the first kind are fed in batches when the model gives the same outputs for two samples fed
        together as apart.

        Raises:
            InputError: the source cannot be read, does not fit the model, or has no samples.
        """
        inputs = model_inputs(model)
        require_tensors(inputs, source)
        path = Path(source)
        chosen: Source
        if path.is_dir():
            chosen = FolderSource(path, inputs)
        elif not path.exists() and not source.endswith(".npz") and ":" in source:
            chosen = FunctionSource(source, inputs)
        else:
            columns = read_npz(path)
            keeps_labels = any(entry.name == LABELS for entry in inputs)
            labels = None if keeps_labels else columns.pop(LABELS, None)
            chosen = ArraySource(source, columns, None if labels is None else np.asarray(labels[()]), inputs)
        return cls._of(chosen, model)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], labels: Array | None = None, model: Model | None = None
    ) -> Dataset:
        """Samples held in arrays, as in an .npz file; checked against ``model`` when it is given.

        Raises:
            InputError: as ``open``.
        """
        inputs = None if model is None else model_inputs(model)
        columns: dict[str, Column] = {key: np.asarray(value) for key, value in arrays.items()}
        given = None if labels is None else np.asarray(labels)
        return cls._of(ArraySource("arrays", columns, given, inputs), model)

    @classmethod
    def from_feeds(cls, feeds: Sequence[Mapping[str, Array]], labels: Sequence[Any] | None = None) -> Dataset:
        """Whole feeds held in memory, each given to the model as it is."""
        return cls._of(FeedSource("feeds", list(feeds), labels), None)

    @classmethod
    def _of(cls, source: Source, model: Model | None) -> Dataset:
        labels, count = source.labels(), source.count()
        if count == 0:
            raise InputError(f"{source.name}: holds no samples; give at least one")
        if labels is not None and len(labels) != count:
            raise InputError(f"{source.name}: holds {len(labels)} labels for {count} samples; give one for each")
        dataset = cls(source, range(count), labels, MAX_BATCH)
        if model is not None and not _batches(dataset, model):
            dataset = cls(source, range(count), labels, 1)
        return dataset

    def __len__(self) -> int:
        """Samples; of a folder or a function, feeds."""
        return len(self._units) * self._source.rows

    @property
    def labels(self) -> Array | None:
        """The labels of all samples in order, joined along their first axis."""
        if self._labels is None:
            return None
        return np.concatenate([self._labels[unit] for unit in self._units])

    def feeds(self) -> Iterator[dict[str, Array]]:
        """Every sample once, in order, in batches of at most 32 samples or 4 MB of inputs.

        Raises:
            InputError: a feed does not fit the model.
        """
        yield from self._source.feeds(self._units, self._batch)

    @property
    def least(self) -> int:
        """Samples that the model takes at the least: 1, or its fixed first dimension."""
        return self._source.rows

    @property
    def batches(self) -> int:
        """How many feeds one iteration yields."""
        return self._source.batches(self._units, self._batch)

    def in_batches(self, most: int) -> Dataset:
        """The same samples, at most so many in a feed (of those that may be fed together at all)."""
        return Dataset(self._source, self._units, self._labels, max(1, min(self._batch, most)))

    def sample(self) -> dict[str, Array]:
        """The least that the model can be fed: its first sample."""
        return next(self._source.feeds(self._units[:1], 1))

    def take(self, samples: int) -> Dataset:
        """The first samples, rounded up to what the model takes at once; all when there are fewer."""
        return self._select(self._units[: math.ceil(samples / self._source.rows)])

    @property
    def units(self) -> int:
        """The least parts that the model can be fed: samples, where it does not take several at a time."""
        return len(self._units)

    @property
    def joins(self) -> bool:
        """Whether samples may be fed together."""
        return self._batch > 1 and self._source.batches(self._units[:2], 2) == 1

    def pick(self, positions: Sequence[int]) -> Dataset:
        """These units, in ascending order."""
        return self._select([self._units[index] for index in sorted(positions)])

    def at_random(self, most: float) -> Dataset:
        """The same samples, of which any may be read at any time; those of a function are kept in memory for it.

        Args:
            most: bytes that may be kept.

        Raises:
            InputError: they are more.
        """
        if not isinstance(self._source, FunctionSource):
            return self
        kept: list[dict[str, Array]] = []
        size = 0
        for feeds in self.feeds():
            kept.append({name: np.array(value) for name, value in feeds.items()})  # it may fill one array again
            size += sum(value.nbytes for value in feeds.values())
            if size > most:
                raise InputError(
                    f"{self._source.name}: yields more than {most / 1e9:.0f} GB, and training reads samples in random "
                    "order; save them with numpy.savez, or yield fewer"
                )
        labels = None if self._labels is None else [self._labels[unit] for unit in self._units]
        source = FeedSource(self._source.name, kept, None)
        return Dataset(source, range(len(kept)), labels, 1)

    def split(self, fraction: float) -> tuple[Dataset, Dataset]:
        """``fraction`` of the samples to calibrate on, and the others, held out to measure on.

        The held-out samples are one of each of equally long stretches, at places that shift from stretch to
        stretch (data often repeat their classes in turn), the same every time and whatever the labels. Each
        part has a sample at least, so a single sample is in both.
        """
        count = len(self._units)
        held = min(max(1, round(count * (1 - fraction))), max(1, count - 1))
        bounds = [stretch * count // held for stretch in range(held + 1)]
        shifts = [stretch * _GOLDEN % 1.0 for stretch in range(held)]
        out = {
            low + int(shift * (high - low)) for low, high, shift in zip(bounds[:-1], bounds[1:], shifts, strict=True)
        }
        kept = [unit for index, unit in enumerate(self._units) if index not in out]
        return self._select(kept or self._units), self._select([self._units[index] for index in sorted(out)])

    def describe(self) -> dict[str, Any]:
        """Plain data for a report: source, samples, and the sha256 of names, types, shapes and values."""
        return {"source": self._source.name, "samples": len(self), "sha256": self._digest()}

    def _select(self, units: Sequence[int]) -> Dataset:
        return Dataset(self._source, units, self._labels, self._batch)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for feeds in self.feeds():
            _hash_arrays(digest, feeds.items())
        if self._labels is not None:
            _hash_arrays(digest, ((LABELS, self._labels[unit]) for unit in self._units))
        return digest.hexdigest()


def _hash_arrays(digest: Any, arrays: Iterable[tuple[str, Any]]) -> None:
    for name, array in arrays:
        if not isinstance(array, np.ndarray):  # a sequence, a map, or nothing for an optional
            parts = enumerate(array) if isinstance(array, list) else [(0, np.asarray(repr(array), dtype=object))]
            _hash_arrays(digest, ((f"{name}[{index}]", part) for index, part in parts))
            continue
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        if array.dtype.kind == "O":
            digest.update("\0".join(map(str, array.reshape(-1))).encode())
        elif sys.byteorder == "big":
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        else:
            # As bytes, because the types of ml_dtypes have no buffer.
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")


def _batches(dataset: Dataset, model: Model) -> bool:
    """Whether the model may be fed several samples at once; shows on the way that it runs on the data.

    The first two samples are fed together and apart: a first axis may be open and still be no batch axis.
    """
    trial = Trial(model, _SECONDS, limited=False)
    pair = dataset.take(2 * dataset._source.rows)
    if pair.batches > 1 or len(pair._units) == 1:
        _run(trial, dataset, dataset.sample(), model)
        return False
    apart = Dataset(dataset._source, pair._units, None, 1)
    singles = [_run(trial, dataset, feeds, model) for feeds in apart.feeds()]
    try:
        together = trial.run(next(pair.feeds()))
    except InputError:
        if trial.over:
            raise
        return False
    return all(joins([single[name] for single in singles], value) for name, value in together.items())


def _run(trial: Trial, dataset: Dataset, feeds: dict[str, Array], model: Model) -> dict[str, Any]:
    try:
        return trial.run(feeds)
    except InputError as error:
        where = model.path or "the model"
        raise InputError(f"{where}: does not run on a sample of {dataset._source.name} ({error}); check both") from None


def joins(parts: Sequence[Any], whole: Any) -> bool:
    """Whether the parts, one after the other, are the whole to the tolerance of float32 arithmetic."""
    if not isinstance(whole, np.ndarray) or whole.ndim == 0:
        return False
    if any(part.shape[1:] != whole.shape[1:] for part in parts) or sum(map(len, parts)) != len(whole):
        return False
    joined = np.concatenate(parts)
    if whole.dtype.kind != "f":
        return bool(np.array_equal(joined, whole))
    scale = float(np.abs(joined[np.isfinite(joined)]).max(initial=0.0))
    return bool(np.allclose(joined, whole, rtol=1e-3, atol=1e-4 * scale + 1e-30, equal_nan=True))
