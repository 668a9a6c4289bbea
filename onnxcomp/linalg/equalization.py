"""Scales of channels with which less error is left when activations and weights are rounded to 8 bits.

An activation is rounded in steps that its widest channel asks for; a row of a weight in steps that its largest entry
asks for. A channel multiplied by s where it is made and divided by s where it is read makes the noise of rounding the
activation s times smaller for its readers, as long as it does not become the widest, and its column of the weights
s times smaller, so that the other columns may decide their steps. (Nagel et al. 2019, "Data-free quantization through
weight equalization and bias correction", arXiv:1906.04721, makes the ranges of both sides alike; Xiao et al. 2022,
"SmoothQuant", arXiv:2211.10438, weighs one against the other by an exponent. Here the expected error is minimized.)

Channels that have to have one scale are one *unit*. Scales are given as logarithms, (units,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["Activation", "Reader", "Solution", "equalize", "expected_error", "thinned"]

Array = np.ndarray[Any, Any]

_ACTIVATION = 1 / (255**2 * 12)  # variance of rounding errors, relative to the squared range
_WEIGHT = 1 / (127**2 * 12)
_SHARPNESS = (4.0, 16.0, 64.0)  # of the smooth maximum, in turn
_ITERATIONS = 60
_MOST = np.log(256.0)
_ROWS = 128  # of a weight that the search looks at; the result is judged by all
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor that is rounded in one step for all channels.

    Attributes:
        units: of its channels, (channels,).
        low, high: how far below and above zero each channel reaches, both >= 0.
        worth: the error that noise of variance 1 in the channel makes behind it.
    """

    units: Array
    low: Array
    high: Array
    worth: Array


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight whose outputs are rounded in steps of their own.

    Attributes:
        units: of its inputs, (inputs,), those of each group in turn.
        largest: largest magnitude of the entries for an output and an input, (groups, outputs, inputs / groups).
        square: mean square of each input, times the entries that it meets for an output, (inputs,).
        worth: what an error of 1 in its outputs counts.
    """

    units: Array
    largest: Array
    square: Array
    worth: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Scales of units that depend on each other.

    Attributes:
        units: those that depend on each other.
        logs: (units of the model,), zero for others.
        before, after: expected error of what is concerned.
    """

    units: Array
    logs: Array
    before: float
    after: float


def expected_error(logs: Array, activations: Sequence[Activation], readers: Sequence[Reader]) -> float:
    """Error of all outputs; rounding errors are taken for independent and evenly spread over their step."""
    return _Objective(activations, readers, len(logs))(logs, None)[0]


def equalize(
    activations: Sequence[Activation], readers: Sequence[Reader], free: Array, room: Array | None = None
) -> list[Solution]:
    """Scales that make the expected error small, for each set of units that depend on each other.

    Maxima are replaced by smooth ones, which makes every term convex in the logarithms; these are sharpened in turn.
    Deterministic.

    Args:
        activations, readers: what rounds, and what it costs.
        free: (units,), whether the scale may differ from 1.
        room: (units,), the largest logarithm of each scale; above zero for those that are free.
    """
    found = []
    most = np.full(len(free), _MOST) if room is None else np.minimum(room, _MOST)
    for rounded, reading, units in _independent(activations, readers, free):
        own, read = [activations[index] for index in rounded], [readers[index] for index in reading]
        logs, before, after = _solve(own, read, units, most)
        found.append(Solution(units, logs, before, after))
    return found


def _independent(
    activations: Sequence[Activation], readers: Sequence[Reader], free: Array
) -> list[tuple[list[int], list[int], Array]]:
    """Activations, readers and free units that have nothing to do with the others."""
    terms: list[Activation | Reader] = [*activations, *readers]
    touched = [np.unique(term.units[free[term.units]]) for term in terms]
    rows = np.repeat(np.arange(len(terms)), [len(units) for units in touched]) + len(free)
    columns = np.concatenate([*touched, np.zeros(0, int)])
    size = len(free) + len(terms)
    _, part = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), (size, size)), directed=False)
    found = []
    for label in dict.fromkeys(part[len(free) :].tolist()):
        members = [index for index in range(len(terms)) if part[len(free) + index] == label]
        units = np.flatnonzero((part[: len(free)] == label) & free)
        if len(units):
            found.append(
                (
                    [index for index in members if index < len(activations)],
                    [index - len(activations) for index in members if index >= len(activations)],
                    units,
                )
            )
    return found


def _solve(
    activations: Sequence[Activation], readers: Sequence[Reader], units: Array, most: Array
) -> tuple[Array, float, float]:
    """Logarithms of the scales, and the error without and with them."""
    count = len(most)
    exact = _Objective(activations, readers, count)
    searched = _Objective(activations, [thinned(reader, _ROWS) for reader in readers], count)
    best = np.zeros(count)
    before = least = exact(best, None)[0]
    if not (np.isfinite(before) and before > 0 and searched(best, None)[0] > 0):
        return best, before, before

    def smooth(values: Array, sharpness: float) -> tuple[float, Array]:
        logs = np.zeros(count)
        logs[units] = values
        error, gradient = searched(logs, sharpness)
        return float(np.log(error)), gradient[units] / error

    values = np.zeros(len(units))
    bounds = [(-_MOST, limit) for limit in most[units]]
    for sharpness in _SHARPNESS:
        options = {"maxiter": _ITERATIONS}
        values = minimize(
            smooth, values, args=(sharpness,), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        ).x
        logs = np.zeros(count)
        logs[units] = values
        error = exact(logs, None)[0]
        if error < least:
            best, least = logs, error
    return best, before, least


def thinned(reader: Reader, most: int) -> Reader:
    """With at most so many outputs of each group, evenly spread, each counting for several."""
    outputs = reader.largest.shape[1]
    if outputs <= most:
        return reader
    chosen = np.linspace(0, outputs - 1, most).astype(int)
    return Reader(reader.units, reader.largest[:, chosen], reader.square, reader.worth * outputs / most)


class _Objective:
    """The expected error and, with smooth maxima, its gradient by the logarithms of the scales."""

    def __init__(self, activations: Sequence[Activation], readers: Sequence[Reader], count: int) -> None:
        self._count = count
        self._activations = [
            (item, [_log(side) if side.any() else None for side in (item.low, item.high)]) for item in activations
        ]
        self._readers = [(item, _log(item.largest)) for item in readers]

    def __call__(self, logs: Array, sharpness: float | None) -> tuple[float, Array]:
        total, gradient = 0.0, np.zeros(self._count)
        for activation, sides in self._activations:
            error, slope = _activation_error(activation, sides, logs[activation.units], sharpness)
            total += error
            np.add.at(gradient, activation.units, slope)
        for reader, largest in self._readers:
            error, slope = _weight_error(reader, largest, logs[reader.units], sharpness)
            total += error
            np.add.at(gradient, reader.units, slope)
        return total, gradient


def _activation_error(
    activation: Activation, sides: Sequence[Array | None], logs: Array, sharpness: float | None
) -> tuple[float, Array]:
    """Squared step / 12, times what the readers make of it: range² · Σ worth / s²."""
    width, slope = 0.0, np.zeros(len(logs))
    for side in sides:
        if side is not None:
            top, share = _maximum(side + logs, sharpness)
            width += float(np.exp(top))
            slope += np.exp(top) * share
    costs = activation.worth * np.exp(-2 * logs)
    cost = float(costs.sum())
    return _ACTIVATION * width**2 * cost, _ACTIVATION * (2 * width * slope * cost - 2 * width**2 * costs)


def _weight_error(reader: Reader, largest: Array, logs: Array, sharpness: float | None) -> tuple[float, Array]:
    """Σ over outputs of squared step / 12, times the energy of the inputs: Σ s² · square."""
    by_group = logs.reshape(len(largest), -1)
    tops, shares = _maximum(largest - by_group[:, None], sharpness)
    steps = _WEIGHT * reader.worth * np.exp(2 * tops)  # (groups, outputs)
    energies = np.exp(2 * by_group) * reader.square.reshape(by_group.shape)
    energy, step = energies.sum(1), steps.sum(1)
    if sharpness is None:
        return float(step @ energy), np.zeros(len(logs))
    slope = 2 * step[:, None] * energies - 2 * energy[:, None] * np.einsum("go,goi->gi", steps, shares)
    return float(step @ energy), slope.reshape(-1)


def _maximum(values: Array, sharpness: float | None) -> tuple[Array, Array]:
    """Maximum along the last axis and its derivatives; a smooth one where a sharpness is given."""
    top = values.max(-1, keepdims=True)
    if sharpness is None:
        return top[..., 0], np.zeros(values.shape[-1])
    powers = np.exp(sharpness * (values - top))
    sums = powers.sum(-1, keepdims=True)
    return (top + np.log(sums) / sharpness)[..., 0], powers / sums


def _log(values: Array) -> Array:
    return np.log(np.maximum(values, _TINY))
