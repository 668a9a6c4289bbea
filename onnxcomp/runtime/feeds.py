"""Feeds for a model of which nothing is known but its inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxcomp.errors import InputError
from onnxcomp.model import Model
from onnxcomp.runtime.inputs import Array, ModelInput, model_inputs
from onnxcomp.runtime.trial import Trial
from onnxcomp.storage.validation import MOST_AXES, quoted

__all__ = ["synthetic"]

# Sizes that vision models take on a free height or width, and that sequence models take on a free length.
_EXTENTS = (224, 64, 32, 48, 320, 28, 16, 640, 8)
_LENGTHS = (16, 1, 8, 64, 128, 256, 512)
_UNKNOWN_RANKS = (4, 2, 3, 1, 0)

_SECONDS = 2.0  # for all attempts together, more for large models
_MOST_BYTES = 2**28  # of one input
_MOST_OUTPUT_BYTES = 2**27  # they are kept, and compared in double precision


def synthetic(model: Model, seed: int = 0) -> dict[str, Any]:
    """One sample of random feeds that the model runs on.

    Free dimensions are tried in turn until ONNX Runtime accepts them: 1 for what looks like a batch, common
    image sizes and sequence lengths elsewhere. Floats are standard normal, integers 0 or 1, so that they are
    valid as token ids, masks and segment ids. A sequence holds two tensors, a map two entries, an optional has a value.

    Nobody vouches for the model yet, so the attempts get little time and memory (see ``runtime.trial``).

    Raises:
        InputError: no combination runs, or not in time, or no values of an input's type can be made; give data instead.
    """
    inputs = model_inputs(model)
    where = model.path or "the model"
    trial = Trial(model, _SECONDS)
    last: InputError | None = None
    for shapes in _candidates(inputs):
        for entry, shape in zip(inputs, shapes, strict=True):
            elements = math.prod(max(dim, 1) for dim in shape)
            if elements * entry.dtype.itemsize > _MOST_BYTES or len(shape) > MOST_AXES:
                raise InputError(
                    f"{where}: its input {quoted(entry.name)} is too large to make up; give data with --data"
                )
        rng = np.random.default_rng(seed)
        feeds = {entry.name: _values(entry, shape, rng) for entry, shape in zip(inputs, shapes, strict=True)}
        try:
            outputs = trial.run(feeds)
        except InputError as error:
            last = error
            if trial.over:
                break
        else:
            size = sum(value.nbytes for value in outputs.values() if isinstance(value, np.ndarray))
            if size <= _MOST_OUTPUT_BYTES:
                return feeds
            last = InputError(f"its outputs hold {size / 1e6:,.0f} MB")
    raise InputError(f"{where}: does not run on inputs made up for it ({last}); give data with --data")


def _candidates(inputs: list[ModelInput]) -> Iterator[list[tuple[int, ...]]]:
    """Shapes for all inputs to try, most likely first, each combination once."""
    batch_symbols: set[int | str | None] = {
        entry.shape[0] for entry in inputs if entry.shape and isinstance(entry.shape[0], str)
    }
    seen = set()
    for rank, extent, length in itertools.product(_UNKNOWN_RANKS, _EXTENTS, _LENGTHS):
        shapes = [_shape(entry, rank, extent, length, batch_symbols) for entry in inputs]
        if tuple(shapes) not in seen:
            seen.add(tuple(shapes))
            yield shapes


def _shape(
    entry: ModelInput, rank: int, extent: int, length: int, batch_symbols: set[int | str | None]
) -> tuple[int, ...]:
    declared = (None,) * rank if entry.shape is None else entry.shape
    return tuple(
        dim if isinstance(dim, int) else _free_dim(dim, axis, declared, extent, length, batch_symbols)
        for axis, dim in enumerate(declared)
    )


def _free_dim(
    symbol: str | None,
    axis: int,
    declared: tuple[int | str | None, ...],
    extent: int,
    length: int,
    batch_symbols: set[int | str | None],
) -> int:
    """A size for a dimension that the model leaves open."""
    if axis == 0 or (symbol is not None and (symbol in batch_symbols or "batch" in symbol.lower())):
        return 1
    if len(declared) >= 4:
        return extent if axis >= 2 else 3
    if len(declared) == 3 and axis == 1 and isinstance(declared[0], int) and declared[0] > 1:
        return 1  # (layers, batch, hidden): the state of a recurrent network
    return length


def _values(entry: ModelInput, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if entry.container == "sequence":
        return [_array(entry, shape, rng) for _ in range(2)]
    if entry.container == "map":
        keys: list[Any] = ["a", "b"] if entry.keys == np.dtype(object) else [0, 1]
        return {key: _array(entry, (), rng).item() for key in keys}
    return _array(entry, shape, rng)


def _array(entry: ModelInput, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if entry.kind == "float":
        return rng.standard_normal(shape).astype(entry.dtype)
    if entry.kind == "int":
        return rng.integers(0, 2, shape).astype(entry.dtype)
    if entry.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return np.full(shape, "a", dtype=object)
