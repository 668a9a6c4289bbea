"""The first runs of a model that nobody vouches for: they end, and do not take all memory.

A small file can hold an endless loop, or make tensors of any size out of nothing. What has run once within bounds does
so again: only the first runs of a model, and nodes that are run on their own, need this.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnxcomp.codec import nested_graphs
from onnxcomp.errors import SessionError
from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, create, reason
from onnxcomp.runtime.values import run_session

__all__ = ["MEMORY", "Trial"]

MEMORY = 2**29
"""Bytes that a limited trial may hold, the model's weights included."""

_LARGE = 2**26  # bytes of weights; no small file makes up so many, so such models run without a limit
_BYTES_A_SECOND = 2e6  # of weights, for which a model gets more time
_SHARED = "session.use_env_allocators"
_SHRINK = "memory.enable_memory_arena_shrinkage"
_FATAL = 4


class Trial:
    """A session for the first runs of a model, unoptimized.

    Args:
        model: any model.
        seconds: of wall clock for all runs together; a model gets one more for every 2 MB of weights.
        limited: whether they may hold ``MEMORY`` bytes at most; models with over 64 MB of weights are not.
        threads: as of ``session.create``.

    Attributes:
        seconds: what it got.

    Raises:
        SessionError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: Model | onnx.ModelProto, seconds: float, limited: bool = True, threads: int = 0) -> None:
        weights = _weight_bytes(model.graph) if isinstance(model, Model) else 0
        self.seconds = seconds + weights / _BYTES_A_SECOND
        self._limited = limited and weights <= _LARGE and _limit_memory()
        self._session = create(model, threads, optimize=False, config={_SHARED: "1"} if self._limited else {})
        self._end = time.perf_counter() + self.seconds

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() >= self._end

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name.

        Raises:
            SessionError: ONNX Runtime fails on the feeds, or time or memory do not suffice.
        """
        options = ort.RunOptions()
        options.log_severity_level = _FATAL
        if self._limited:
            options.add_run_config_entry(_SHRINK, "cpu:0")
        names = [output.name for output in self._session.get_outputs()]
        # It ends before the next node then, in the bodies of loops too.
        timer = threading.Timer(max(self._end - time.perf_counter(), 0.0), setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            values = run_session(self._session, names, feeds, options)
        except Exception as error:  # the binding raises a dozen classes that share no base
            raise SessionError(f"ONNX Runtime cannot run the model: {self._reason(error)}") from None
        finally:
            timer.cancel()
        return dict(zip(names, values, strict=True))

    def _reason(self, error: Exception) -> str:
        if self.over:
            return f"it does not end within the {self.seconds:.0f} s allowed for that"
        if "Available memory of" in str(error):
            return f"it needs more than the {MEMORY >> 20} MB of memory allowed for that"
        return reason(error)


@cache
def _limit_memory() -> bool:
    """Make an allocator with a limit, for the sessions that are to share it; false where there is one already."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # It grows in powers of two (strategy 0): a loop that keeps small tensors would else take minutes to clean up.
    arena: Mapping[str, int] = {"max_mem": MEMORY, "arena_extend_strategy": 0, "initial_chunk_size_bytes": 2**20}
    try:
        ort.create_and_register_allocator(place, ort.OrtArenaCfg({**arena, "max_dead_bytes_per_chunk": 2**20}))
    except Exception:  # the program that this is embedded in has registered its own
        return False
    return True


def _weight_bytes(graph: gs.Graph) -> int:
    """Bytes of constants as the file holds them: a sparse one may stand for much more."""
    found: dict[int, int] = {}
    for nested in nested_graphs(graph):
        for node in nested.nodes:
            for tensor in (*node.inputs, *node.attrs.values()):
                if isinstance(tensor, gs.Constant):
                    values = tensor._values
                    sparse = isinstance(getattr(values, "tensor", None), onnx.SparseTensorProto)
                    found[id(tensor)] = values.tensor.ByteSize() if sparse else values.nbytes
    return sum(found.values())
