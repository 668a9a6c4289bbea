"""Models whose channels are rescaled, and what tells whether they compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcomp.graph.rescaling import ScaleUnits
from onnxcomp.graph.scaling import follow_scales
from onnxcomp.graph.scaling_rules import SCALING_RULES
from onnxcomp.model import Model
from onnxcomp.runtime import session
from onnxcomp.runtime.shapes import observed

__all__ = ["assert_same", "rescale_at_random", "run", "units_of"]

Array = np.ndarray[Any, Any]


def run(model: Model, feeds: dict[str, Array]) -> Array:
    onnx.checker.check_model(model.proto(), full_check=True)
    return np.asarray(next(iter(session.run(session.create(model, optimize=False), feeds).values())))


def assert_same(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * (1e-3 + np.abs(expected).max()))


def units_of(model: Model, feeds: dict[str, Array]) -> ScaleUnits:
    one = {name: value[:1] for name, value in feeds.items()}
    return ScaleUnits(follow_scales(model, observed(model, one), SCALING_RULES))


def rescale_at_random(model: Model, feeds: dict[str, Array], seed: int = 0) -> ScaleUnits:
    """Give every free unit some scale between 1/4 and 4."""
    units = units_of(model, feeds)
    scales = np.exp2(np.random.default_rng(seed).uniform(-2, 2, units.count))
    units.rescale(np.where(units.free, scales, 1.0))
    return units
