"""Measured time of single layers, and how it falls as they become smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from onnxcomp.graph.budget import Price, Prices
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.panels import channel_axis
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.timings import TimingTable

__all__ = ["layer_times", "ordinary_values"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

SECONDS = 0.05  # of timed runs of a layer
MOST_FIXED = 0.9  # of a layer's time, however small it becomes: what is more is noise


def layer_times(
    model: Model, shapes: Shapes, timings: TimingTable, threads: int = 1, progress: Progress = silent
) -> Prices | None:
    """Milliseconds of every layer of the main graph, each run alone, at its size and at half of its channels.

    Layers of the same operator and shapes are timed once.

    Args:
        model: with the layers.
        shapes: of its tensors in one run.
        timings: where the times are kept, or come from.
        threads: intra-op threads.
        progress: shows the layers.

    Returns:
        None where nothing is known and nothing may be measured.
    """
    prices: dict[str, Price] = {}
    every = weighted_layers(model)
    alone = [form for layer in every if (form := _Form.of(layer, shapes)) is not None]
    for form in progress(alone, "timing layers", len(alone)):
        half = form.halved()
        feeds = {"x": ordinary_values(form.x, form.dtype), "h": ordinary_values(half.x, form.dtype)}
        what = f"{form.layer.name} with half of its channels"
        timed = timings.compare(what, form.model("x", half.x), half.model("h", form.x), feeds, threads, SECONDS)
        if timed is None:
            return None
        left = half.size / form.size
        # t = fixed + rest · what is left of the weights
        fixed = (1.0 / timed.ratio - left) / (1.0 - left) if left < 1.0 else 0.0
        prices[form.layer.name] = Price(timed.before_ms, min(max(fixed, 0.0), MOST_FIXED) * timed.before_ms)
    return Prices(sum(price.whole for price in prices.values()), prices)


@dataclass(frozen=True)
class _Form:
    """A layer on its own: the shapes of its input and its weight, without the values."""

    layer: WeightedLayer
    x: Shape
    weight: Shape
    groups: int

    @classmethod
    def of(cls, layer: WeightedLayer, shapes: Shapes) -> _Form | None:
        x = shapes.get(layer.node.inputs[0].name)
        if layer.kind == "other" or layer.nested or layer.quantized or x is None or layer.weight_index != 1:
            return None
        return cls(layer, tuple(x), layer.shape, layer.groups)

    @property
    def size(self) -> int:
        return int(np.prod(self.weight))

    @property
    def dtype(self) -> Any:
        return self.layer.array().dtype

    def halved(self) -> _Form:
        """With half of its inputs and outputs, or as it is where they cannot be halved."""
        layer, weight, x = self.layer, list(self.weight), list(self.x)
        depthwise = self.groups > 1 and weight[1] == 1
        axes = [0] if depthwise else [layer.out_axis, layer.in_axis]
        channels = channel_axis(layer, len(x))
        if any(weight[axis] % (2 * (1 if depthwise else self.groups)) for axis in axes) or x[channels] % 2:
            return self
        for axis in axes:
            weight[axis] //= 2
        x[channels] //= 2
        return _Form(layer, tuple(x), tuple(weight), self.groups // 2 if depthwise else self.groups)

    def model(self, name: str, other: Shape) -> Model:
        """A model of this layer, which has an input of the other form too, so that both can be fed alike."""
        layer = self.layer
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        attributes = {key: value for key, value in layer.node.attrs.items() if key != "group"}
        if layer.kind in ("Conv", "ConvTranspose"):
            attributes["group"] = self.groups
        node = helper.make_node(layer.node.op, [name, "w"], ["y"], **attributes)
        inputs = [(name, self.x), ("h" if name == "x" else "x", other)]
        graph = helper.make_graph(
            [node],
            "layer",
            [helper.make_tensor_value_info(each, kind, shape) for each, shape in sorted(inputs)],
            [helper.make_tensor_value_info("y", kind, None)],
            [numpy_helper.from_array(ordinary_values(self.weight, self.dtype), "w")],
        )
        opset = helper.make_opsetid("", 17)
        return Model.from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=8))


def ordinary_values(shape: Sequence[int], dtype: Any) -> Array:
    """Of ordinary size: time depends on shapes, but zeros and subnormal numbers may be faster or slower."""
    values: Array = np.resize(np.linspace(-1.0, 1.0, 127), shape).astype(dtype)
    return values
