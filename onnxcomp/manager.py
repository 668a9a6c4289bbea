"""The pass manager: runs passes one by one, rolls back what fails, records all of it.

What happens around a pass (timing, verification, reproducers) is a hook: a context manager, not a branch here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Literal, Protocol

from threadpoolctl import threadpool_limits

from onnxcomp.context import Context, Decision
from onnxcomp.errors import BudgetError, InputError, SessionError, UsageError
from onnxcomp.fidelity import Fidelity
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.graph.state import GraphState
from onnxcomp.model import Model, one_line
from onnxcomp.passbase import Pass
from onnxcomp.pipeline import Pipeline

__all__ = ["CheckRecord", "Hook", "PassManager", "PassRecord", "Step", "passes_fault"]


@dataclass(frozen=True)
class CheckRecord:
    """One test of a pass's result (see ``onnxcomp.hooks.Verify``)."""

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    figure: float | None = None
    message: str = ""


@dataclass
class PassRecord:
    """What a pass did and what was measured of the model after it.

    Attributes:
        passed: the pass with its options.
        status: ``rolled back`` when it failed or did not verify: the model is as it was before.
        seconds: without hooks.
        decisions: one at least for every weighted layer that the pass found.
        checks: tests of its result.
        error: why it was rolled back.
        cause: the class of that error.
        reproducer: folder that repeats the failure.
        size, parameters, flops: of the model after it; bytes, elements, operations.
        fidelity, metric, latency_ratio: of the model after it against the original, where measured.
    """

    passed: Pass
    status: Literal["applied", "unchanged", "rolled back"] = "applied"
    seconds: float = 0.0
    decisions: list[Decision] = field(default_factory=list)
    checks: list[CheckRecord] = field(default_factory=list)
    error: str | None = None
    cause: type[BaseException] | None = None
    reproducer: str | None = None
    size: int = 0
    parameters: int = 0
    flops: int = 0
    fidelity: Fidelity | None = None
    metric: float | None = None
    latency_ratio: float | None = None

    @property
    def over_budget(self) -> bool:
        """Whether it was rolled back because it cost more accuracy than allowed."""
        return self.cause is not None and issubclass(self.cause, BudgetError)


@dataclass
class Step:
    """A pass about to run, or running, on a model."""

    passed: Pass
    model: Model
    ctx: Context
    record: PassRecord
    before: GraphState

    @property
    def changed(self) -> bool:
        """Whether the graph differs from what the pass was given."""
        return self.before.changed()


class Hook(Protocol):
    """Something that happens around every pass. What it raises after the pass rolls the pass back."""

    def around(self, step: Step) -> AbstractContextManager[None]:
        """Entered before the pass runs, left after it."""
        ...


class PassManager:
    """Runs a pipeline in the order it stands in.

    Example::

        manager = PassManager(Pipeline.parse("fold,quant").scheduled(), hooks=[Timing()])
        records = manager.run(model, Context(target=Target.host(), data=data, original=original))

    Args:
        pipeline: passes, already in a legal order.
        hooks: the first is the outermost.
    """

    def __init__(self, pipeline: Pipeline, hooks: Iterable[Hook] = ()) -> None:
        self._pipeline = pipeline
        self._hooks = tuple(hooks)

    def run(self, model: Model, ctx: Context) -> list[PassRecord]:
        """Edit ``model`` in place; a pass that fails leaves it as that pass found it.

        Raises:
            InputError, UsageError: what the user gave is at fault, not a pass; nothing further is run.
        """
        # Threads of the BLAS spin while they wait, on the cores that ONNX Runtime works on; and with one thread, sums
        # have the same last bits on every number of cores.
        with threadpool_limits(1, "blas"):
            return [self._step(passed, model, ctx) for passed in ctx.progress(self._pipeline.passes, "pass")]

    def _step(self, passed: Pass, model: Model, ctx: Context) -> PassRecord:
        record = PassRecord(passed)
        step = Step(passed, model, ctx, record, before=model.checkpoint())
        names = [layer.name for layer in weighted_layers(model)]
        ctx.scope, ctx.decisions = passed.name, record.decisions
        try:
            with ExitStack() as stack:
                for hook in self._hooks:
                    stack.enter_context(hook.around(step))
                warned = len(ctx.warnings)
                try:
                    passed.run(model, ctx)
                    if step.changed:
                        model.put_weights_aside()
                except BaseException:
                    del ctx.warnings[warned:]  # they are of a model that does not come to stay
                    raise
                record.status = "applied" if step.changed else "unchanged"
        except BaseException as error:  # a pass, built in or plugged in, may fail in any way
            step.before.restore()
            ctx.invalidate(model)
            if not passes_fault(error):
                raise
            _roll_back(record, error)
        if record.status == "applied":
            ctx.invalidate(model)
        _complete(record, names)
        gc.collect()  # graphsurgeon graphs are cyclic and hold weights
        return record


def passes_fault(error: BaseException) -> bool:
    """Whether what a pass raised is a failure of the pass, and not of what the user gave, or an interruption."""
    if isinstance(error, SessionError):  # the original model ran before the first pass
        return True
    return isinstance(error, Exception) and not isinstance(error, InputError | UsageError)


def _roll_back(record: PassRecord, error: BaseException) -> None:
    record.status, record.error, record.cause = "rolled back", one_line(error), type(error)
    # What the pass logged did not come to stay.
    record.decisions[:] = [Decision(d.layer, "skipped", f"undone: {record.error}") for d in record.decisions]


def _complete(record: PassRecord, names: Iterable[str]) -> None:
    """Every weighted layer ends with an action or a reason, whatever the pass forgot."""
    decided = {decision.layer for decision in record.decisions}
    reason = f"undone: {record.error}" if record.error else "the pass gave no reason"
    record.decisions.extend(Decision(name, "skipped", reason) for name in names if name not in decided)
