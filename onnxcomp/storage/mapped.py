"""Weights of a graph that are read from where they lie when something asks for them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxcomp.storage.payload import InFile, InMemory, Payload
from onnxcomp.storage.skeleton import LEAST, is_reference, refer

__all__ = ["Mapped", "Table"]

Array = np.ndarray[Any, Any]


class Mapped(LazyValues):  # type: ignore[misc]
    """The value of a constant that is a reference.

    Attributes:
        tensor: the reference.
        payload: its bytes.
    """

    def __init__(self, tensor: onnx.TensorProto, payload: Payload) -> None:
        super().__init__(tensor)
        self.payload = payload

    def load(self) -> Array:
        """The value as an array of its own."""
        return np.array(self.view())

    def view(self) -> Array:
        """The value; the memory may be shared, and must not be written into."""
        data = self.payload.read()
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        if self.payload.nbytes != dtype.itemsize * int(np.prod(self.tensor.dims, dtype=np.int64)):
            tensor = onnx.TensorProto(data_type=self.tensor.data_type, dims=self.tensor.dims, raw_data=bytes(data))
            return np.asarray(onnx.numpy_helper.to_array(tensor))  # several values in a byte
        array = np.frombuffer(data, dtype).reshape(self.tensor.dims)
        return array if array.flags.aligned else array.copy()


class Table:
    """The payloads that the graphs and messages of one model refer to."""

    def __init__(self, payloads: list[Payload]) -> None:
        self._imported = payloads
        self._aside: list[weakref.ref[Payload]] = []  # the graph holds them while it needs them
        self._arrays: dict[int, _Known] = {}

    def __getitem__(self, index: int) -> Payload:
        return self._imported[index]

    def start(self) -> list[Payload]:
        """Those that references in the graph may mean, for an export to add to."""
        return [*self._imported, *(aside() or InMemory(b"") for aside in self._aside)]

    def encoded(self, tensor: gs.Constant, payloads: list[Payload]) -> onnx.TensorProto | None:
        """The message of a constant's new value, with its bytes among the payloads; None if it is small.

        graphsurgeon would copy it, and has no encoding, or a wrong one, for text and some of the smaller types.
        """
        array = tensor._values
        plain = array.dtype.kind in "fiubc"
        if plain and (array.nbytes < LEAST or tensor._export_dtype is not None):
            return None
        if not plain:
            text = array.dtype.kind in "US"
            message = onnx.numpy_helper.from_array(array.astype(object) if text else array, tensor.name)
            payload: Payload = InMemory(message.raw_data)
        else:
            element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            message = onnx.TensorProto(name=tensor.name, data_type=element, dims=array.shape)
            payload = self._payload(array)
        if payload.nbytes >= LEAST:
            refer(message, len(payloads))
            payloads.append(payload)
        if tensor.data_location is not None:
            message.data_location = tensor.data_location
        return message

    def put_aside(self, graph_constants: list[gs.Constant], least: int) -> None:
        """Move new values of ``least`` bytes or more out of memory, into temporary files."""
        for tensor in graph_constants:
            array = tensor._values
            if not isinstance(array, np.ndarray) or array.nbytes < least:
                continue
            payloads = self.start()
            message = self.encoded(tensor, payloads)
            if message is not None and is_reference(message):
                payload = payloads[-1].in_file()
                refer(message, len(self._imported) + len(self._aside))
                self._aside.append(weakref.ref(payload))
                tensor._values = Mapped(message, payload)

    def _payload(self, array: Array) -> Payload:
        """The same payload for the same array, so that it is written to a file once."""
        key = id(array)
        known = self._arrays.get(key)
        if known is None or known.array() is not array:
            known = self._arrays[key] = _Known(weakref.ref(array, lambda _: self._arrays.pop(key, None)))
        payload = None if known.payload is None else known.payload()
        if payload is None:
            payload = InMemory(array, known.files)
            known.payload = weakref.ref(payload)
        return payload


@dataclass
class _Known:
    """What an array has become; it must not keep the array in memory, as a payload does."""

    array: weakref.ref[Array]
    payload: weakref.ref[InMemory] | None = None
    files: list[InFile] = field(default_factory=list)
