"""Losses and gradients on batches: the backward graph, made for the shapes that come, in ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.errors import SessionError
from onnxcomp.gradient import Derivative, Term, differentiate
from onnxcomp.graph.inferred import infer_types
from onnxcomp.model import Model
from onnxcomp.runtime.session import Feeds, all_cores, reason
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.traced import Traced, trace
from onnxcomp.storage.messages import drop_unneeded_nodes, keep_named

__all__ = ["Gradients", "Step"]

Array = np.ndarray[Any, Any]

_MOST_COMPILED = 16  # graphs for different shapes that are kept
# Part of a gradient's norm by which the fast form may differ. Sums in another order change what lies next to the corner
# of a ReLU (seen: 0.001) or between two codes (0.02); weights laid out wrongly would change everything.
_SAME = 0.1


@dataclass(frozen=True)
class Step:
    """What one run returns.

    Attributes:
        loss: the mean over the batch.
        gradients: by name of the parameter.
    """

    loss: float
    gradients: dict[str, Array]


class Gradients:
    """Computes the gradients of a sum of losses by some parameters of a model.

    Args:
        model: operator set 13 or later, no functions.
        parameters: names of float32 initializers to differentiate by.
        terms: the losses.
        threads: 0 for all cores.
    """

    def __init__(self, model: Model, parameters: Sequence[str], terms: Sequence[Term], threads: int = 0) -> None:
        self._model = model
        self._proto = model.proto()
        self._parameters = tuple(parameters)
        self._terms = tuple(terms)
        self._threads = threads
        self._inputs = {value.name for value in self._proto.graph.input}
        self._compiled: dict[tuple[tuple[str, tuple[int, ...]], ...], _Compiled] = {}

    @property
    def parameters(self) -> tuple[str, ...]:
        """That are asked for."""
        return self._parameters

    def frozen(self, feeds: Feeds) -> dict[str, str]:
        """Parameters without a gradient, and why."""
        return self._for(feeds).derivative.frozen

    def shapes(self, feeds: Feeds) -> dict[str, tuple[int, ...]]:
        """Of the tensors of the terms."""
        return self._for(feeds).watched

    def step(self, values: Mapping[str, Array], feeds: Feeds, targets: Mapping[str, Array]) -> Step:
        """Loss and gradients.

        Args:
            values: of the parameters.
            feeds: one array for each input.
            targets: by name of the tensor of the term.

        Raises:
            SessionError: ONNX Runtime fails on them.
        """
        return self._for(feeds).step(values, feeds, targets)

    def loss(self, values: Mapping[str, Array], feeds: Feeds, targets: Mapping[str, Array]) -> float:
        """The loss alone."""
        return self._for(feeds).loss(values, feeds, targets)

    def _for(self, feeds: Feeds) -> _Compiled:
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}  # a part may read fewer
        key = tuple(sorted((name, tuple(value.shape)) for name, value in feeds.items()))
        if key not in self._compiled:
            if len(self._compiled) >= _MOST_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[key] = self._compile(feeds)
        return self._compiled[key]

    def _compile(self, feeds: Feeds) -> _Compiled:
        forward = _fixed(self._proto, feeds)
        try:
            shapes = observed(Model.from_proto(forward), feeds)
        except SessionError:  # a branch that these shapes never take need not suit them
            forward = self._proto
            shapes = observed(self._model, feeds)
        types = {name: kind.element for name, kind in infer_types(Model.from_proto(forward)).items()}
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in forward.graph.initializer}
        derivative = differentiate(forward, shapes, types, self._parameters, self._terms)
        return _Compiled(derivative, shapes, {term.tensor: shapes[term.tensor] for term in self._terms}, self._threads)


class _Compiled:
    """The backward graph for one set of shapes, and the graph of the loss alone: each is made when it is first run."""

    def __init__(
        self,
        derivative: Derivative,
        shapes: Mapping[str, tuple[int, ...]],
        watched: dict[str, tuple[int, ...]],
        threads: int,
    ) -> None:
        self.derivative = derivative
        self.watched = watched
        self._constants = {name: shapes[name] for name in _weights_of_convolutions(derivative)}
        self._threads = threads

    def step(self, values: Mapping[str, Array], feeds: Feeds, targets: Mapping[str, Array]) -> Step:
        loss, *found = self._backward.run(self._given(values, feeds, targets))
        return Step(float(loss), dict(zip(self.derivative.gradients, found, strict=True)))

    def loss(self, values: Mapping[str, Array], feeds: Feeds, targets: Mapping[str, Array]) -> float:
        return float(self._forward.run(self._given(values, feeds, targets))[0])

    def _given(self, values: Mapping[str, Array], feeds: Feeds, targets: Mapping[str, Array]) -> dict[str, Array]:
        given = dict(feeds) | {self.derivative.targets[tensor]: target for tensor, target in targets.items()}
        return given | {name: values[name] for name in self.derivative.gradients}

    @functools.cached_property
    def _backward(self) -> _Program:
        wanted = [self.derivative.loss, *self.derivative.gradients.values()]
        return _Program(self.derivative.model, wanted, wanted, self._constants, self._threads)

    @functools.cached_property
    def _forward(self) -> _Program:
        # ONNX Runtime runs all nodes of a graph, whatever outputs are asked for.
        forward = onnx.ModelProto()
        forward.CopyFrom(self.derivative.model)
        keep_named(forward.graph.output, {self.derivative.loss, *self.watched})
        keep_named(forward.graph.initializer, drop_unneeded_nodes(forward.graph))
        return _Program(forward, [self.derivative.loss], [*self.watched], self._constants, self._threads)


class _Program:
    """A graph in ONNX Runtime, in the fast form of ``trace`` where there is one.

    Args:
        model: with inputs for the parameters.
        wanted: names of the outputs that a run returns.
        compared: names of outputs by which the fast form is judged.
        constants: shapes of the parameters that the fast form takes for constants, by name.
        threads: 0 for all cores.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        wanted: Sequence[str],
        compared: Sequence[str],
        constants: Mapping[str, tuple[int, ...]],
        threads: int,
    ) -> None:
        self._model = model
        self._wanted, self._compared = wanted, compared
        self._threads = threads
        self._plain: ort.InferenceSession | None = None
        self._checked = False
        self._fast: Traced | None = None
        if constants:
            self._fast = trace(model, constants, _options(threads), _options(threads, optimize=False))

    def run(self, given: Mapping[str, Array]) -> list[Array]:
        """The wanted outputs for these inputs."""
        if self._fast is not None and not self._checked:
            self._check(self._fast, given)
        if self._fast is None:
            return _run(self._plain_session(), self._wanted, given)
        return _run(self._fast.session, self._wanted, dict(given) | self._fast.feeds(given))

    def _check(self, fast: Traced, given: Mapping[str, Array]) -> None:
        """Trust the fast form when it gives the same once."""
        self._checked = True
        # What a session returns keeps all of its memory, as much as the other will take: copies do not.
        plain = [found.copy() for found in _run(self._plain_session(), self._compared, given)]
        self._plain = None
        try:
            found = _run(fast.session, self._compared, dict(given) | fast.feeds(given))
        except SessionError:
            self._fast = None
            return
        if not all(_close(one, other) for one, other in zip(found, plain, strict=True)):
            self._fast = None

    def _plain_session(self) -> ort.InferenceSession:
        if self._plain is None:
            data = self._model.SerializeToString()
            try:
                self._plain = ort.InferenceSession(data, _options(self._threads), providers=["CPUExecutionProvider"])
            except Exception as error:  # the binding raises a dozen classes that share no base
                raise SessionError(f"ONNX Runtime cannot load the graph of the gradients: {reason(error)}") from None
        return self._plain


def _run(session: ort.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.RunOptions()
    options.log_severity_level = 4
    taken = {value.name for value in session.get_inputs()}
    try:
        return list(session.run(list(names), {name: value for name, value in feeds.items() if name in taken}, options))
    except Exception as error:  # as above
        raise SessionError(f"ONNX Runtime cannot compute the gradients: {reason(error)}") from None


def _close(one: Array, other: Array) -> bool:
    return bool(np.linalg.norm(one - other) <= _SAME * np.linalg.norm(other) + 1e-12)


def _options(threads: int, optimize: bool = True) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or all_cores()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # A plan for the whole run asks for all of its memory anew in the second run, and is not faster.
    options.enable_mem_pattern = False
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    # What is quantized is computed in float, as its derivative assumes.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Threads that spin while they wait take the cores from NumPy between runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _weights_of_convolutions(derivative: Derivative) -> list[str]:
    """Parameters that convolutions read: what ONNX Runtime lays out anew where it is constant."""
    found = {
        name: None
        for node in derivative.model.graph.node
        if node.op_type == "Conv"
        for name in node.input[1:]
        if name in derivative.gradients
    }
    return list(found)


def _fixed(proto: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """The model with the shapes of these feeds declared, and no others."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in feeds:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, feeds[value.name].shape))
    for value in fixed.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return fixed
