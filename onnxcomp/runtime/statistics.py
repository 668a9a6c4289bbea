"""Statistics of the values that flow through a model, streamed so that memory stays flat in the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.graph.bodies import Address, addresses
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.gram import Gram
from onnxcomp.runtime.observing import Key, View
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Accumulator", "Gram", "Histogram", "Means", "observe", "observe_anywhere"]

Array = np.ndarray[Any, Any]


_STRIDES = (3, 5, 7, 11, 17, 29, 53, 101, 211, 401, 809, 1601)  # primes


class Accumulator(Protocol):
    """Takes in one tensor's values, batch by batch."""

    def expect(self, updates: int) -> None:
        """Told once how many updates will come."""

    def update(self, array: Array) -> None:
        """Take in one batch of values."""


def observe(
    model: Model,
    dataset: Dataset,
    wanted: Mapping[str, Sequence[Accumulator]],
    progress: Progress = silent,
    max_memory: int = 128 * 2**20,
    inner: Mapping[Address, Sequence[Accumulator]] | None = None,
) -> None:
    """Run every sample through the model and update the accumulators of each tensor with its values.

    The tensors become outputs of a copy of the model. When their values for one batch exceed ``max_memory``,
    they are observed in several passes over the data, so memory depends neither on samples nor on tensors.

    Args:
        model: any model that runs.
        dataset: what to run.
        wanted: accumulators by tensor of the main graph.
        progress: shows the batches.
        max_memory: bytes that the observed values of one batch may take.
        inner: accumulators by tensor of the body of an If, Loop or Scan. Each is updated once for every time
            that the tensor is computed, with float32 values: several times for a batch in a loop, never in a
            branch that is not taken, nor where ``raising.obstacle`` names one or a Scan changes its shape from
            iteration to iteration.

    Raises:
        InputError: the model does not run on the data, or has no such tensor.
    """
    accumulators: dict[Key, Sequence[Accumulator]] = dict(wanted.items())
    accumulators.update((inner or {}).items())
    if not accumulators:
        return
    whole = model.skeleton()
    dataset = _in_small_batches(whole, dataset, list(accumulators), max_memory)
    for each in accumulators.values():
        for accumulator in each:
            accumulator.expect(dataset.batches)
    groups = View.split(whole, accumulators)
    chunks = [chunk for group in groups for chunk in _chunks(whole, dataset, group, max_memory)]
    for index, chunk in enumerate(chunks):
        view = View(whole, chunk)
        part = f" ({index + 1} of {len(chunks)})" if len(chunks) > 1 else ""
        for feeds in progress(dataset.feeds(), f"calibrating{part}", dataset.batches):
            for key, value in view.run(feeds):
                for accumulator in accumulators[key]:
                    accumulator.update(value)


def observe_anywhere(
    model: Model, dataset: Dataset, wanted: Mapping[int, Sequence[Accumulator]], progress: Progress = silent
) -> None:
    """``observe`` tensors of the main graph and of bodies alike, given by their ``id``."""
    places = addresses(model.graph)
    main: dict[str, Sequence[Accumulator]] = {}
    inner: dict[Address, Sequence[Accumulator]] = {}
    for key, accumulators in wanted.items():
        place = places[key]
        if place.steps:
            inner[place] = accumulators
        else:
            main[place.name] = accumulators
    observe(model, dataset, main, progress, inner=inner)


def _in_small_batches(whole: Skeleton, dataset: Dataset, keys: list[Key], limit: int) -> Dataset:
    """The dataset in batches so small that, if possible, all values of one stay within the limit.

    One pass over the data with small batches is faster than several with large ones.
    """
    if dataset.batches == len(dataset) / dataset.least:
        return dataset
    needed = sum(sum(_sizes(whole, dataset, group).values()) for group in View.split(whole, keys))
    return dataset.in_batches(max(1, int(limit // max(1.0, needed))))


def _sizes(whole: Skeleton, dataset: Dataset, keys: list[Key]) -> dict[Key, float]:
    """Bytes of each tensor for the least that the model can be fed."""
    sizes: dict[Key, float] = dict.fromkeys(keys, 0.0)
    for key, value in View(whole, keys, optimize=False).run(dataset.sample()):
        sizes[key] += np.asarray(value).nbytes
    return sizes


def _chunks(whole: Skeleton, dataset: Dataset, keys: list[Key], limit: int) -> Iterator[list[Key]]:
    """The tensors in their order, cut where the values of a batch would exceed the limit."""
    per_batch = math.ceil(len(dataset) / dataset.batches) / dataset.least
    chunk: list[Key] = []
    total = 0.0
    for key, size in _sizes(whole, dataset, keys).items():
        if chunk and total + per_batch * size > limit:
            yield chunk
            chunk, total = [], 0.0
        chunk.append(key)
        total += per_batch * size
    yield chunk


class Means:
    """Mean of every channel, in float64.

    Attributes:
        axis: of the channels.
        count: values seen in each channel.
        mean: shape (channels,).
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.count = 0
        self.mean: Array = np.zeros(0)

    def expect(self, updates: int) -> None:
        """Of no use here."""

    def update(self, array: Array) -> None:
        """Take in one batch, any shape that has the channel axis."""
        if not array.size:
            return
        others = tuple(axis for axis in range(array.ndim) if axis != self.axis % array.ndim)
        # NumPy adds along contiguous axes pairwise, which keeps float32 exact enough and is many times faster.
        exact = np.float64 if self.axis % array.ndim == array.ndim - 1 else None
        mean = array.mean(axis=others, dtype=exact).astype(np.float64)
        count = array.size // array.shape[self.axis]
        self.count += count
        self.mean = mean if self.count == count else self.mean + (mean - self.mean) * (count / self.count)


class Histogram:
    """Counts of values in equal bins whose range grows with the data.

    Bins lie on a grid whose width is a power of two. When the values outgrow them, neighbours are merged and
    the width doubles (as TensorRT's entropy calibrator grows its range, but exactly: the result does not
    depend on the order or size of the batches). So between half and all of ``bins`` are in use.

    Attributes:
        most: of one batch no more values than this are counted, evenly spread; 0 for all.
        minimum, maximum: exact, of all finite values; inf and -inf before there are any.
        nonfinite: NaN and infinite values seen, which are in no bin.
    """

    def __init__(self, bins: int = 2048, most: int = 0) -> None:
        if bins < 2:
            raise ValueError("a histogram needs two bins at least")
        self.bins = bins
        self.most = most
        self.minimum = math.inf
        self.maximum = -math.inf
        self.nonfinite = 0
        self._exponent: int | None = None  # bins are 2**exponent wide; None while all values are the same
        self._first = 0  # index on the grid of the first bin
        self._counts: Array = np.zeros(1, dtype=np.int64)

    @property
    def count(self) -> int:
        """Finite values counted."""
        return int(self._counts.sum())

    @property
    def counts(self) -> Array:
        """Values in each bin, int64, from the one of the minimum to the one of the maximum."""
        return self._counts.copy()

    @property
    def edges(self) -> Array:
        """Limits of the bins, one more than there are bins; a bin holds its lower limit."""
        if self._exponent is None:
            return np.array([self.minimum, self.maximum])
        grid = np.arange(self._first, self._first + len(self._counts) + 1, dtype=np.float64)
        return np.ldexp(grid, self._exponent)

    def expect(self, updates: int) -> None:
        """Of no use here."""

    def update(self, array: Array) -> None:
        """Take in one batch of any shape."""
        values = array.reshape(-1)
        low, high = (float(values.min()), float(values.max())) if values.size else (math.inf, -math.inf)
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = values[np.isfinite(values)]
            self.nonfinite += values.size - finite.size
            values = finite
            if not values.size:
                return
            low, high = float(values.min()), float(values.max())
        self._cover(min(low, self.minimum), max(high, self.maximum))
        if self._exponent is None:
            self._counts[0] += values.size
            return
        index = _grid_index(self._thinned(values), self._exponent) - self._first
        self._counts += np.bincount(index, minlength=len(self._counts))

    def _thinned(self, values: Array) -> Array:
        """At most about ``most`` values, the extremes among them.

        They stand at distances that share no period with the axes of usual tensors.
        """
        step = -(-values.size // self.most) if self.most else 1
        if step == 1:
            return values
        stride = next(prime for prime in _STRIDES if prime >= min(step, _STRIDES[-1]))
        return np.append(values[::stride], [values.min(), values.max()])

    def _cover(self, low: float, high: float) -> None:
        """Make the bins span the range, keeping what they count."""
        seen = self.minimum
        self.minimum, self.maximum = low, high
        if low == high:
            return
        if self._exponent is None:
            self._exponent = _finest_exponent(low, high, self.bins)
            self._first = math.floor(math.ldexp(seen, -self._exponent)) if math.isfinite(seen) else 0
        exponent = self._exponent
        while _span(low, high, exponent) > self.bins:
            exponent += 1
        merged = np.arange(self._first, self._first + len(self._counts)) >> min(63, exponent - self._exponent)
        first = math.floor(math.ldexp(low, -exponent))
        counts = np.zeros(_span(low, high, exponent), dtype=np.int64)
        filled = self._counts > 0
        np.add.at(counts, merged[filled] - first, self._counts[filled])
        self._exponent, self._first, self._counts = exponent, first, counts


def _finest_exponent(low: float, high: float, bins: int) -> int:
    """The least e for which bins of width 2**e cover the range (and 64-bit integers count the grid)."""
    exponent = math.frexp(high - low)[1] - math.ceil(math.log2(bins)) - 1
    exponent = max(exponent, math.frexp(max(abs(low), abs(high)))[1] - 62)
    while _span(low, high, exponent) > bins:
        exponent += 1
    return exponent


def _span(low: float, high: float, exponent: int) -> int:
    return math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) + 1


def _grid_index(values: Array, exponent: int) -> Array:
    """floor(values / 2**exponent), int64.

    Scaling by a power of two is exact in the values' own type, but the tiniest of float32 become zero.
    """
    if values.dtype == np.float32 and abs(exponent) < 126:
        return np.floor(values * np.float32(2.0**-exponent)).astype(np.int64)
    return np.floor(np.ldexp(values.astype(np.float64), -exponent)).astype(np.int64)
