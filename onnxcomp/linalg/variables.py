"""What training changes, where that is not what a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcomp.linalg.code_grid import CodeGrid

__all__ = ["Variables", "stretch_of"]

Array = np.ndarray[Any, Any]


class Variables:
    """Arrays that an optimizer moves, and the parameters of a model that are functions of them.

    A parameter is a variable itself, or lies on a grid: then its variables are a real number for each of its elements,
    and a stretch for each scale (see ``CodeGrid``).

    Args:
        parameters: as they are, float32.
        grids: those on a grid, by name.
    """

    def __init__(self, parameters: Mapping[str, Array], grids: Mapping[str, CodeGrid]) -> None:
        self._grids = grids
        self.start: dict[str, Array] = {name: np.array(value, np.float32) for name, value in parameters.items()}
        for name, grid in grids.items():
            self.start[stretch_of(name)] = np.ones(grid.scales.shape, np.float32)

    def parameters(self, variables: Mapping[str, Array]) -> dict[str, Array]:
        """What the model reads."""
        stretches = {stretch_of(name) for name in self._grids}
        return {
            name: self._grids[name].value(value, variables[stretch_of(name)]) if name in self._grids else value
            for name, value in variables.items()
            if name not in stretches
        }

    def pull(self, variables: Mapping[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        """Gradients by the variables, of those by the parameters."""
        pulled: dict[str, Array] = {}
        for name, gradient in gradients.items():
            grid = self._grids.get(name)
            if grid is None:
                pulled[name] = gradient
            else:
                stretch = stretch_of(name)
                pulled[name], pulled[stretch] = grid.pull(variables[name], variables[stretch], gradient)
        return pulled


def stretch_of(name: str) -> str:
    """The variable of a parameter's stretches."""
    return f"{name}/stretch"
