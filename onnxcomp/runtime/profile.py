"""What ONNX Runtime's profiler tells: time by operator, and shapes inside the bodies of If, Loop and Scan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort

from onnxcomp.files import scratch_folder
from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, Loadable, open_session, run

__all__ = ["OperatorTime", "body_shapes", "time_by_operator"]

Shape = tuple[int, ...]

_FATAL = 4
_WITH_BODIES = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class OperatorTime:
    """Of all nodes of one operator, after ONNX Runtime's own optimizations.

    Attributes:
        op: the operator; fused ones have names of ONNX Runtime's.
        nodes: how many run.
        ms: milliseconds that one run of the model spends in them.
    """

    op: str
    nodes: int
    ms: float


def time_by_operator(model: Model, feeds: Feeds, threads: int = 1, runs: int = 5) -> list[OperatorTime]:
    """Where the time goes, longest first: the median of some runs after a warm-up.

    Nodes with bodies are left out: the nodes in the bodies are counted.

    Args:
        model: a model that runs on ``feeds``.
        feeds: one array for each input.
        threads: intra-op threads.
        runs: to measure.
    """
    each: dict[tuple[str, str, str], list[float]] = {}
    for event in _kernel_events(model, feeds, threads, runs + 1, optimize=True):
        details = event["args"]
        if details["op_name"] not in _WITH_BODIES:
            node = (details["op_name"], event["name"], details["node_index"])
            each.setdefault(node, []).append(event["dur"] / 1e3)
    totals: dict[str, list[float]] = {}
    for (op, *_), durations in each.items():
        calls = max(1, len(durations) // (runs + 1))  # more than one inside a loop
        kept = sorted(durations[calls:] or durations)
        totals.setdefault(op, []).append(kept[len(kept) // 2] * calls)
    times = [OperatorTime(op, len(spent), sum(spent)) for op, spent in totals.items()]
    return sorted(times, key=lambda entry: (-entry.ms, entry.op))


def body_shapes(model: Model, feeds: Feeds) -> dict[int, Shape]:
    """Shapes of the tensors inside bodies that one run executes, which no output of the model can show.

    By ``id`` of the tensor, for names repeat between bodies. What a loop computes has its shape of the first
    iteration. Empty for a model without bodies.

    Args:
        model: a model that runs on ``feeds``.
        feeds: one array for each input.
    """
    tensors: dict[str, gs.Node] = {}
    skeleton = model.skeleton()
    for index, (node, message, inner) in enumerate(_nodes(model.graph, skeleton.proto.graph)):
        message.name = f"node{index}"
        if inner:
            tensors[message.name] = node
    if not tensors:
        return {}
    shapes: dict[int, Shape] = {}
    for event in _kernel_events(skeleton, feeds, 1, 1, optimize=False):
        ran = tensors.get(event["name"].removesuffix("_kernel_time"))
        if ran is not None:
            _note(shapes, list(ran.inputs), event["args"].get("input_type_shape", []))
            _note(shapes, list(ran.outputs), event["args"].get("output_type_shape", []))
    return shapes


def _nodes(
    graph: gs.Graph, proto: onnx.GraphProto, inner: bool = False
) -> Iterator[tuple[gs.Node, onnx.NodeProto, bool]]:
    """Every node with what it was exported to, and whether it stands in a body."""
    for node, message in zip(graph.nodes, proto.node, strict=True):
        yield node, message, inner
        for attribute in message.attribute:
            body = node.attrs.get(attribute.name)
            if isinstance(body, gs.Graph):
                yield from _nodes(body, attribute.g, inner=True)


def _note(shapes: dict[int, Shape], tensors: list[gs.Tensor], described: list[dict[str, list[int]]]) -> None:
    """What is absent, or no tensor, has no entry, so the two must be of one length."""
    present = [tensor for tensor in tensors if tensor.name]
    if len(present) == len(described):
        for tensor, entry in zip(present, described, strict=True):
            for dims in entry.values():
                shapes.setdefault(id(tensor), tuple(dims))


def _kernel_events(model: Loadable, feeds: Feeds, threads: int, runs: int, optimize: bool) -> Iterator[dict[str, Any]]:
    """One event for each execution of each node, in the order of time."""
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_profiling = True
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    with scratch_folder() as folder:
        options.profile_file_prefix = str(folder / "profile")
        session = open_session(model, options)
        for _ in range(runs):
            run(session, feeds)
        with Path(session.end_profiling()).open() as lines:  # one event each; loops make millions of them
            for line in lines:
                event = json.loads(text) if (text := line.strip().rstrip(",")).startswith("{") else {}
                if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                    yield event
