"""What each operator that computes does to the channels it reads: one rule for each kind of operator."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.graph.attention_rules import ATTENTION_RULES
from onnxcomp.graph.constants import is_constant, value_of
from onnxcomp.graph.layer_rules import LAYER_RULES
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Labels, Propagation, Rule
from onnxcomp.graph.recurrent_rules import RECURRENT_RULES
from onnxcomp.graph.shape_rules import SHAPE_RULES, axes_of

__all__ = ["RULES"]


def unary(flow: Propagation, node: gs.Node) -> None:
    """The channels of the first input pass through (with Dropout, to its mask too)."""
    if (labels := flow.labels(node.inputs[0])) is not None:
        for output in node.outputs:
            flow.give(output, labels.axes, labels.ids)


def source(flow: Propagation, node: gs.Node) -> None:
    """Computes from no channel at all."""


# -- elementwise ---------------------------------------------------------------------------------------------


def elementwise(flow: Propagation, node: gs.Node) -> None:
    """Operands are broadcast against each other; all that have the channels on the same axes are tied."""
    labelled = list(flow.labelled_inputs(node))
    if not labelled:
        return
    shapes = [flow.shape(tensor) for tensor in node.inputs]
    if any(shape is None for shape in shapes):
        flow.pin_inputs(node, "the shape of an operand is not known")
        return
    rank = max(len(shape) for shape in shapes if shape is not None)
    spread = [_shifted(labels, rank - len(flow.shape(tensor) or ())) for tensor, labels in labelled]
    whole = max(spread, key=lambda labels: len(labels.axes))
    if any(not set(labels.axes) <= set(whole.axes) for labels in spread):
        flow.pin_inputs(node, "its operands have their channels on different axes")
        return
    for index, shape in enumerate(shapes):
        _join(flow, node, index, shape or (), whole, rank)
    flow.give(node.outputs[0], whole.axes, whole.ids)


def _shifted(labels: Labels, offset: int) -> Labels:
    return Labels(tuple(axis + offset for axis in labels.axes), labels.ids)


def _join(flow: Propagation, node: gs.Node, index: int, shape: tuple[int, ...], whole: Labels, rank: int) -> None:
    """The operand has an entry for each of the channels along some of the axes, and is broadcast along the others."""
    tensor, offset = node.inputs[index], rank - len(shape)
    own = [axis - offset if axis >= offset and shape[axis - offset] > 1 else -1 for axis in whole.axes]
    labels = flow.labels(tensor)
    if labels is None and is_constant(tensor):
        if max(own) >= 0:
            flow.place(node, index, own, whole.ids, "along")
        return
    for at, axis in enumerate(own):
        if axis >= 0 and (labels is None or axis not in labels.axes):
            reason = f"its other operand {tensor.name} has channels that cannot be followed"
            flow.hold(whole.ids, at, f"{layer_name(node)}: {reason}")
    if labels is not None and labels.ids is not whole.ids:
        sizes = [shape[axis] if axis in labels.axes else 1 for axis in own]
        flow.tie(whole.ids, labels.ids.reshape(sizes))


# -- normalization and activation ----------------------------------------------------------------------------


def per_channel(flow: Propagation, node: gs.Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters for each channel of axis 1."""
    labels = flow.labels(node.inputs[0])
    if labels is None:
        return
    if 1 not in labels.axes or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "its parameters are no constants of the channels")
        return
    if node.op == "InstanceNormalization":
        spatial = [axis for axis in labels.axes if axis > 1]
        flow.over(node, labels, spatial, "InstanceNormalization over a part of the channels")
    axes = [0 if axis == 1 else -1 for axis in labels.axes]
    for index in range(1, len(node.inputs)):
        flow.place(node, index, axes, labels.ids, "along")
    flow.give(node.outputs[0], labels.axes, labels.ids)


def group_norm(flow: Propagation, node: gs.Node) -> None:
    """Mean and variance over groups of channels: whole groups can go."""
    labels = flow.labels(node.inputs[0])
    if labels is None:
        return
    count = int(node.attrs["num_groups"])
    if labels.axes != (1,) or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "its parameters are no constants of the channels")
        return
    groups = labels.ids.reshape(count, -1)
    if count == 1:
        flow.pin(labels.ids, f"{layer_name(node)}: {node.op} over the channels", movable=True)
    else:
        flow.tie(groups[:, :1], groups)
        flow.extent(node, "num_groups", None, groups[:, 0])
    for index in (1, 2):
        whole = (flow.shape(node.inputs[index]) or (0,))[0] == len(labels.ids)
        if whole or count > 1:
            flow.place(node, index, 0, labels.ids if whole else groups[:, 0], "along")
    flow.give(node.outputs[0], 1, labels.ids)


def layer_norm(flow: Propagation, node: gs.Node) -> None:
    """Mean and variance over the channels: none can go without changing these, but their order does not matter."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    start = int(node.attrs.get("axis", -1)) % len(shape)
    if not all(is_constant(tensor) for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "its parameters are not constant")
        return
    if not (flow.through_norms and labels.axes == (len(shape) - 1,)):
        flow.over(node, labels, range(start, len(shape)), f"{node.op} over the channels", movable=True)
    axes = [max(axis - start, -1) for axis in labels.axes]
    for index in range(1, len(node.inputs)) if max(axes) >= 0 else ():
        flow.place(node, index, axes, labels.ids, "along")
    flow.give(node.outputs[0], labels.axes, labels.ids)


def skip_layer_norm(flow: Propagation, node: gs.Node) -> None:
    """com.microsoft: LayerNormalization of a sum, with scale, shift and a bias for each of the channels."""
    found = [labels for _, labels in flow.labelled_inputs(node)]
    if not found:
        return
    last = len(flow.shape(node.inputs[0]) or ()) - 1
    constants = [index for index in range(2, len(node.inputs)) if node.inputs[index].name]
    if any(not is_constant(node.inputs[index]) for index in constants) or any(
        labels.axes != (last,) for labels in found
    ):
        flow.pin_inputs(node, "its operands are no channels along the last axis, or its parameters are not constant")
        return
    if len(found) < 2:
        flow.pin_inputs(node, "its other operand has channels that cannot be followed")
    ids = found[0].ids
    flow.tie(ids, found[-1].ids)
    if not flow.through_norms:
        flow.pin(ids, f"{layer_name(node)}: {node.op} over the channels", movable=True)
    for index in constants:
        flow.place(node, index, 0, ids, "along")
    for output in node.outputs:
        if output.name and (index := len(flow.shape(output) or ()) - 1) == last:
            flow.give(output, index, ids)


def along_an_axis(flow: Propagation, node: gs.Node) -> None:
    """The outputs depend on all entries along the axis, mostly in whatever order they are."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    softmax = node.op in ("Softmax", "LogSoftmax", "Hardmax")
    axis = int(node.attrs.get("axis", 1 if softmax and flow.opset < 13 else -1))
    if node.op == "CumSum":
        value = value_of(node.inputs[1])
        if value is None:
            flow.pin_inputs(node, "its axis is not constant")
            return
        axis = int(value.reshape(-1)[0])
    axis %= len(shape)
    axes = range(axis, len(shape)) if softmax and flow.opset < 13 else [axis]
    flow.over(node, labels, axes, f"{node.op} over the channels", movable=node.op not in ("CumSum", "Hardmax"))
    flow.give(node.outputs[0], labels.axes, labels.ids)


def pooling(flow: Propagation, node: gs.Node) -> None:
    """Works on each channel of axis 1 on its own."""
    labels = flow.labels(node.inputs[0])
    if any(flow.labels(tensor) is not None for tensor in node.inputs[1:]):
        flow.pin_inputs(node, "it looks at places that are computed from channels")
        return
    if labels is None:
        return
    if any(output.outputs for output in node.outputs[1:]):
        flow.pin_inputs(node, "its indices are used")
        return
    rest = flow.over(node, labels, [axis for axis in labels.axes if axis > 1], "it pools over the channels")
    if rest.axes:
        flow.give(node.outputs[0], rest.axes, rest.ids)


def reduction(flow: Propagation, node: gs.Node) -> None:
    """Over the channels: none can go, but their order does not matter (save to ArgMax)."""
    labels, shape = flow.labels(node.inputs[0]), flow.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    positional = node.op in ("ArgMax", "ArgMin")
    axes = [int(node.attrs.get("axis", 0)) % len(shape)] if positional else axes_of(node, len(shape))
    if axes is None:
        flow.pin_inputs(node, "its axes are not constant")
        return
    rest = flow.over(node, labels, axes, f"{node.op} over the channels", movable=not positional)
    if rest.axes:
        kept = bool(node.attrs.get("keepdims", 1))
        moved = [own - (0 if kept else sum(axis < own for axis in axes)) for own in rest.axes]
        flow.give(node.outputs[0], moved, rest.ids)


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table("Constant RandomNormal RandomUniform Range EyeLike", source),
    **_table(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
        "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu "
        "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
        unary,
    ),
    **_table(
        "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean "
        "Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
        elementwise,
    ),
    "BatchNormalization": per_channel,
    "InstanceNormalization": per_channel,
    "GroupNormalization": group_norm,
    **_table("LayerNormalization RMSNormalization SimplifiedLayerNormalization", layer_norm),
    **_table("CumSum Hardmax LogSoftmax LpNormalization Softmax", along_an_axis),
    **_table(
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample LpPool MaxPool MaxRoiPool RoiAlign",
        pooling,
    ),
    **_table(
        "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare",
        reduction,
    ),
    **SHAPE_RULES,
    **LAYER_RULES,
    **ATTENTION_RULES,
    **RECURRENT_RULES,
    **_table("com.microsoft.Gelu com.microsoft.QuickGelu", unary),
    **_table("com.microsoft.BiasGelu com.microsoft.FastGelu", elementwise),
    **_table(
        "com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization",
        skip_layer_norm,
    ),
}
