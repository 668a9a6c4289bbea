"""Graphs that stay in ONNX Runtime's blocked layout (NCHWc) between convolutions.

ONNX Runtime lays the inputs of a convolution out in blocks of channels, and its output back again as soon as an
operator reads it that it has no blocked form of. In a backward graph these are nearly all: masks, products, sums. But
what works element by element works on any layout, and some others on a view of the blocks: (N, C, H, W) in blocks of
b channels is (N, C / b, H, W, b) in memory. So the blocks are undone only where something reads the plain layout.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.graph.inferred import TensorType, infer_types
from onnxcomp.model import Model
from onnxcomp.storage.messages import drop_unneeded_nodes, reads_of

__all__ = ["block_size", "keep_blocked"]

Shape = tuple[int, ...]

_DOMAIN = "com.microsoft.nchwc"
# Shapes of tensors of one element, that any layout can be combined with.
_SINGLE = tuple((1,) * rank for rank in range(5))
# Operators of which an element of the output depends on the elements at its place alone.
_ELEMENTWISE = {
    *("Abs", "Add", "Clip", "Div", "Erf", "Exp", "HardSigmoid", "HardSwish", "Log", "Max", "Min", "Mul", "Neg", "Pow"),
    *("QuickGelu", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh"),
}


@functools.cache
def block_size() -> int:
    """Channels of a block on this machine; 0 where ONNX Runtime has no such layout."""
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("ReorderInput", ["x"], ["y"], domain=_DOMAIN)
    x, y = info("x", onnx.TensorProto.FLOAT, (1, 4, 1, 1)), info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([node], "probe", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid(_DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        size = int(session.run(None, {"x": np.zeros((1, 4, 1, 1), np.float32)})[0].shape[1])
    except Exception:  # the binding raises a dozen classes that share no base
        return 0
    return size if size > 1 else 0


def keep_blocked(model: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with fewer changes of layout; where nothing is in blocks, the model itself.

    Args:
        model: that ONNX Runtime has optimized on this machine.
        original: what it was made of; its shapes have to follow from those of its inputs.
    """
    size = block_size()
    if not size or not any(node.domain == _DOMAIN for node in model.graph.node):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = _Rewrite(changed.graph, infer_types(Model.from_proto(original)), size).nodes()
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    drop_unneeded_nodes(changed.graph)
    return changed


@dataclass
class _Rewrite:
    """One walk through a graph.

    Attributes:
        blocked: for tensors in the plain layout, the tensor that holds the same in blocks.
        written: tensors that exist, of those that ``blocked`` names.
        renamed: tensors in blocks that another one stands for.
    """

    graph: onnx.GraphProto
    known: Mapping[str, TensorType]
    size: int
    blocked: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    out: list[onnx.NodeProto] = field(default_factory=list)

    def nodes(self) -> list[onnx.NodeProto]:
        """The new nodes, in topological order."""
        graph = self.graph
        self.shapes = {name: kind.static for name, kind in self.known.items() if kind.static is not None}
        self.shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.count = 0
        self.prefix = "blocked/"
        given = [value.name for value in graph.input]
        while any(name.startswith(self.prefix) for name in (*self.producers, *self.constants, *given)):
            self.prefix = f"_{self.prefix}"
        rules = {"Conv": self._depthwise, "ReduceSum": self._sum, "FusedMatMul": self._product}
        for node in graph.node:
            if node.domain == _DOMAIN and self._layout(node):
                continue
            rule = self._elementwise if node.op_type in _ELEMENTWISE else rules.get(node.op_type)
            if node.domain == _DOMAIN or rule is None or not rule(node):
                self._keep(node)
        self._plain(value.name for value in graph.output)
        return self.out

    # -- writing ---------------------------------------------------------------------------------------

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{self.prefix}{kind}_{self.count}"

    def _emit(self, op: str, inputs: Iterable[str], domain: str = "", output: str = "", **attributes: Any) -> str:
        name = self._name(op)
        output = output or name
        self.out.append(onnx.helper.make_node(op, list(inputs), [output], name=name, domain=domain, **attributes))
        return output

    def _ints(self, values: Iterable[int]) -> str:
        name = self._name("constant")
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.array(list(values), dtype=np.int64), name))
        return name

    def _view(self, tensor: str, shape: Iterable[int], output: str = "") -> str:
        return self._emit("Reshape", [tensor, self._ints(shape)], output=output)

    def _keep(self, node: onnx.NodeProto) -> None:
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        for index, name in enumerate(node.input):
            kept.input[index] = self.renamed.get(name, name)
        self._plain(reads_of(node))
        self.out.append(kept)

    def _plain(self, names: Iterable[str]) -> None:
        """Write what is there in blocks alone."""
        for name in names:
            if name in self.blocked and name not in self.written:
                self.written.add(name)
                channels = self.shapes[name][1]
                self._emit("ReorderOutput", [self.blocked[name]], _DOMAIN, name, channels=channels)

    # -- layouts ---------------------------------------------------------------------------------------

    def _whole(self, name: str) -> bool:
        """Whether the tensor consists of whole blocks; of floats, which alone can be laid out anew."""
        shape = self.shapes.get(name, ())
        return self._floats(name) and len(shape) == 4 and shape[1] % self.size == 0

    def _floats(self, name: str) -> bool:
        kind = self.known.get(name)
        return kind is not None and kind.element == onnx.TensorProto.FLOAT

    def _layout(self, node: onnx.NodeProto) -> bool:
        """Take note of a change of layout, instead of the node."""
        source, target = node.input[0], node.output[0]
        if any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute):
            return False
        if node.op_type == "ReorderOutput" and self._whole(target):
            self.blocked[target] = self.renamed.get(source, source)
            return True
        if node.op_type == "ReorderInput" and source in self.blocked:
            self.renamed[target] = self.blocked[source]
            return True
        return False

    def _in_blocks(self, name: str) -> str:
        """The blocks of a tensor that consists of whole ones."""
        if name not in self.blocked:
            self.blocked[name] = self._emit("ReorderInput", [name], _DOMAIN)
            self.written.add(name)
        return self.blocked[name]

    # -- operators -------------------------------------------------------------------------------------

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        shape = self.shapes.get(node.output[0])
        single = {name for name in node.input if not name or self.shapes.get(name) in _SINGLE}
        whole = [name for name in node.input if name not in single]
        fits = all(self.shapes.get(name) == shape and self._whole(name) for name in (node.output[0], *whole))
        if not fits or not any(name in self.blocked for name in whole):
            return False
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for index, name in enumerate(node.input):
            made.input[index] = name if name in single else self._in_blocks(name)
        self.blocked[node.output[0]] = made.output[0] = self._name(node.op_type)
        self.out.append(made)
        return True

    def _sum(self, node: onnx.NodeProto) -> bool:
        """Sums over samples and positions, of a view (N · C / b, H · W, b)."""
        x = node.input[0]
        keeps = any(attribute.name == "keepdims" and not attribute.i for attribute in node.attribute)
        if x not in self.blocked or not keeps or len(node.input) < 2 or self._constant(node.input[1]) != (0, 2, 3):
            return False
        n, c, h, w = self.shapes[x]
        view = self._view(self.blocked[x], (n * c // self.size, h * w, self.size))
        summed = self._view(self._emit("ReduceSum", [view, self._ints([1])], keepdims=0), (n, c))
        self._emit("ReduceSum", [summed, self._ints([0])], output=node.output[0], keepdims=0)
        return True

    def _depthwise(self, node: onnx.NodeProto) -> bool:
        """A convolution of every plane with a kernel of its own that is computed as well."""
        group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        x, weight = (self.shapes.get(name, ()) for name in node.input[:2])
        if len(weight) != 4 or x[:2] != (1, group) or weight[:2] != (group, 1):
            return False
        if len(node.input) > 2 or group % self.size or node.input[1] not in self.producers:
            return False
        if not self._floats(node.input[0]):
            return False
        planes = [self._planes(name) for name in node.input]
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        made = self._emit("Conv", planes, _DOMAIN, **attributes)
        self._emit("ReorderOutput", [made], _DOMAIN, node.output[0], channels=group)
        return True

    def _planes(self, name: str) -> str:
        """A view (1, N · C, H, W) or (N · C, 1, H, W) of a tensor, in blocks."""
        shape = self.shapes[name]
        source = self._viewed(name)
        if source in self.blocked and self.shapes[source][2:] == shape[2:]:
            return self._view(self.blocked[source], shape)
        self._plain([name])
        if shape[0] == 1:
            return self._emit("ReorderInput", [name], _DOMAIN)
        row = self._view(name, (1, shape[0], *shape[2:]))
        return self._view(self._emit("ReorderInput", [row], _DOMAIN), shape)

    def _product(self, node: onnx.NodeProto) -> bool:
        """(N, A, positions) times (N, B, positions) transposed; either can be taken block by block."""
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        left, right = node.input
        if attributes.pop("transB", 0) != 1 or attributes.pop("alpha", 1.0) != 1.0 or any(attributes.values()):
            return False
        shapes = [self.shapes.get(name, ()) for name in node.input]
        if any(len(shape) != 3 for shape in shapes) or shapes[0][0] != shapes[1][0]:
            return False  # or one is the same for all samples
        (n, a, positions), (_, b, _) = shapes
        size = self.size
        if (source := self._viewed(right)) in self.blocked and self.shapes[source][:2] == (n, b):
            blocks = self._view(self.blocked[source], (n, b // size, positions, size))
            product = self._emit("MatMul", [self._view(left, (n, 1, a, positions)), blocks])
            turned = self._emit("Transpose", [product], perm=[0, 2, 1, 3])
        elif (source := self._viewed(left)) in self.blocked and self.shapes[source][:2] == (n, a):
            blocks = self._view(self.blocked[source], (n, a // size, positions, size))
            product = self._emit("MatMul", [self._view(right, (n, 1, b, positions)), blocks])
            turned = self._emit("Transpose", [product], perm=[0, 1, 3, 2])
        else:
            return False
        self._view(turned, (n, a, b), node.output[0])
        return True

    def _viewed(self, name: str) -> str:
        """What a Reshape made a tensor of."""
        producer = self.producers.get(name)
        return producer.input[0] if producer is not None and producer.op_type == "Reshape" else name

    def _constant(self, name: str) -> Shape | None:
        tensor = self.constants.get(name)
        return None if tensor is None else tuple(onnx.numpy_helper.to_array(tensor).reshape(-1).tolist())
