"""Second moments of a layer's inputs, and of two models' layers together: what least squares needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.linalg.moments import Moments
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.gram import CHUNK_VALUES, enough_columns, rows_at, spread
from onnxcomp.runtime.layouts import Layout
from onnxcomp.runtime.session import create, run, with_outputs

__all__ = ["InputMoments", "OutputLayout", "Regression", "observe_pairs"]

Array = np.ndarray[Any, Any]

HELD_OUT = 0.25  # of the samples, the last ones: neighbours in a data set may be near duplicates


class InputMoments:
    """Mean and covariance of the inputs x of a layer, over its positions and the samples.

    As ``Gram``, with the same choice of columns, but centred: a bias can make up for any constant.

    Attributes:
        layout: how the layer reads its input; groups G, inputs d.
        moments: of x.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.moments = Moments.none(layout.groups, layout.size)
        self._updates = 0
        self._share = 0

    def expect(self, updates: int) -> None:
        """Spread the columns over so many updates."""
        self._share = -(-enough_columns(self.layout) // max(1, updates))

    def update(self, array: Array) -> None:
        """Take in the layer's input for one batch."""
        for (rows,) in _same_rows([(self.layout, array)], self._share, self._updates):
            self.moments.add(rows)
        self._updates += 1


@dataclass(frozen=True)
class OutputLayout:
    """A layer's outputs, at the positions that a ``Layout`` has for its inputs.

    Attributes:
        size: outputs of a group.
        axis: of the channels in the tensor, 1 or -1.
    """

    groups: int
    size: int
    axis: int

    def view(self, array: Array) -> tuple[Array, int]:
        """The outputs on the last axis."""
        return np.moveaxis(array, self.axis, -1), array.ndim - 1


class Regression:
    """How the outputs y = W₀x₀ of the original layer depend on the inputs x of the compressed one.

    Where another branch s is added to the outputs, y = W₀x₀ + s₀ - s: the layer is to make up for what that branch
    has lost (as He, Zhang and Sun 2017 do for residual networks).

    Attributes:
        layout: how the compressed layer reads its input x; groups G, inputs d.
        original: how the original layer reads its input x₀.
        target: the original's weight W₀, (G, outputs, d₀).
        columns: for x take these entries of x₀, as if all before were perfect; None for the compressed model's.
        branch: name of the tensor s, or nothing.
        outputs: how the layer gives its outputs, and s is laid out.
        fitting, held_out: moments of x and y, over the first and the last samples.
    """

    def __init__(self, layout: Layout, original: Layout, target: Array, columns: Array | None = None) -> None:
        self.layout = layout
        self.original = original
        self.target = target.astype(np.float32)
        self.columns = columns
        self.branch = ""
        self.outputs = OutputLayout(target.shape[0], target.shape[1], -1)
        outputs = target.shape[1]
        self.fitting = Moments.none(layout.groups, layout.size, outputs)
        self.held_out = Moments.none(layout.groups, layout.size, outputs)
        self._updates = 0
        self._share = 0
        self._kept = 0

    def expect(self, updates: int) -> None:
        """Spread the columns over so many updates, the last of which are held out."""
        self._share = -(-enough_columns(self.layout) // max(1, updates))
        self._kept = updates - int(HELD_OUT * updates)

    def update(self, array: Array | None, original: Array, lost: Array | None = None) -> None:
        """Take in the inputs of the compressed (unless there are ``columns``) and the original layer, and s₀ - s."""
        inputs: list[tuple[Layout, Array]] = [(self.original, original)]
        if self.columns is None and array is not None:
            inputs.append((self.layout, array))
        if lost is not None and not self._is_alongside(original, lost):
            lost = None
        if lost is not None:
            inputs.append((self.outputs, lost))
        moments = self.fitting if self._updates < self._kept else self.held_out
        for chunk in _same_rows(inputs, self._share, self._updates):
            rows_0, y = chunk[0], chunk[0] @ self.target.swapaxes(1, 2)
            rows = chunk[1] if self.columns is None else np.ascontiguousarray(rows_0[:, :, self.columns])
            moments.add(rows, y if lost is None else y + chunk[-1])
        self._updates += 1

    def _is_alongside(self, original: Array, lost: Array) -> bool:
        """Whether the other branch has a value for each output of the layer, and neither of the two is broadcast."""
        view, axes = self.original.view(original)
        other, others = self.outputs.view(lost)
        same: bool = view.shape[:axes] == other.shape[:others]
        return same and other.shape[-1] == self.outputs.groups * self.outputs.size


def observe_pairs(
    compressed: Model,
    original: Model,
    dataset: Dataset,
    wanted: Mapping[str, Sequence[Regression]],
    progress: Progress = silent,
) -> None:
    """Run every sample through both models, side by side, and update the regressions of each tensor.

    Both models have the tensors by the same names. Of either, only what these tensors depend on is run.

    Raises:
        InputError: a model does not run on the data.
    """
    branches = sorted({item.branch for each in wanted.values() for item in each if item.branch})
    names = [*wanted, *(name for name in branches if name not in wanted)]
    own = [name for name in wanted if any(regression.columns is None for regression in wanted[name])]
    own += [name for name in branches if name not in own]
    session = create(with_outputs(compressed.skeleton(), own)) if own else None
    session_0 = create(with_outputs(original.skeleton(), names))
    for regressions in wanted.values():
        for regression in regressions:
            regression.expect(dataset.batches)
    for feeds in progress(dataset.feeds(), "reconstructing", dataset.batches):
        values = {} if session is None else run(session, feeds, own)
        values_0 = run(session_0, feeds, names)
        lost = {name: values_0[name] - values[name] for name in branches}
        for name, each in wanted.items():
            for regression in each:
                regression.update(values.get(name), values_0[name], lost.get(regression.branch))


def _same_rows(inputs: Sequence[tuple[Layout, Array]], share: int, turn: int) -> Iterator[list[Array]]:
    """The same positions of several inputs, each as (G, n, d), a limited number at a time."""
    views = [
        layout.view(array.astype(np.promote_types(array.dtype, np.float32), copy=False)) for layout, array in inputs
    ]
    view, axes = views[0]
    chosen = spread(math.prod(view.shape[:axes]), share, turn)
    step = max(1, CHUNK_VALUES // max(layout.groups * layout.size for layout, _ in inputs))
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        yield [
            np.ascontiguousarray(rows_at(view, axes, part).reshape(len(part), layout.groups, -1).swapaxes(0, 1))
            for (view, axes), (layout, _) in zip(views, inputs, strict=True)
        ]
