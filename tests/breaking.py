"""Passes that go wrong, each in its own way, and one that does not."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from pydantic import Field

from onnxcomp import Context, Model, Pass, Stage
from onnxcomp.errors import InputError, PassError
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.runtime import session
from onnxcomp.runtime.feeds import synthetic


class Scale(Pass):
    """Multiply every weight by ``factor``; harmless when that is near 1."""

    name: ClassVar[str] = "scale"
    stage: ClassVar[Stage] = Stage.QUANT
    factor: float = Field(1.01, gt=0, description="what weights are multiplied by")

    def run(self, model: Model, ctx: Context) -> None:
        for layer in weighted_layers(model):
            layer.set_array(layer.array() * np.float32(self.factor))
            ctx.act(layer, "scaled", f"by {self.factor}")


class Raises(Scale):
    """Edit everything, then fail."""

    name: ClassVar[str] = "raises"

    def run(self, model: Model, ctx: Context) -> None:
        super().run(model, ctx)
        model.graph.nodes.clear()
        model.graph.inputs.clear()
        raise RuntimeError("this cannot be\ndone")


class Refuses(Scale):
    """Find that it has nothing to work with."""

    name: ClassVar[str] = "refuses"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        raise PassError("refuses needs a model with a heart")


class Invalid(Scale):
    """Make a node that there is no operator for."""

    name: ClassVar[str] = "invalid"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        model.graph.nodes[0].op = "NoSuchOperator"


class DoesNotRun(Scale):
    """Make a model that is valid to the checker and fails when it runs."""

    name: ClassVar[str] = "doesnotrun"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        value = model.graph.outputs[0].inputs[0]
        reshaped = gs.Variable("reshaped", np.float32)
        shape = gs.Constant("impossible", np.array([7, 13, 17], np.int64))
        node = gs.Node("Reshape", inputs=[value.outputs[0], shape], outputs=[reshaped])
        model.graph.nodes.append(node)
        back = gs.Node("Reshape", inputs=[reshaped, shape], outputs=[gs.Variable("unused", np.float32)])
        model.graph.nodes.append(back)


class RunsInside(DoesNotRun):
    """Break the model and run it itself."""

    name: ClassVar[str] = "runsinside"

    def run(self, model: Model, ctx: Context) -> None:
        feeds = synthetic(model) if ctx.data is None else ctx.data.sample()
        super().run(model, ctx)
        session.run(session.create(model), feeds)


class NotExact(Scale):
    """Promise the same outputs, and change them."""

    name: ClassVar[str] = "notexact"
    exact: ClassVar[bool] = True
    factor: float = Field(1.5, gt=0)


class MakesNan(Scale):
    """Divide by zero."""

    name: ClassVar[str] = "makesnan"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        layer = weighted_layers(model)[0]
        layer.set_array(np.full(layer.shape, np.nan, np.float32))


class ChangesShape(Scale):
    """Give the last layer one output less."""

    name: ClassVar[str] = "changesshape"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        layer = weighted_layers(model)[-1]
        layer.set_array(layer.array()[..., :-1] if layer.out_axis else layer.array()[:-1])
        if layer.bias is not None:
            layer.bias.values = layer.bias.values[:-1]
        model.graph.outputs[0].shape = ["N", 4]


class FixesBatch(Scale):
    """Close the batch axis that was open: no single sample shows it."""

    name: ClassVar[str] = "fixesbatch"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        model.graph.inputs[0].shape[0] = 1


class RenamesOutput(Scale):
    """Call the output something else."""

    name: ClassVar[str] = "renamesoutput"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        model.graph.outputs[0].name = "other"


class Negates(Scale):
    """Turn every output around: more error than signal."""

    name: ClassVar[str] = "negates"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        output = model.graph.outputs[0]
        inner = gs.Variable("inner", np.float32)
        output.inputs[0].outputs = [inner]
        model.graph.nodes.append(gs.Node("Neg", inputs=[inner], outputs=[output]))


class Forgets(Scale):
    """Do something and log nothing."""

    name: ClassVar[str] = "forgets"

    def run(self, model: Model, ctx: Context) -> None:  # noqa: ARG002
        model.graph.name = "forgotten"


class Idle(Scale):
    """Look and leave everything alone."""

    name: ClassVar[str] = "idle"
    exact: ClassVar[bool] = True

    def run(self, model: Model, ctx: Context) -> None:
        for layer in weighted_layers(model):
            ctx.skip(layer, "not today")


class Draws(Scale):
    """Scale by a random factor near 1."""

    name: ClassVar[str] = "draws"

    def run(self, model: Model, ctx: Context) -> None:
        for layer in weighted_layers(model):
            factor = 1 + 0.001 * ctx.rng().random()
            layer.set_array(layer.array() * np.float32(factor))
            ctx.act(layer, "scaled", repr(factor))


class BadInput(Scale):
    """Find that what the user gave is at fault."""

    name: ClassVar[str] = "badinput"

    def run(self, model: Model, ctx: Context) -> None:
        super().run(model, ctx)
        raise InputError("samples.npz: holds nonsense; give sense")


class Interrupted(Scale):
    """The user has had enough."""

    name: ClassVar[str] = "interrupted"

    def run(self, model: Model, ctx: Context) -> None:
        super().run(model, ctx)
        raise KeyboardInterrupt


BREAKING: dict[type[Pass], str] = {
    Raises: "this cannot be done",
    Refuses: "needs a model with a heart",
    Invalid: "NoSuchOperator",
    DoesNotRun: "ONNX Runtime cannot run the model",
    RunsInside: "ONNX Runtime cannot run the model",
    NotExact: "promises the same outputs but they differ",
    MakesNan: "infinite or NaN",
    ChangesShape: "changed output",
    FixesBatch: "changed the inputs from",
    RenamesOutput: "changed the outputs from",
    Negates: "more error than signal",
}
"""What breaks, and a part of the sentence that says so."""
