"""What must hold of a model before anything works on it: files come from strangers.

ONNX Runtime refuses most broken models itself. These checks are for what would do harm before it is asked: cost
memory or time without bound, lead out of the model's folder, or silently give another model than the file holds.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import onnx
from onnx import AttributeProto, TensorProto

from onnxcomp.errors import InputError
from onnxcomp.storage.skeleton import is_reference

__all__ = ["MOST_AXES", "byte_size", "check_structure", "external_file", "external_range", "quoted"]

MOST_AXES = 64
"""Dimensions that an array of NumPy can have."""

_DEEPEST_BODY = 20  # graphs in graphs; what walks them is recursive
_DEEPEST_CALL = 100  # functions that call functions
_MOST_NODES = 20_000  # of functions written out at each of their calls, as ONNX Runtime does at every load, slowly
_MOST_DENSE_BYTES = 2**31
_AGAIN = "export the model again"

_PACKED = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_BITS = {
    number: _PACKED.get(name, 8 * onnx.helper.tensor_dtype_to_np_dtype(number).itemsize)
    for name, number in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING")
}

_SIMPLE = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING,
    AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip

_Key = tuple[str, str, str]


def check_structure(proto: onnx.ModelProto, path: Path | None = None) -> None:
    """That the model is one graph whose names mean one thing each, and none of whose parts grows without bound.

    Tensors whose bytes are elsewhere are checked for their type and dimensions alone. Declared types and shapes of
    values are not believed, so they may say anything.

    Args:
        proto: the message.
        path: its file, for messages.

    Raises:
        InputError: bodies or functions are nested too deeply, functions call each other in a circle or would be
            written out to over 20,000 nodes, a name is given twice, nodes are out of order or form a cycle, a
            value is read that nothing computes, or a tensor's data do not fit its type and dimensions.
    """
    try:
        _Check(f"{path or 'the model'}").model(proto)
    except UnicodeDecodeError:
        raise InputError(f"{path or 'the model'}: holds a name that is no text; {_AGAIN}") from None


def external_file(path: Path, location: str, tensor: str) -> Path:
    """The file with a tensor's bytes: a plain file in the model's folder or below it.

    Symbolic links must not lead out of the folder, except into the one that the model's own file is a link into, as
    caches of downloaded models have it.

    Args:
        path: the model's file.
        location: as the model says it.
        tensor: name of the tensor, for messages.

    Raises:
        InputError: the location leaves the folder, or there is no plain file.
    """
    problem = f"{path}: external data of {quoted(tensor)} cannot be used: {quoted(location)}"
    if not isinstance(location, str) or not location or "\0" in location:  # protobuf gives bytes that are no text
        raise InputError(f"{problem} is no name of a file; {_AGAIN}")
    folder = os.path.realpath(path.parent)
    inside = os.path.normpath(os.path.join(folder, location))
    try:
        real = os.path.realpath(os.path.join(folder, location))
        homes = {folder, os.path.dirname(os.path.realpath(path))}
        outside = not _is_below(inside, [folder]) or not _is_below(real, homes)
        if os.path.isabs(location) or "\\" in location or outside:
            raise InputError(f"{problem} is outside the model's folder; move it there and {_AGAIN}")
        found = os.stat(real)
    except OSError as error:
        raise InputError(f"{problem}: {error.strerror}; copy it beside the model") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would never end, a device never stop
        raise InputError(f"{problem} is no plain file; copy the data itself beside the model")
    return Path(real)


def external_range(
    path: Path, tensor: str, size: int, offset: str | None, length: str | None, expected: int | None
) -> tuple[int, int]:
    """Where in its file a tensor's bytes are: offset and length.

    Args:
        path: the model's file, for messages.
        tensor: name of the tensor, for messages.
        size: bytes of the file that holds the data.
        offset, length: as the model says them; None where it does not: from the start, to the end.
        expected: bytes that the tensor's type and dimensions take; None when that is not known.

    Raises:
        InputError: they are no numbers, lie outside of the file, or are not as many as expected.
    """
    problem = f"{path}: external data of {quoted(tensor)} cannot be used:"
    start = _whole_number(offset, 0, f"{problem} its offset")
    given = _whole_number(length, max(0, size - start), f"{problem} its length")
    if start + given > size:
        raise InputError(
            f"{problem} bytes {_figure(start)} to {_figure(start + given)} are beyond the end of its file of {size}; "
            f"copy the file again"
        )
    if expected is not None and given != expected:
        raise InputError(
            f"{problem} it has {given} bytes where its type and dimensions take {_figure(expected)}; {_AGAIN}"
        )
    return start, given


def byte_size(tensor: TensorProto, where: str) -> int | None:
    """Bytes that a tensor's type and dimensions take; None for text.

    Args:
        tensor: any tensor; its data are not looked at.
        where: the start of an error message.

    Raises:
        InputError: the type is unknown, a dimension is negative, or there are too many of them.
    """
    if len(tensor.dims) > MOST_AXES:
        raise InputError(f"{where} has {len(tensor.dims)} dimensions, more than the {MOST_AXES} there can be; {_AGAIN}")
    if any(dim < 0 for dim in tensor.dims):
        raise InputError(f"{where} has the dimensions {tuple(tensor.dims)}, of which one is negative; {_AGAIN}")
    if tensor.data_type == TensorProto.STRING:
        return None
    if tensor.data_type not in _BITS:
        raise InputError(
            f"{where} has the type {tensor.data_type}, which onnx {onnx.__version__} does not know; "
            f"install a newer onnx, or {_AGAIN}"
        )
    bits: int = math.prod(tensor.dims) * _BITS[tensor.data_type]
    return -(-bits // 8)


def quoted(text: str) -> str:
    """A name as a part of a sentence: short, and without characters that a terminal would obey."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


# -- the model -------------------------------------------------------------------------------------------------


class _Check:
    def __init__(self, where: str) -> None:
        self._where = where
        self._functions: set[_Key] = set()
        self._calls: Counter[_Key] = Counter()
        self._nodes = 0

    def model(self, proto: onnx.ModelProto) -> None:
        self._unique((entry.domain for entry in proto.opset_import), "operator set")
        keys = [_key(function.domain, function.name, function.overload) for function in proto.functions]
        self._unique((".".join(part for part in key if part) for key in keys), "function")
        self._functions = set(keys)
        self._graph(proto.graph, [])
        sizes, calls = {}, {}
        called = self._calls
        for key, function in zip(keys, proto.functions, strict=True):
            self._nodes, self._calls = 0, Counter()
            self._function(function)
            sizes[key], calls[key] = self._nodes, self._calls
        self._expand(sizes, calls)
        total = sum(count * sizes[key] for key, count in called.items())
        if total > _MOST_NODES:
            problem = f"its functions, written out, have {_figure(total)} nodes, more than {_MOST_NODES:,}"
            self._refuse(problem, "write them out with onnx.inliner.inline_local_functions")

    def _graph(self, graph: onnx.GraphProto, outer: list[set[str]]) -> None:
        if len(outer) >= _DEEPEST_BODY:
            self._refuse(f"its bodies are nested over {_DEEPEST_BODY} deep", "simplify it")
        dense = [tensor.name for tensor in graph.initializer]
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        inputs = [value.name for value in graph.input]
        self._unique([*dense, *sparse], "initializer")
        self._unique(inputs, "input")
        for tensor in graph.initializer:
            self._tensor(tensor, f"{self._where}: initializer {quoted(tensor.name)}")
        for entry in graph.sparse_initializer:
            self._sparse(entry)
        known = {*dense, *sparse, *inputs}
        self._body(graph.node, known, outer)
        for value in graph.output:
            if value.name not in known and not any(value.name in names for names in outer):
                self._refuse(f"nothing computes its output {quoted(value.name)}")

    def _function(self, function: onnx.FunctionProto) -> None:
        self._unique(function.input, f"input of function {quoted(function.name)}")
        self._body(function.node, set(function.input), [])

    def _body(self, nodes: Sequence[onnx.NodeProto], known: set[str], outer: list[set[str]]) -> None:
        """Nodes in their order, after what stands before them; ``known`` grows by their outputs."""
        for node in nodes:
            for name in node.input:
                if name not in known and name and not any(name in names for names in outer):
                    self._unknown(node, name, nodes)
            if node.attribute:
                self._attributes(node, outer, known)
            for name in node.output:
                if name in known:
                    self._refuse(f"{_described(node)} computes {quoted(name)}, which is computed or given already")
                if name:
                    known.add(name)
            if self._functions and (key := _key(node.domain, node.op_type, node.overload)) in self._functions:
                self._calls[key] += 1
        self._nodes += len(nodes)

    def _attributes(self, node: onnx.NodeProto, outer: list[set[str]], known: set[str]) -> None:
        names = set()
        for attribute in node.attribute:
            names.add(attribute.name)
            if attribute.type in _SIMPLE:
                continue
            for graph in _bodies(attribute):
                self._graph(graph, [*outer, known])
            for tensor in _tensors(attribute):
                if tensor.HasField("segment") or tensor.data_type not in TensorProto.DataType.values():
                    continue  # carried as it is, for an operator that knows what to do with it
                self._tensor(tensor, f"{self._where}: the tensor of {_described(node)}")
        if len(names) < len(node.attribute):
            repeated = _repeated([attribute.name for attribute in node.attribute])
            self._refuse(f"{_described(node)} has the attribute {quoted(repeated)} twice")

    def _expand(self, sizes: dict[_Key, int], calls: dict[_Key, Counter[_Key]]) -> None:
        """Add to each function's nodes those of the functions that it calls, callees first."""
        done: set[_Key] = set()
        for root in calls:
            stack = [(root, iter(calls[root]))]
            while stack:
                key, pending = stack[-1]
                callee = next((other for other in pending if other not in done), None)
                if callee is None:
                    stack.pop()
                    if key not in done:
                        sizes[key] += sum(count * sizes[other] for other, count in calls[key].items())
                        done.add(key)
                elif any(callee == entry for entry, _ in stack):
                    self._refuse(f"its function {quoted(callee[1])} calls itself")
                elif len(stack) >= _DEEPEST_CALL:
                    self._refuse(f"its functions call each other over {_DEEPEST_CALL} deep", "simplify it")
                else:
                    stack.append((callee, iter(calls[callee])))

    # -- tensors -----------------------------------------------------------------------------------------------

    def _tensor(self, tensor: TensorProto, where: str) -> None:
        wanted = byte_size(tensor, where)
        if tensor.HasField("segment"):
            raise InputError(f"{where} is stored in segments, which nothing reads; {_AGAIN}")
        if tensor.data_location == TensorProto.EXTERNAL or is_reference(tensor):
            if wanted is None:
                raise InputError(f"{where} is text, which cannot be external data; {_AGAIN}")
            return
        count = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            found, wanted, unit = len(tensor.raw_data), 0 if wanted is None else wanted, "bytes"
        else:
            found, unit = _typed_values(tensor), "values"
            packed = wanted is not None and _BITS[tensor.data_type] < 8
            wanted = wanted if packed and found != count else count
        if found != wanted:
            shape = f"dimensions {tuple(map(_figure, tensor.dims))}".replace("'", "")
            raise InputError(f"{where} holds {found} {unit} where its {shape} take {_figure(wanted or 0)}; {_AGAIN}")

    def _sparse(self, tensor: onnx.SparseTensorProto) -> None:
        where = f"{self._where}: sparse initializer {quoted(tensor.values.name)}"
        self._tensor(tensor.values, where)
        self._tensor(tensor.indices, f"{where}: its indices")
        dense = TensorProto(data_type=tensor.values.data_type, dims=tensor.dims)
        if (byte_size(dense, where) or 0) > _MOST_DENSE_BYTES:
            raise InputError(f"{where} has over 2 GB of zeros written out, which is how it is run; make it smaller")

    # -- messages ----------------------------------------------------------------------------------------------

    def _unique(self, names: Iterable[str], what: str) -> None:
        names = list(names)
        if len(set(names)) < len(names):
            self._refuse(f"has the {what} {quoted(_repeated(names))} twice")

    def _unknown(self, node: onnx.NodeProto, name: str, nodes: Iterable[onnx.NodeProto]) -> NoReturn:
        if any(name in other.output for other in nodes):
            self._refuse(
                f"{_described(node)} reads {quoted(name)} before it is computed: nodes are out of order or in a circle"
            )
        self._refuse(f"{_described(node)} reads {quoted(name)}, which nothing computes")

    def _refuse(self, problem: str, remedy: str = _AGAIN) -> NoReturn:
        raise InputError(f"{self._where}: {problem}; {remedy}")


def _repeated(names: list[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def _bodies(attribute: AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g") and not attribute.ref_attr_name:
        yield attribute.g
    yield from attribute.graphs


def _tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _described(node: onnx.NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"node {quoted(name)} ({quoted(node.op_type)[1:-1] or 'no operator'})"


def _key(domain: str, name: str, overload: str) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _typed_values(tensor: TensorProto) -> int:
    """Elements in the field that holds the tensor's type."""
    if tensor.data_type == TensorProto.STRING:
        return len(tensor.string_data)
    held = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
    return len(held) // (2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1)


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(os.path.commonpath([path, folder]) == folder and path != folder for folder in folders)


def _whole_number(text: str | None, default: int, what: str) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{what} is {quoted(text)} and no number of bytes; {_AGAIN}")
    return int(text)


def _figure(number: int) -> str:
    """Numbers that only an attack makes are not written out: Python refuses those of thousands of digits."""
    return str(number) if abs(number) < 10**30 else "over 10^30"
