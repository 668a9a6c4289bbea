"""The kinds of sparsity that a weight can be given, by name, and the layers that can have them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.linalg.patterns import Blocks, Elements, NofM, Pattern

__all__ = ["SparseForm"]

_LARGEST_M = 32
_FEW_WEIGHTS = 16  # of an output; what is left of them has nothing to make up with
_N_OF_M = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"block\((\d+),\s*(\d+)\)")


@dataclass(frozen=True)
class SparseForm:
    """Which weights become zero together.

    Attributes:
        outputs, channels: of a block; 1 by 1 for single elements.
        n, m: at most n of m neighbouring input channels are left; 0 of 0 where that is not asked for.
    """

    outputs: int = 1
    channels: int = 1
    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> SparseForm:
        """Of ``element``, ``N:M`` or ``block(outputs,channels)``.

        Raises:
            ValueError: it is none of these.
        """
        if text == "element":
            return cls()
        if found := _N_OF_M.fullmatch(text):
            n, m = map(int, found.groups())
            if not 0 < n < m <= _LARGEST_M:
                raise ValueError(f"{text!r} keeps {n} of {m} weights; N:M needs 0 < N < M <= {_LARGEST_M}")
            return cls(n=n, m=m)
        if found := _BLOCK.fullmatch(text):
            outputs, channels = map(int, found.groups())
            if min(outputs, channels) < 1:
                raise ValueError(f"{text!r} has an empty side; block(outputs,channels) needs 1 or more of each")
            return cls(outputs, channels)
        raise ValueError(f"{text!r} is not known; write channel, element, 2:4 (or another N:M) or block(8,8)")

    @property
    def share(self) -> float | None:
        """Of weights that are zero, where the form says it."""
        return 1.0 - self.n / self.m if self.m else None

    def pattern(self, layer: WeightedLayer, share: float) -> Pattern:
        """For a layer's matrix, and that share of zeros where the form leaves it open."""
        kernel = math.prod(layer.kernel)
        if self.m:
            return NofM(self.n, self.m, kernel)
        if self.outputs * self.channels > 1:
            return Blocks(share, self.outputs, self.channels, kernel)
        return Elements(share)

    def obstacle(self, layer: WeightedLayer) -> str | None:
        """Why the layer cannot be made sparse."""
        if layer.nested:
            return f"it lies {layer.place}, where inputs are not observed"
        if layer.shared or layer.quantized:
            return f"its weight is {'shared' if layer.shared else 'quantized'}"
        if layer.kind == "other":
            return f"the weight of {layer.op} is no matrix whose other entries could make up for zeros"
        if not layer.finite:
            return "it holds NaN or infinite values"
        return self._too_small(layer)

    def _too_small(self, layer: WeightedLayer) -> str | None:
        _, outputs, inputs = layer.matrix().shape
        kernel = math.prod(layer.kernel)
        channels = inputs // kernel
        if inputs <= _FEW_WEIGHTS:
            return f"an output has {inputs} weights, too few to make up for zeros"
        if channels < self.m:
            return f"it reads {channels} channels, fewer than {self.m}"
        if outputs < self.outputs or channels < self.channels:
            return f"its {outputs} x {channels} channels are smaller than a block"
        return None
