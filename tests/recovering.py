"""A small network, an image of it with errors, and the pass recover on it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxcomp import Context, Dataset, Model, Target
from onnxcomp.passes.recover import Recover
from onnxcomp.runtime.session import create, run, with_outputs
from tests.models import model_of, value


def network(noise: float = 0.0, zeros: float = 0.0) -> onnx.ModelProto:
    """Two convolutions of 16 channels, the second depthwise, and a classifier; with an error in its weights."""
    rng, error = np.random.default_rng(1), np.random.default_rng(2)
    arrays = {
        "w1": rng.standard_normal((16, 3, 3, 3)) / 5,
        "b1": rng.standard_normal(16) / 5,
        "w2": rng.standard_normal((16, 1, 3, 3)) / 3,
        "w3": rng.standard_normal((16, 5)),
        "b3": rng.standard_normal(5),
    }
    for name, array in arrays.items():
        array += noise * array.std() * error.standard_normal(array.shape)
        if zeros and name == "w1":
            array[np.abs(array) < np.quantile(np.abs(array), zeros)] = 0
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "one", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "two", group=16, strides=[2, 2], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "three"),
    ]
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", [value("x", "n", 3, 8, 8)], [value("y", "n", 5)], held)
    return model_of(graph, opset=13, ir_version=8)


def samples(count: int = 128) -> Dataset:
    x = np.random.default_rng(3).standard_normal((count, 3, 8, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x}, model=Model.from_proto(network()))


def recovered(student: onnx.ModelProto, options: Recover, data: Dataset | None = None) -> tuple[Model, Context]:
    model = Model.from_proto(student)
    ctx = Context(target=Target.host(), data=data or samples(), original=Model.from_proto(network()), scope="recover")
    options.run(model, ctx)
    return model, ctx


def error_of(model: Model) -> float:
    x = np.random.default_rng(4).standard_normal((64, 3, 8, 8)).astype(np.float32)
    ours, theirs = (
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for proto in (model.proto(), network())
    )
    return float(np.square(ours - theirs).mean() / np.square(theirs).mean())


def hidden_error_of(model: Model) -> float:
    """Of the values behind the first convolution."""
    x = np.random.default_rng(4).standard_normal((64, 3, 8, 8)).astype(np.float32)
    ours, theirs = (
        run(create(with_outputs(each.skeleton(), ["r1"])), {"x": x})["r1"]
        for each in (model, Model.from_proto(network()))
    )
    return float(np.square(ours - theirs).mean() / np.square(theirs).mean())
