"""Second moments of a layer's inputs, and of two models' inputs together: what least squares needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.gram import CHUNK_VALUES, enough_columns, rows_at, spread
from onnxcomp.runtime.layouts import Layout
from onnxcomp.runtime.session import create, run, with_outputs

__all__ = ["InputMoments", "Regression", "observe_pairs"]

Array = np.ndarray[Any, Any]


class InputMoments:
    """Mean and covariance of the inputs x of a layer, over its positions and the samples.

    As ``Gram``, with the same choice of columns, but centred: a bias can make up for any constant.

    Attributes:
        layout: how the layer reads its input; groups G, inputs d.
        count: positions seen.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.count = 0
        self._second: Array = np.zeros((layout.groups, layout.size, layout.size))
        self._sum: Array = np.zeros((layout.groups, layout.size))
        self._updates = 0
        self._share = 0

    @property
    def mean(self) -> Array:
        """Shape (G, d)."""
        mean: Array = self._sum / max(1, self.count)
        return mean

    @property
    def covariance(self) -> Array:
        """Shape (G, d, d)."""
        mean = self.mean
        covariance: Array = self._second / max(1, self.count) - mean[:, :, None] * mean[:, None, :]
        return covariance

    def expect(self, updates: int) -> None:
        """Spread the columns over so many updates."""
        self._share = -(-enough_columns(self.layout) // max(1, updates))

    def update(self, array: Array) -> None:
        """Take in the layer's input for one batch."""
        for rows in self._rows([(self.layout, array)]):
            self._add(rows[0])
        self._updates += 1

    def _add(self, rows: Array) -> None:
        """Rows of one chunk, (G, n, d)."""
        self._second += rows.transpose(0, 2, 1) @ rows
        self._sum += rows.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[1]

    def _rows(self, inputs: Sequence[tuple[Layout, Array]]) -> Iterator[list[Array]]:
        """The same positions of several inputs, each as (G, n, d), a limited number at a time."""
        views = [layout.view(_float(array)) for layout, array in inputs]
        view, axes = views[0]
        chosen = spread(math.prod(view.shape[:axes]), self._share, self._updates)
        widest = max(layout.groups * layout.size for layout, _ in inputs)
        step = max(1, CHUNK_VALUES // widest)
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            yield [
                np.ascontiguousarray(
                    rows_at(view, axes, part).reshape(len(part), layout.groups, -1).swapaxes(0, 1)
                )
                for (view, axes), (layout, _) in zip(views, inputs, strict=True)
            ]


class Regression(InputMoments):
    """How the outputs y = W₀x₀ of the original layer depend on the inputs x of the compressed one.

    Attributes:
        original: how the original layer reads its input x₀.
        target: the original's weight W₀, (G, outputs, d₀).
        columns: for x take these entries of x₀, as if the layers before were perfect; None for the inputs that
            the compressed model has.
    """

    def __init__(self, layout: Layout, original: Layout, target: Array, columns: Array | None = None) -> None:
        super().__init__(layout)
        self.original = original
        self.target = target.astype(np.float32)
        self.columns = columns
        outputs = target.shape[1]
        self._cross: Array = np.zeros((layout.groups, outputs, layout.size))
        self._output_sum: Array = np.zeros((layout.groups, outputs))
        self._output_squares: Array = np.zeros((layout.groups, outputs))

    @property
    def output_mean(self) -> Array:
        """Mean of y, (G, outputs)."""
        mean: Array = self._output_sum / max(1, self.count)
        return mean

    @property
    def output_variance(self) -> Array:
        """Variance of y, (G, outputs)."""
        variance: Array = self._output_squares / max(1, self.count) - self.output_mean**2
        return variance

    @property
    def cross_covariance(self) -> Array:
        """Covariance of y and x, (G, outputs, d)."""
        means = self.output_mean[:, :, None] * self.mean[:, None, :]
        covariance: Array = self._cross / max(1, self.count) - means
        return covariance

    def update_pair(self, array: Array | None, original: Array) -> None:
        """Take in the compressed (unless there are ``columns``) and the original layer's input for a batch."""
        inputs = [(self.original, original)]
        if self.columns is None and array is not None:
            inputs.append((self.layout, array))
        for chunk in self._rows(inputs):
            rows_0 = chunk[0]
            rows = chunk[-1] if self.columns is None else np.ascontiguousarray(rows_0[:, :, self.columns])
            self._add(rows)
            outputs = rows_0 @ self.target.swapaxes(1, 2)  # (G, n, outputs)
            self._cross += outputs.swapaxes(1, 2) @ rows
            self._output_sum += outputs.sum(axis=1, dtype=np.float64)
            self._output_squares += np.square(outputs, dtype=np.float64).sum(axis=1)
        self._updates += 1


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
    names = list(wanted)
    own = [name for name in names if any(regression.columns is None for regression in wanted[name])]
    session, session_0 = (
        create(with_outputs(compressed.proto(), own)),
        create(with_outputs(original.proto(), names)),
    )
    for regressions in wanted.values():
        for regression in regressions:
            regression.expect(dataset.batches)
    for feeds in progress(dataset.feeds(), "reconstructing", dataset.batches):
        values, values_0 = run(session, feeds, own), run(session_0, feeds, names)
        for name in names:
            for regression in wanted[name]:
                regression.update_pair(values.get(name), values_0[name])


def _float(array: Array) -> Array:
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)
