"""How long it takes to find the dependency groups of a large graph; as a command, prints it as JSON.

python -m harness.large_graph NODES
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.groups import dependency_groups
from onnxcomp.model import Model

__all__ = ["generated"]

CHANNELS = 16
SIDE = 4
STAGE = 20  # blocks that share a residual spine
RUNS = 5

Shapes = dict[str, tuple[int, ...]]


class _Writer:
    """Nodes, weights and the shapes of what the nodes compute."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: Shapes = {}
        self._random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.uniform(0.5, 1.5, shape).astype(np.float32)  # variances are positive
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, values: list[int]) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def add(self, op: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: object) -> list[str]:
        index = len(self.nodes)
        outputs = [f"t{index}_{number}" for number in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, outputs, f"n{index}", **attributes))
        self.shapes |= dict(zip(outputs, shapes, strict=True))
        return outputs

    def conv(self, source: str, outs: int, kernel: int = 1, groups: int = 1, act: bool = True) -> str:
        """A convolution with its normalization and activation."""
        channels, shape = self.shapes[source][1], (1, outs, SIDE, SIDE)
        pads = [kernel // 2] * 4
        weight = self.weight(outs, channels // groups, kernel, kernel)
        (made,) = self.add("Conv", [source, weight], shape, pads=pads, group=groups)
        factors = [self.weight(outs) for _ in range(4)]
        (made,) = self.add("BatchNormalization", [made, *factors], shape)
        return self.add("Relu", [made], shape)[0] if act else made


def generated(nodes: int) -> tuple[Model, Shapes]:
    """A convolutional network of at least so many nodes, with the shapes of its tensors.

    Blocks in turn: bottlenecks with a depthwise convolution and a squeeze-and-excitation on a residual spine, channel
    shuffles, and branches that Split and Concat divide and join.
    """
    writer = _Writer()
    writer.shapes["x"] = (1, 3, SIDE, SIDE)
    source, count = writer.conv("x", CHANNELS, 3), 0
    while len(writer.nodes) < nodes - 1:
        source = (_bottleneck, _shuffle, _branches)[count % 3](writer, source)
        count += 1
        if count % STAGE == 0:
            source = writer.conv(source, CHANNELS)
    (output,) = writer.add("GlobalAveragePool", [source], (1, CHANNELS, 1, 1))
    graph = helper.make_graph(
        writer.nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, writer.shapes["x"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, writer.shapes[output])],
        writer.weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model.from_proto(proto), writer.shapes


def _bottleneck(writer: _Writer, source: str) -> str:
    shape = writer.shapes[source]
    wide = writer.conv(source, 2 * CHANNELS)
    wide = writer.conv(wide, 2 * CHANNELS, 3, groups=2 * CHANNELS)
    (means,) = writer.add("GlobalAveragePool", [wide], (1, 2 * CHANNELS, 1, 1))
    (gate,) = writer.add("Conv", [means, writer.weight(8, 2 * CHANNELS, 1, 1)], (1, 8, 1, 1))
    (gate,) = writer.add("Relu", [gate], (1, 8, 1, 1))
    (gate,) = writer.add("Conv", [gate, writer.weight(2 * CHANNELS, 8, 1, 1)], (1, 2 * CHANNELS, 1, 1))
    (gate,) = writer.add("Sigmoid", [gate], (1, 2 * CHANNELS, 1, 1))
    (wide,) = writer.add("Mul", [wide, gate], writer.shapes[wide])
    return writer.add("Add", [source, writer.conv(wide, CHANNELS, act=False)], shape)[0]


def _shuffle(writer: _Writer, source: str) -> str:
    shape, half = writer.shapes[source], CHANNELS // 2
    made = writer.conv(source, CHANNELS, groups=2)
    (made,) = writer.add("Reshape", [made, writer.constant([1, 2, half, SIDE, SIDE])], (1, 2, half, SIDE, SIDE))
    (made,) = writer.add("Transpose", [made], (1, half, 2, SIDE, SIDE), perm=[0, 2, 1, 3, 4])
    (made,) = writer.add("Reshape", [made, writer.constant(list(shape))], shape)
    return writer.add("Add", [source, writer.conv(made, CHANNELS, act=False)], shape)[0]


def _branches(writer: _Writer, source: str) -> str:
    half = (1, CHANNELS // 2, SIDE, SIDE)
    wide = writer.conv(source, CHANNELS)
    first, second = writer.add("Split", [wide, writer.constant([half[1], half[1]])], half, half, axis=1)
    parts = [writer.conv(first, half[1], 3), second]
    (joined,) = writer.add("Concat", parts, writer.shapes[wide], axis=1)
    return writer.conv(joined, CHANNELS)


def main() -> None:
    """Parse the command line, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nodes", type=int)
    model, shapes = generated(parser.parse_args().nodes)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        groups = dependency_groups(model, shapes)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"nodes": len(model.graph.nodes), "groups": len(groups), "seconds": seconds}))


if __name__ == "__main__":
    main()
