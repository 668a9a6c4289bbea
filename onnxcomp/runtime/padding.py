"""Samples of a model of sequences without the positions that are only there to make all equally long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.model import Model
from onnxcomp.runtime.session import create, run

__all__ = ["without_padding"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_EXACT = 1e-4  # of the largest value: sums in another order


def without_padding(model: Model, dataset: Dataset) -> Dataset:
    """The samples, each cut to its own length, where the model ignores the rest.

    Positions that no output depends on count like all others when a layer is fitted to what it reads, and there may be
    more of them than of others. Where all inputs are (samples, positions), of a length that the model leaves open, and
    one of them is a mask (ones, then zeros), the samples are cut where it ends; a run shows that the outputs stay.

    Returns:
        the same dataset where it has no such padding.

    Raises:
        InputError: the model does not run on the data.
    """
    if not _has_open_length(model):
        return dataset
    samples = [dict(feeds) for feeds in dataset.in_batches(1).feeds()]
    mask = _mask_of(samples)
    if mask is None:
        return dataset
    cut = [_cut(feeds, int(feeds[mask].sum())) for feeds in samples]
    index = next(index for index, feeds in enumerate(samples) if feeds[mask].sum() < feeds[mask].size)
    return Dataset.from_feeds(cut) if _same_outputs(model, samples[index], cut[index]) else dataset


def _has_open_length(model: Model) -> bool:
    shapes = [tensor.shape for tensor in model.graph.inputs]
    return bool(shapes) and all(shape is not None and len(shape) == 2 and _is_open(shape[1]) for shape in shapes)


def _is_open(dimension: Any) -> bool:
    return not isinstance(dimension, int) or dimension < 0


def _mask_of(samples: list[dict[str, Array]]) -> str | None:
    """The input that tells positions from padding; None where there is none, or no padding."""
    for name in samples[0] if samples else ():
        masks = [feeds[name] for feeds in samples]
        alike = all(value.shape == masks[i].shape for i, feeds in enumerate(samples) for value in feeds.values())
        if alike and all(_is_mask(mask) for mask in masks) and not all(mask.all() for mask in masks):
            return name
    return None


def _is_mask(value: Array) -> bool:
    """One sample of ones, then zeros."""
    if value.ndim != 2 or len(value) != 1 or value.dtype.kind not in "iubf":
        return False
    row = value[0].astype(np.float64)
    return bool(np.isin(row, (0.0, 1.0)).all() and row[:1].all() and (np.diff(row) <= 0).all() and row.size)


def _cut(feeds: Feeds, length: int) -> dict[str, Array]:
    return {name: np.ascontiguousarray(value[:, :length]) for name, value in feeds.items()}


def _same_outputs(model: Model, padded: Feeds, cut: Feeds) -> bool:
    """Whether what the model says of the cut sample is what it says of the same positions of the other."""
    session = create(model)
    whole, short = run(session, padded), run(session, cut)
    for name, value in short.items():
        other = whole[name]
        if not isinstance(value, np.ndarray) or value.ndim != other.ndim:
            return False
        other = other[tuple(slice(size) for size in value.shape)]
        if not np.allclose(value, other, rtol=0, atol=_EXACT * float(np.abs(other).max(initial=0.0))):
            return False
    return True
