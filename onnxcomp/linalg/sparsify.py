"""Making weights of linear layers zero so that their outputs change least.

A layer computes y = W x of inputs with second moment H; weights X instead of W cost E‖(X - W) x‖² =
tr((X - W) H (X - W)ᵀ). Zeros are to form a pattern; which ones, and what the other weights must become, is one
problem. G independent problems (the groups of a convolution) are solved side by side: W is (G, outputs, d), H is
(G, d, d).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

from onnxcomp.linalg.gptq import damped
from onnxcomp.linalg.patterns import Pattern

__all__ = ["Score", "Splitting", "mask_by", "removal_losses"]

Array = np.ndarray[Any, Any]
Score: TypeAlias = Literal["obs", "wanda", "magnitude"]

_FIRST_PULL = 0.03  # towards the pattern, in units of diag(H)
_ITERATIONS = 40
_GROWTH = 1.1  # of the pull in each iteration
_SETTLED = 5  # iterations at least


class Splitting:
    """Masks by operator splitting: weights that suit the outputs and weights that suit the pattern pull at each other.

    Meng, Behdin, Wang and Mazumder, "ALPS: Improved optimization for highly sparse one-shot pruning for large
    language models", NeurIPS 2024 (arXiv:2406.07831): the alternating direction method of multipliers for

        minimize tr((X - W) H (X - W)ᵀ)   subject to   X = D, D has the pattern,

    with inputs scaled so that diag(H) = 1, and a pull that grows until the mask of D no longer changes. Weights
    that stand in for each other are decided on together, which scores of single weights (Wanda, Optimal Brain
    Surgeon) do not do.

    Attributes:
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
    """

    def __init__(self, W: Array, H: Array) -> None:
        # The mask is a heuristic's; whoever uses it computes its weights in double precision.
        scale = np.sqrt(np.diagonal(H, axis1=1, axis2=2))
        self._W: Array = (W * scale[:, None, :]).astype(np.float32)
        scaled = (H / (scale[:, :, None] * scale[:, None, :])).astype(np.float32)
        self._values, self._vectors = np.linalg.eigh(scaled)
        self._values = np.maximum(self._values, 0.0)
        self._WH = (self._W @ self._vectors) * self._values[:, None, :]  # W H in the basis of eigenvectors

    def mask(self, pattern: Pattern, iterations: int = _ITERATIONS, growth: float = _GROWTH) -> Array:
        """Which weights to keep. Weights of W that are zero are not kept."""
        allowed = self._W != 0
        pull, Q = np.float32(_FIRST_PULL), self._vectors
        kept = pattern.kept(np.square(self._W)) & allowed
        D, V = self._W * kept, np.zeros_like(self._W)
        for iteration in range(iterations):
            X = ((self._WH + (pull * D - V) @ Q) / (self._values[:, None, :] + pull)) @ Q.swapaxes(1, 2)
            wanted = (X + V / pull) * allowed
            before, kept = kept, pattern.kept(np.square(wanted)) & allowed
            D = wanted * kept
            V = V + pull * (X - D)
            pull = np.float32(pull * growth)
            if iteration >= _SETTLED and np.array_equal(before, kept):
                break
        mask: Array = kept
        return mask


def mask_by(score: Score, W: Array, H: Array, pattern: Pattern) -> Array:
    """Which weights to keep.

    Args:
        score: ``obs``: what the outputs lose when the other weights make up for it, see ``Splitting``; ``wanda``:
            |w|·√H_jj (Sun, Liu, Bair and Kolter 2024, "A simple and effective pruning approach for large language
            models", arXiv:2306.11695); ``magnitude``: |w|.
        W: (G, outputs, d).
        H: (G, d, d), positive definite.
        pattern: that the zeros are to have.
    """
    if score == "obs":
        return Splitting(W, H).mask(pattern)
    scores = np.square(W)
    if score == "wanda":
        scores = scores * np.diagonal(H, axis1=1, axis2=2)[:, None, :]
    kept: Array = pattern.kept(scores) & (W != 0)
    return kept


def removal_losses(W: Array, H: Array, kernel: int = 1, damping: float = 0.01) -> Array:
    """What the outputs lose when one weight goes and the others make up for it, summed over the kernel.

    w²/[H⁻¹]_jj for input j: Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain
    Surgeon". As a salience for tile matching.

    Args:
        W: (G, outputs, d), d = channels · kernel, positions fastest.
        H: (G, d, d), second moment of the inputs.
        kernel: positions of the kernel.
        damping: λ in units of the mean of diag(H).

    Returns:
        (G, outputs, channels).
    """
    uncertainty = np.diagonal(np.linalg.inv(damped(H, damping)), axis1=1, axis2=2)
    losses = np.square(W) / uncertainty[:, None, :]
    summed: Array = losses.reshape(*W.shape[:2], -1, kernel).sum(axis=3)
    return summed
