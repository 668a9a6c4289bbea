"""What a pass is given to work with: data, target, seed, cached analyses, progress and the decision log."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning, PassError
from onnxcomp.graph.layers import WeightedLayer
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable

__all__ = ["Context", "Decision", "Progress", "Rejected", "silent"]

T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """What a pass did to a layer (or to a node that is no weighted layer), or why it did nothing."""

    layer: str
    action: str  # "skipped", or a verb in the past: "pruned", "quantized", "permuted"
    reason: str


class Rejected(Exception):  # noqa: N818 - control flow, not an error
    """Raised inside ``ctx.attempt`` to undo it; the message is the reason that is logged."""


@dataclass
class Context:
    """State of one compilation that passes share.

    Attributes:
        target: the machine the result is for.
        data: calibration samples, or None.
        seed: of the whole compilation; see ``rng``.
        original: the model before the first pass, a Model of its own, not to be edited; or None.
        progress: wraps long loops: ``for item in ctx.progress(items, "calibrating"):``.
        timings: where a pass asks for measured time that it decides by.
        scope: name of the running pass; set by the manager.
        decisions: log of the running pass; set by the manager.
        warnings: what the user should know of the result; see ``warn``.
    """

    target: Target
    data: Dataset | None = None
    seed: int = 0
    original: Model | None = None
    progress: Progress = silent
    timings: TimingTable = field(default_factory=TimingTable)
    scope: str = ""
    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _analyses: dict[Any, Any] = field(default_factory=dict)

    # -- decisions -------------------------------------------------------------------------------------

    def act(self, layer: WeightedLayer | str, action: str, reason: str = "") -> None:
        """Log what was done to a layer."""
        self.decisions.append(Decision(_name(layer), action, reason))

    def skip(self, layer: WeightedLayer | str, reason: str) -> None:
        """Log that a layer was left alone, and why."""
        self.act(layer, "skipped", reason)

    def warn(self, message: str) -> None:
        """Tell the user what no decision about a layer says: in the report, and as an ``OnnxcompWarning``."""
        self.warnings.append(message)
        warnings.warn(message, OnnxcompWarning, stacklevel=3)

    @contextmanager
    def attempt(self, model: Model, layer: WeightedLayer | str) -> Iterator[None]:
        """Edits made inside are undone when ``Rejected`` is raised; its message becomes the layer's reason.

        Decisions logged inside are withdrawn then. Any other exception passes through.
        """
        state, logged = model.checkpoint(), len(self.decisions)
        try:
            yield
        except Rejected as reason:
            state.restore()
            self.invalidate(model)
            del self.decisions[logged:]
            self.skip(layer, str(reason))

    # -- inputs ----------------------------------------------------------------------------------------

    def require_data(self) -> Dataset:
        """The calibration data.

        Raises:
            PassError: there is none.
        """
        if self.data is None:
            raise PassError(f"{self.scope} needs calibration data; give it with --data")
        return self.data

    def rng(self) -> np.random.Generator:
        """Random numbers of the running pass: the same whatever other passes run or draw."""
        return np.random.default_rng([self.seed, zlib.crc32(self.scope.encode())])

    # -- analyses --------------------------------------------------------------------------------------

    def analysis(self, function: Callable[..., T], model: Model, *arguments: Any) -> T:
        """``function(model, *arguments)``, computed once until the model changes.

        Arguments must be hashable. Call ``invalidate`` after an edit, before asking again.
        """
        key = (function, id(model), arguments)
        if key not in self._analyses:
            self._analyses[key] = (
                model,
                function(model, *arguments),
            )  # the model: so that its id stays taken
        result: T = self._analyses[key][1]
        return result

    def invalidate(self, model: Model) -> None:
        """Forget what is known of ``model``; the manager does it after every pass that changed something."""
        for key in [key for key in self._analyses if key[1] == id(model)]:
            del self._analyses[key]


def _name(layer: WeightedLayer | str) -> str:
    return layer if isinstance(layer, str) else layer.name
