"""What LSTM, GRU and RNN do to the channels they read: the hidden units are channels of their own."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.constants import is_constant
from onnxcomp.graph.layers import layer_name
from onnxcomp.graph.propagate import Array, Propagation, Rule

__all__ = ["RECURRENT_RULES"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STATES = (5, 6)  # initial_h and initial_c
_PEEPHOLES = 7


def recurrent(flow: Propagation, node: gs.Node) -> None:
    """A hidden unit is a row of W and R in each gate, a column of R, and its part of biases and states.

    W is (directions, gates · hidden, inputs), R (directions, gates · hidden, hidden). Both directions have the
    same number of units, so the units at the same place of each go together.
    """
    labels = flow.labels(node.inputs[0])
    if (reason := _unsuitable(flow, node)) is not None:
        flow.pin_inputs(node, reason)
        return
    if labels is not None and (ids := flow.single(node, labels, 2, f"{node.op} over time or samples")) is not None:
        flow.place(node, 1, 2, ids, "in")
    hidden = flow.fresh((flow.shape(node.inputs[2]) or (0,))[-1])
    rows = np.tile(hidden, _GATES[node.op])
    flow.place(node, 1, 1, rows, "out")
    flow.place(node, 2, 1, rows, "out")
    flow.place(node, 2, 2, hidden, "in")
    if _given(node, 3):
        flow.place(node, 3, 1, np.tile(rows, 2), "out")
    if _given(node, _PEEPHOLES):
        flow.place(node, _PEEPHOLES, 1, np.tile(hidden, 3), "out")
    for index in _STATES:
        _state(flow, node, index, hidden)
    flow.extent(node, "hidden_size", None, hidden)
    for output in node.outputs:
        if output.name and (shape := flow.shape(output)) is not None:
            flow.give(output, len(shape) - 1, hidden)


def _given(node: gs.Node, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index].name)


def _unsuitable(flow: Propagation, node: gs.Node) -> str | None:
    """Why its units cannot be told apart."""
    layer = flow.layer(node)
    if layer is None or "hidden_size" not in node.attrs:
        return "its weight is computed, or too small"
    if layer.quantized:
        return "its weight is quantized"
    weights = [node.inputs[index] for index in (1, 2, 3, _PEEPHOLES) if _given(node, index)]
    if not all(is_constant(tensor) for tensor in weights):
        return "its weights are computed"
    if layer.shared or any(len(tensor.outputs) > 1 for tensor in weights[:2]):
        return "its weight is shared"
    return None


def _state(flow: Propagation, node: gs.Node, index: int, hidden: Array) -> None:
    """An initial state has an entry for each unit."""
    if not _given(node, index):
        return
    tensor = node.inputs[index]
    labels, shape = flow.labels(tensor), flow.shape(tensor)
    if is_constant(tensor) and shape:
        flow.place(node, index, len(shape) - 1, hidden, "along")
    elif labels is not None and labels.axes == (len(shape or ()) - 1,):
        flow.tie(labels.ids, hidden)
    else:
        flow.pin(hidden, f"{layer_name(node)}: its state {tensor.name} has units that cannot be followed")
        if labels is not None:
            flow.pin(labels.ids, f"{layer_name(node)}: it is a state of other units")


RECURRENT_RULES: dict[str, Rule] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
