"""A pass that rounds weights, so that a file that is compressed afterwards is smaller."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from onnxcomp import Context, Model, Pass, Stage
from onnxcomp.graph.layers import weighted_layers

__all__ = ["Round"]


class Round(Pass):
    """Round every weight to a few binary digits.

    Layers whose weights are already round are left alone.
    """

    name: ClassVar[str] = "round"
    stage: ClassVar[Stage] = Stage.SHARE

    digits: int = Field(8, ge=1, le=23, description="binary digits of the fraction that are kept")

    def run(self, model: Model, ctx: Context) -> None:
        """See the class."""
        for layer in weighted_layers(model):
            mantissa, exponent = np.frexp(layer.array())
            rounded = np.ldexp(np.round(np.ldexp(mantissa, self.digits)), exponent - self.digits)
            if np.array_equal(rounded, layer.array()):
                ctx.skip(layer, f"its weights have {self.digits} digits or less")
            else:
                layer.set_array(rounded)
                ctx.act(layer, "rounded", f"to {self.digits} digits")
