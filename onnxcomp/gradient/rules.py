"""The table of rules: how the gradient of an operator's outputs becomes that of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxcomp.gradient.tape import Operation, Tape

__all__ = ["NotDifferentiableError", "Rule", "register", "rule_of"]

Grads = Sequence[str | None]
Rule = Callable[[Tape, Operation, str], Grads]
AnyRule = Callable[[Tape, Operation, list[str | None]], Grads]


class NotDifferentiableError(Exception):
    """A rule does not cover this form of its operator; the message says what about it."""


_RULES: dict[tuple[str, str], AnyRule] = {}


def register(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Add the rule of operators with one differentiable output.

    A rule is given the tape, the operation and the name of the gradient of its output; it returns the names of the
    gradients of its inputs, in their order, None for what has none. Inputs beyond the end of the list have none. It
    may write nodes for inputs that nobody wants: what is not read is dropped.
    """

    def add(rule: Rule) -> Rule:
        def of_first(tape: Tape, operation: Operation, grads: list[str | None]) -> Grads:
            if grads[0] is None or any(grads[1:]):
                raise NotDifferentiableError("another of its outputs than the first is used")
            return rule(tape, operation, grads[0])

        for op in ops:
            _RULES[domain, op] = of_first
        return rule

    return add


def register_many(*ops: str) -> Callable[[AnyRule], AnyRule]:
    """Add the rule of operators with several outputs; it is given a list with None for outputs that nobody uses."""

    def add(rule: AnyRule) -> AnyRule:
        for op in ops:
            _RULES["", op] = rule
        return rule

    return add


def rule_of(domain: str, op: str) -> AnyRule | None:
    """The rule of an operator, or None."""
    return _RULES.get(("" if domain == "ai.onnx" else domain, op))
