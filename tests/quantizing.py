"""The pass ``quant`` run on its own, for the tests of what it does in graphs and in bodies."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx

from onnxcomp.context import Context, Decision
from onnxcomp.data import Dataset
from onnxcomp.errors import OnnxcompWarning
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passes.quant import Quant
from onnxcomp.runtime.kernels import optimized_kernels
from onnxcomp.runtime.target import Target

__all__ = ["VNNI", "build", "kernels", "quantize"]

Array = np.ndarray[Any, Any]

VNNI = Target.parse("x86-vnni")


def build(body: str, arrays: dict[str, Array], opset: int = 17) -> Model:
    """A model of ONNX's textual graph syntax; ``arrays`` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def quantize(model: Model, data: Dataset | None, target: Target = VNNI, **options: Any) -> dict[str, Decision]:
    """Run the pass, check the result's validity, and return the decisions by layer."""
    context = Context(target=target, data=data, scope="quant")
    names = [layer.name for layer in weighted_layers(model)]
    with warnings.catch_warnings():
        if data is None:
            warnings.simplefilter("ignore", OnnxcompWarning)  # that there are no data
        Quant(**options).run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    assert sorted(decision.layer for decision in context.decisions) == sorted(names), "one decision a layer"
    return {decision.layer: decision for decision in context.decisions}


def kernels(model: Model) -> Counter[str]:
    return Counter(kernel.op for kernel in optimized_kernels(model.serialize()))
