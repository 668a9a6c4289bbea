"""Operators that the evaluator of onnx computes slowly, or in float32 only, for float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from scipy import special

__all__ = ["OPERATORS"]

Array = np.ndarray[Any, Any]


class Conv(OpRun):
    """Place by place of the kernel."""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        rank, groups = w.ndim - 2, given.get("group") or 1
        strides, dilations = (given.get(name) or [1] * rank for name in ("strides", "dilations"))
        assert given.get("auto_pad") in (None, "NOTSET")
        pads = given.get("pads") or [0] * (2 * rank)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
        spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        out = [(e - span) // s + 1 for e, span, s in zip(padded.shape[2:], spans, strides, strict=True)]
        inputs = padded.reshape(len(x), groups, -1, *padded.shape[2:])
        weights = w.reshape(groups, -1, *w.shape[1:])
        total = np.zeros((len(x), groups, weights.shape[1], int(np.prod(out))))
        for place in itertools.product(*map(range, w.shape[2:])):
            starts = [p * d for p, d in zip(place, dilations, strict=True)]
            window = tuple(
                slice(start, start + (o - 1) * s + 1, s) for start, o, s in zip(starts, out, strides, strict=True)
            )
            seen = inputs[(..., *window)].reshape(*inputs.shape[:3], -1)
            total += np.matmul(weights[(..., *place)], seen)
        result = total.reshape(len(x), -1, *out)
        return (result if b is None else result + b.reshape(-1, *[1] * rank),)


class Erf(OpRun):
    """Of any precision."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.asarray(special.erf(x)),)


OPERATORS: list[type[OpRun]] = [Conv, Erf]
"""For ``ReferenceEvaluator(new_ops=…)``."""
