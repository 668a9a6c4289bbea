"""From a model to one graph that returns a loss and its gradients: reverse-mode differentiation in plain ONNX."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxcomp.gradient.objective import Term
from onnxcomp.gradient.rules import NotDifferentiableError, rule_of
from onnxcomp.gradient.tape import Operation, Tape
from onnxcomp.storage.messages import drop_unneeded_nodes, keep_named

__all__ = ["Derivative", "differentiate"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Derivative:
    """A loss and its gradients as one model.

    Attributes:
        model: inputs are those of the original, the parameters (under their own names) and the targets; outputs are
            the loss (a scalar), one gradient for each parameter, and the watched tensors of the terms.
        loss: name of the output.
        gradients: for each parameter that has one, the name of the output.
        targets: for each term, by the name of its tensor, the name of the input that takes its target.
        frozen: why the others have none.
    """

    model: onnx.ModelProto
    loss: str
    gradients: dict[str, str]
    targets: dict[str, str]
    frozen: dict[str, str]


def differentiate(
    forward: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    types: Mapping[str, int],
    parameters: Sequence[str],
    terms: Sequence[Term],
) -> Derivative:
    """Append the backward graph of a sum of losses to a model.

    A parameter has a gradient where every path from it to the loss does; one path through an operator without a rule
    freezes it, because the rest would point in a wrong direction.

    Args:
        forward: of operator set 13 or later, without model-local functions; not changed.
        shapes: of all its tensors, as they are in the runs to come.
        types: their element types, as numbers of ``onnx.TensorProto``.
        parameters: names of float32 initializers.
        terms: what is to become small.
    """
    barred: dict[tuple[int, int | None], str] = {}
    while True:
        try:
            return _Backward(forward, shapes, types, parameters, terms, barred).result()
        except _Barred as bar:
            barred[bar.place] = bar.reason


class _Barred(Exception):  # noqa: N818 - control flow, not an error
    """No gradient goes through a node (or towards one of its inputs); what is behind it has to be planned anew."""

    def __init__(self, place: tuple[int, int | None], reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


@dataclass
class _Backward:
    """One attempt, in which these places are known to be barred."""

    forward: onnx.ModelProto
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    parameters: Sequence[str]
    terms: Sequence[Term]
    barred: Mapping[tuple[int, int | None], str]
    reasons: dict[str, str] = field(default_factory=dict)  # of tensors that no gradient may come from

    def result(self) -> Derivative:
        graph = self.forward.graph
        self.reaching = _reaching(graph, {term.tensor for term in self.terms})
        self._find_reasons()
        trained = [name for name in self.parameters if name in self.reaching and name not in self.reasons]
        self.depending = self._depending(trained)
        model = onnx.ModelProto()
        model.CopyFrom(self.forward)
        del model.graph.output[:]
        tape = Tape(model.graph, _opset(model))
        grads, loss, targets = self._start(tape)
        if trained:
            self._walk(tape, grads, set(trained))
        gradients = {name: _sum(tape, grads[name]) for name in trained if grads[name]}
        _finish(model, loss, gradients, self.shapes, [term.tensor for term in self.terms])
        for name, target in targets.items():
            model.graph.input.append(onnx.helper.make_tensor_value_info(target, *self._target_type(name)))
        frozen = {name: self._why(name) for name in self.parameters if name not in gradients}
        return Derivative(model, loss, gradients, targets, frozen)

    def _target_type(self, tensor: str) -> tuple[int, Shape]:
        term = next(term for term in self.terms if term.tensor == tensor)
        return term.target_type(self.shapes[tensor])

    def _why(self, parameter: str) -> str:
        return self.reasons.get(parameter, "the loss does not depend on it")

    # -- planning --------------------------------------------------------------------------------------

    def _carries(self, name: str) -> bool:
        """Whether a gradient can belong to the tensor: to a number, or to the code that QuantizeLinear gives one."""
        return bool(name) and (self.types.get(name) in _FLOATS or name in self._codes)

    def _may_carry(self, name: str) -> bool:
        """The same, or its type is not known: it comes of an operator of another domain."""
        return bool(name) and (self._carries(name) or name not in self.types)

    def _find_reasons(self) -> None:
        """Walk back from the loss: tensors behind a barred place are barred, with its reason."""
        self._codes = {node.output[0] for node in self.forward.graph.node if node.op_type == "QuantizeLinear"}
        for index in reversed(range(len(self.forward.graph.node))):
            node = self.forward.graph.node[index]
            outputs = [name for name in node.output if name in self.reaching and self._may_carry(name)]
            if not outputs:
                continue
            reason = self._reason(index, node, outputs)
            for position, name in enumerate(node.input):
                why = reason or self.barred.get((index, position))
                if why and self._may_carry(name):
                    self.reasons.setdefault(name, why)

    def _reason(self, index: int, node: onnx.NodeProto, outputs: Sequence[str]) -> str | None:
        where = f"{node.op_type} {node.name or node.output[0]}"
        for name in outputs:
            if name in self.reasons:
                return self.reasons[name]
            if self.types.get(name, _FLOAT) != _FLOAT and name not in self._codes:
                return f"{where} computes with another type than float32"
        if (index, None) in self.barred:
            return self.barred[index, None]
        if rule_of(node.domain, node.op_type) is None:
            return f"there is no derivative of {where}"
        return None

    def _depending(self, trained: Iterable[str]) -> set[str]:
        """Tensors that change with a trained parameter."""
        depending = set(trained)
        for node in self.forward.graph.node:
            if depending.intersection(node.input):
                depending.update(name for name in node.output if self._carries(name))
        return depending

    # -- writing ---------------------------------------------------------------------------------------

    def _start(self, tape: Tape) -> tuple[dict[str, list[str]], str, dict[str, str]]:
        """The loss, and the gradients of the tensors that it is of."""
        grads: dict[str, list[str]] = defaultdict(list)
        losses: list[str] = []
        targets: dict[str, str] = {}
        for term in self.terms:
            targets[term.tensor] = tape.name("target")
            loss, grad = term.write(tape, self.shapes[term.tensor], targets[term.tensor])
            losses.append(loss)
            grads[term.tensor].append(grad)
        return grads, _sum(tape, losses), targets

    def _walk(
        self,
        tape: Tape,
        grads: dict[str, list[str]],
        trained: set[str],
    ) -> None:
        constants = _Constants(self.forward.graph, trained)
        for index in reversed(range(len(self.forward.graph.node))):
            node = self.forward.graph.node[index]
            wanted = frozenset(
                position for position, name in enumerate(node.input) if name in self.depending and self._carries(name)
            )
            given = [_sum(tape, grads[name]) if grads.get(name) else None for name in node.output]
            if not wanted or not any(given):
                continue
            rule = rule_of(node.domain, node.op_type)
            assert rule is not None  # else its outputs would be barred
            where = f"{node.op_type} {node.name or node.output[0]}"
            try:
                found = rule(tape, Operation(node, self.shapes, wanted, constants, self.types), given)
            except NotDifferentiableError as error:
                raise _Barred((index, None), f"there is no derivative of {where}: {error}") from None
            for position in sorted(wanted):
                grad = found[position] if position < len(found) else None
                if grad is None:
                    raise _Barred((index, position), f"there is no derivative of {where} by its input {position}")
                if grad:
                    grads[node.input[position]].append(grad)


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


class _Constants(Mapping[str, Array]):
    """Values of initializers and Constant nodes that are not trained, read when they are asked for."""

    def __init__(self, graph: onnx.GraphProto, trained: set[str]) -> None:
        self._held = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in trained}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._held[node.output[0]] = node.attribute[0].t

    def __getitem__(self, name: str) -> Array:
        return np.asarray(onnx.numpy_helper.to_array(self._held[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _sum(tape: Tape, parts: list[str]) -> str:
    """The sum of several gradients of one tensor; they are one from then on."""
    while len(parts) > 1:
        parts[:2] = [tape.emit("Add", parts[0], parts[1])]
    return parts[0]


def _reaching(graph: onnx.GraphProto, tensors: set[str]) -> set[str]:
    """Tensors that these depend on, themselves among them."""
    reaching = set(tensors)
    for node in reversed(graph.node):
        if reaching.intersection(node.output):
            reaching.update(name for name in node.input if name)
    return reaching


def _finish(
    model: onnx.ModelProto,
    loss: str,
    gradients: Mapping[str, str],
    shapes: Mapping[str, Shape],
    watched: Sequence[str],
) -> None:
    """Declare inputs and outputs, and drop what nobody reads."""
    graph = model.graph
    graph.output.append(onnx.helper.make_tensor_value_info(loss, _FLOAT, []))
    for name, gradient in gradients.items():
        graph.output.append(onnx.helper.make_tensor_value_info(gradient, _FLOAT, shapes[name]))
    for name in dict.fromkeys(watched):
        graph.output.append(onnx.helper.make_tensor_value_info(name, _FLOAT, shapes[name]))
    declared = {value.name for value in graph.input}
    for name in gradients:
        if name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(name, _FLOAT, shapes[name]))
    keep_named(graph.initializer, drop_unneeded_nodes(graph).difference(gradients))
