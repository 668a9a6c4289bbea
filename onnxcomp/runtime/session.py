"""ONNX Runtime sessions: quiet, deterministic, and with errors that a person can read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.container.aside import aside, restore_into
from onnxcomp.container.format import is_packed
from onnxcomp.errors import SessionError
from onnxcomp.model import Model, one_line
from onnxcomp.runtime.values import run_session
from onnxcomp.storage.messages import drop_unneeded_nodes
from onnxcomp.storage.payload import Payload
from onnxcomp.storage.reader import split
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Feeds", "Loadable", "all_cores", "create", "load_session", "open_session", "reason", "run", "with_outputs"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Loadable = Model | Skeleton | onnx.ModelProto | bytes

# ONNX Runtime takes weights from files below one folder only.
_ROOT = os.path.abspath(os.sep)

# What ONNX Runtime puts around its messages: an error code, file and line, the C++ function.
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r"(?:\S*/onnxruntime/\S+|\b\w+\.(?:cc|h)):\d+ ")
_FUNCTION = re.compile(
    r"(?:[\w:<>,&*~]+ )*[\w:<>,&*~]+::[\w~]+\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? "
)

_FATAL = 4  # ONNX Runtime raises what it logs as errors; saying it once is enough


def create(
    model: Loadable,
    threads: int = 0,
    optimize: bool = True,
    providers: Iterable[str] = ("CPUExecutionProvider",),
    config: Mapping[str, str] | None = None,
    shapes_first: bool = False,
) -> ort.InferenceSession:
    """A session that runs ``model``.

    Args:
        model: a model, its skeleton or message, or the bytes of its file.
        threads: intra-op threads; 0, for analyses, takes every core and less memory, and threads do not spin.
        optimize: let ONNX Runtime rewrite the graph, as a deployment would.
        providers: execution providers in order of preference.
        config: further session configuration entries of ONNX Runtime.
        shapes_first: run every Shape as soon as it can be, so that nothing stays in memory for its sake.

    Raises:
        SessionError: ONNX Runtime refuses the model; the message holds its reason.
    """
    options = _options(threads, optimize, config or {})
    if shapes_first:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = True  # the shapes would split up what the allocator of the system gets back
    return open_session(model, options, providers)


def open_session(
    model: Loadable, options: ort.SessionOptions, providers: Iterable[str] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """A session with these options. ONNX Runtime maps the weights of a large model from the files they are in.

    Raises:
        InputError: the weights of a large model find no room in temporary files.
        SessionError: ONNX Runtime refuses the model; the message holds its reason.
    """
    path = model.path if isinstance(model, Model) else None
    if isinstance(model, Model):
        model = model.skeleton()
    if isinstance(model, onnx.ModelProto):
        model = split(model)
    data = model
    if isinstance(model, Skeleton):
        if model.is_large:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", _ROOT)
            data = model.placed(_in_root).SerializeToString()
        else:
            data = model.serialize()
    try:
        return ort.InferenceSession(data, options, providers=list(providers))
    except Exception as error:  # the binding raises a dozen classes that share no base
        remedy = f"; export {path.name} again" if path else ""
        raise SessionError(f"{path or 'the model'}: ONNX Runtime cannot load it: {reason(error)}{remedy}") from None


def load_session(
    path: str | os.PathLike[str],
    options: ort.SessionOptions | None = None,
    providers: Iterable[str] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """ONNX Runtime's session of a model's file, plain or packed.

    A packed model is restored into temporary files, which are removed as soon as the session holds the model.

    Example::

        session = onnxcomp.load_session("net.onnxz")
        outputs = session.run(None, feeds)

    Args:
        path: an ``.onnx`` or ``.onnxz`` file.
        options: of the session; default: ONNX Runtime's.
        providers: execution providers in order of preference.

    Raises:
        InputError: the packed model is damaged, or there is no room to restore it.
        SessionError: the file is missing, or ONNX Runtime refuses the model; the message holds its reason.
    """
    path = Path(path)
    with aside(path) if is_packed(path) else nullcontext() as folder:
        plain = path if folder is None else restore_into(path, folder)
        try:
            return ort.InferenceSession(os.fspath(plain), options, providers=list(providers))
        except Exception as error:  # as above
            said = reason(error).replace(os.fspath(plain), os.fspath(path))
            raise SessionError(f"{path}: ONNX Runtime cannot load it: {said}") from None


def run(session: ort.InferenceSession, feeds: Feeds, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Outputs by name: arrays, except where the model returns sequences, maps or empty optionals.

    Args:
        session: from ``create``.
        feeds: one array for each input.
        names: outputs to return; all by default.

    Raises:
        SessionError: ONNX Runtime refuses the feeds or fails on them.
    """
    wanted = [output.name for output in session.get_outputs()] if names is None else list(names)
    options = ort.RunOptions()
    options.log_severity_level = _FATAL
    try:
        values = run_session(session, wanted, feeds, options)
    except Exception as error:  # as above
        raise SessionError(f"ONNX Runtime cannot run the model: {reason(error)}") from None
    return dict(zip(wanted, values, strict=True))


def with_outputs(model: Skeleton, names: Iterable[str]) -> Skeleton:
    """The model with these tensors of its main graph as its only outputs, less the nodes they do not need.

    ONNX Runtime infers their types itself and keeps their values through its own optimizations. Nodes that
    lead to no output it would run all the same. The result shares nothing but weights with ``model``.
    """
    changed = model.copied()
    graph = changed.graph
    typed = {value.name: value for value in graph.output}
    outputs = [typed.get(name) or onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    drop_unneeded_nodes(graph)
    return Skeleton(changed, model.payloads)


def all_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reason(error: BaseException) -> str:
    """ONNX Runtime's message without its error codes and source locations, on one line."""
    text = " ".join(str(error).split())
    for noise in (_CODE, _PLACE, _FUNCTION):
        text = noise.sub("", text)
    return one_line(Exception(text)) if text else one_line(error)


def _options(threads: int, optimize: bool, config: Mapping[str, str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or all_cores()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if threads == 0:
        # Threads that spin while they wait take the cores from NumPy between runs. The arena keeps what the
        # largest run needed, and doubles what it asks for.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _in_root(payload: Payload) -> tuple[str, int]:
    """Where ONNX Runtime is to find a weight; one in memory is put into a file for it."""
    place = payload.in_file()
    return os.path.relpath(place.source.path, _ROOT), place.offset
