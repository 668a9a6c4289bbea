"""Distance between the outputs of two models on the same samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onnxcomp.errors import VerificationError
from onnxcomp.runtime.values import is_float

__all__ = ["Fidelity", "FidelitySums", "Outputs", "class_output"]

Array = np.ndarray[Any, Any]
Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class Fidelity:
    """Distance between the outputs of two models on the same samples.

    Attributes:
        sqnr_db: signal to quantization noise, 10·log10(Σ r² / Σ (r - c)²) in dB; inf when equal, -inf when
            the candidate has NaN or infinite values where the reference has none. The worst output.
        cosine: Σ r·c / √(Σ r² Σ c²) over all values of an output; the worst output.
        max_error: largest |r - c| over all outputs, integer outputs included.
        top1_agreement: share of positions with the same largest class, along the last axis of the first float
            output with two axes or three; None when there is none.
        nonfinite: values that are NaN or infinite in the candidate only.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    top1_agreement: float | None
    nonfinite: int = 0

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


@dataclass
class _OutputSums:
    """What the fidelity of one output is made of."""

    signal: float = 0.0
    noise: float = 0.0
    energy: float = 0.0
    product: float = 0.0
    max_error: float = 0.0
    nonfinite: int = 0
    is_float: bool = True

    def update(self, reference: Array, candidate: Array) -> None:
        self.is_float = is_float(reference.dtype)
        r, c = reference.astype(np.float64).reshape(-1), candidate.astype(np.float64).reshape(-1)
        bad = np.isfinite(r) & ~np.isfinite(c)
        self.nonfinite += int(bad.sum())
        both = np.isfinite(r) & np.isfinite(c)
        if not both.all():
            r, c = r[both], c[both]
        error = r - c
        self.signal += float(r @ r)
        self.energy += float(c @ c)
        self.product += float(r @ c)
        self.noise += float(error @ error)
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        if self.nonfinite:
            return -math.inf
        if self.noise == 0.0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        if self.nonfinite:
            return 0.0
        if self.noise == 0.0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.energy)
        return min(1.0, max(-1.0, self.product / norms)) if norms else 0.0


@dataclass
class FidelitySums:
    """Fidelity in the making: takes in one batch of outputs of both models at a time."""

    _outputs: dict[str, _OutputSums] = field(default_factory=dict)
    _agreeing: int = 0
    _positions: int = 0

    def update(self, reference: Outputs, candidate: Outputs) -> None:
        """Take in the outputs of both models for the same feeds.

        Raises:
            VerificationError: the candidate lacks an output, or its shape differs.
        """
        for name, r in reference.items():
            if not isinstance(r, np.ndarray) or not (is_float(r.dtype) or r.dtype.kind in "iub"):
                continue
            c = candidate.get(name)
            if not isinstance(c, np.ndarray) or c.shape != r.shape:
                found = f"shape {c.shape}" if isinstance(c, np.ndarray) else "nothing"
                raise VerificationError(f"output {name!r} has {found} where the original has shape {r.shape}")
            self._outputs.setdefault(name, _OutputSums()).update(r, c)
        if (scores := class_output(reference)) is not None:
            same = reference[scores].argmax(axis=-1) == candidate[scores].argmax(axis=-1)
            self._agreeing += int(same.sum())
            self._positions += same.size

    def _ranked(self) -> list[_OutputSums]:
        """The outputs that count: the float ones, where there are any."""
        every = list(self._outputs.values())
        return [sums for sums in every if sums.is_float] or every

    def noise(self) -> float:
        """Energy of the error over that of the output, of the worst output that has any; see ``evaluate.noise``."""
        heard = [sums for sums in self._ranked() if sums.signal]
        return max((math.inf if sums.nonfinite else sums.noise / sums.signal for sums in heard), default=0.0)

    def result(self) -> Fidelity:
        """The fidelity over all batches taken in."""
        every, ranked = list(self._outputs.values()), self._ranked()
        return Fidelity(
            sqnr_db=min((sums.sqnr_db for sums in ranked), default=math.inf),
            cosine=min((sums.cosine for sums in ranked), default=1.0),
            max_error=max((math.inf if sums.nonfinite else sums.max_error for sums in every), default=0.0),
            top1_agreement=self._agreeing / self._positions if self._positions else None,
            nonfinite=sum(sums.nonfinite for sums in every),
        )


def class_output(values: Outputs) -> str | None:
    """The first float output with two or three axes and more than one value on the last: class scores."""
    for name, value in values.items():
        if isinstance(value, np.ndarray) and is_float(value.dtype) and value.ndim in (2, 3):
            return name if value.shape[-1] > 1 else None
    return None
