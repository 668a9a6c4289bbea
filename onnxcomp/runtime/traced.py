"""Fast convolutions whose weights change from run to run.

ONNX Runtime computes convolutions in a blocked layout (NCHWc) only where weights are constants, because it lays them
out while it loads the model. Training changes them after every run. So the model is optimized once with labels in the
place of the weights, each a number that occurs nowhere else; where the labels are afterwards tells how ONNX Runtime
moved the weights, and what it made of them becomes inputs again, fed with the weights moved in the same way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.errors import SessionError
from onnxcomp.runtime.blocked import keep_blocked
from onnxcomp.runtime.session import reason

__all__ = ["Traced", "trace"]

Array = np.ndarray[Any, Any]

# The first label, as bits: the smallest normal float32. Labels count up from it; no model computes with such numbers.
_FIRST = 0x00800000
# What would compute with constants, and not just move them.
_ARITHMETIC = ["ConvMulFusion", "ConvAddFusion", "ConvBNFusion", "MatMulBNFusion"]


@dataclass(frozen=True)
class _Moved:
    """An input that is made of a parameter.

    Attributes:
        parameter: its name.
        positions: of the input's elements in the flat parameter; None for the parameter as it is.
        padded: some elements are zero instead; their position is one past the end.
    """

    parameter: str
    positions: Array | None = None
    padded: bool = False

    def of(self, value: Array) -> Array:
        if self.positions is None:
            return value
        flat = value.reshape(-1)
        return (np.append(flat, np.float32(0)) if self.padded else flat).take(self.positions)


@dataclass(frozen=True)
class Traced:
    """A session, and how its inputs are made of the parameters.

    Attributes:
        session: takes the inputs of the model, those for parameters apart.
        inputs: by name, those that take parameters.
    """

    session: ort.InferenceSession
    inputs: Mapping[str, _Moved]

    def feeds(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """What to feed for these values of the parameters."""
        return {name: moved.of(values[moved.parameter]) for name, moved in self.inputs.items()}


def trace(
    model: onnx.ModelProto,
    parameters: Mapping[str, tuple[int, ...]],
    options: ort.SessionOptions,
    plain: ort.SessionOptions,
) -> Traced | None:
    """The model, optimized as if its parameters were constants.

    Args:
        model: with an input for each parameter.
        parameters: shapes by name; those that may be taken for constants.
        options: to optimize with; a file for the optimized model is set in it.
        plain: options of the session, which is not to optimize again.

    Returns:
        None where ONNX Runtime computes with the parameters instead of moving them, or does not take its own result.
    """
    labels = _labels(parameters)
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        path = Path(folder, "optimized.onnx")
        options.optimized_model_filepath = str(path)
        try:
            ort.InferenceSession(
                _with_constants(model, labels).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_ARITHMETIC,
            )
            optimized = onnx.load(path)
        except Exception as error:  # the binding raises a dozen classes that share no base
            raise SessionError(f"ONNX Runtime cannot load the graph of the gradients: {reason(error)}") from None
    inputs = _as_inputs(optimized, labels)
    if inputs is None:
        return None
    for candidate in (keep_blocked(optimized, model), optimized):
        try:
            data = candidate.SerializeToString()
            return Traced(ort.InferenceSession(data, plain, providers=["CPUExecutionProvider"]), inputs)
        except Exception:  # its own layouts are no promise
            continue
    return None


def _labels(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    labels, first = {}, _FIRST
    for name, shape in parameters.items():
        size = int(np.prod(shape, dtype=np.int64))
        labels[name] = np.arange(first, first + size, dtype=np.uint32).reshape(shape)
        first += size
    return labels


def _with_constants(model: onnx.ModelProto, labels: Mapping[str, Array]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kept = [value for value in changed.graph.input if value.name not in labels]
    inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del changed.graph.input[:]
    changed.graph.input.extend(inputs)
    changed.graph.initializer.extend(
        onnx.numpy_helper.from_array(bits.view(np.float32), name) for name, bits in labels.items()
    )
    return changed


def _as_inputs(model: onnx.ModelProto, labels: Mapping[str, Array]) -> dict[str, _Moved] | None:
    """Turn the initializers that hold labels into inputs; None where one holds other numbers besides, or a
    parameter is gone: something was computed with it."""
    names = list(labels)
    firsts = np.array([labels[name].reshape(-1)[0] for name in names], dtype=np.int64)
    end = int(labels[names[-1]].reshape(-1)[-1]) + 1
    inputs: dict[str, _Moved] = {}
    rest: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        moved = _found(tensor, names, firsts, end, labels)
        if moved is None:
            rest.append(onnx.TensorProto.FromString(tensor.SerializeToString()))
        elif isinstance(moved, _Moved):
            inputs[tensor.name] = moved
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, tensor.dims)
            )
        else:
            return None
    del model.graph.initializer[:]
    model.graph.initializer.extend(rest)
    return inputs if {moved.parameter for moved in inputs.values()} == set(labels) else None


def _found(
    tensor: onnx.TensorProto, names: Sequence[str], firsts: Array, end: int, labels: Mapping[str, Array]
) -> _Moved | bool | None:
    """What an initializer was made of; None for one without labels, False for what cannot be told."""
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    bits = np.atleast_1d(onnx.numpy_helper.to_array(tensor)).view(np.uint32).astype(np.int64)
    labelled = (bits >= _FIRST) & (bits < end)
    if not labelled.any():
        return None
    if not (labelled | (bits == 0)).all():
        return False
    owners = np.searchsorted(firsts, bits[labelled], side="right") - 1
    if owners.min() != owners.max():
        return False  # several parameters in one
    name, first = names[owners[0]], int(firsts[owners[0]])
    size = labels[name].size
    if bits.shape == labels[name].shape and np.array_equal(bits, labels[name]):
        return _Moved(name)
    positions = np.where(labelled, bits - first, size).reshape(tuple(tensor.dims))
    return _Moved(name, positions, bool((~labelled).any()))
