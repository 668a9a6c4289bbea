"""A model: a graph to edit, and everything else its file held."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import uses_external_data

from onnxcomp import codec
from onnxcomp.errors import InputError
from onnxcomp.files import write_atomic
from onnxcomp.graph.state import GraphState
from onnxcomp.origins import proto_graphs
from onnxcomp.validation import byte_size, check_structure, external_file, external_range

__all__ = ["Model"]

_PROTOBUF_LIMIT = 2**31 - 1


class Model:
    """An ONNX model that passes edit through ``graph``.

    Whatever graphsurgeon does not hold (metadata, documentation, functions, versions …) is carried along and is
    there again in ``proto()`` and in the saved file.

    Example::

        model = Model.load("net.onnx")
        model.graph.nodes[0].name = "stem"
        model.save("renamed.onnx")
    """

    def __init__(self, graph: gs.Graph, header: onnx.ModelProto, path: Path | None = None) -> None:
        self.path = path
        self._graph = graph
        self._header = header

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model and its external data.

        Raises:
            InputError: the file is missing, is not an ONNX model, or its external data cannot be used.
        """
        path = Path(path)
        proto = _read(path)
        _read_external_data(proto, path)
        if not proto.graph.node and not proto.graph.output:
            raise InputError(f"{path}: is not an ONNX model (it holds no graph); export or copy it again")
        check_structure(proto, path)
        return cls._adopt(proto, path)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Model:
        """A model of a copy of ``proto``.

        Raises:
            InputError: its weights are in other files, or it is no graph that can be read.
        """
        if any(_external_tensors(proto)):
            raise InputError("the model's weights are in other files; read it with Model.load(path)")
        check_structure(proto)
        copied = onnx.ModelProto()
        copied.CopyFrom(proto)
        return cls._adopt(copied, None)

    @classmethod
    def _adopt(cls, proto: onnx.ModelProto, path: Path | None) -> Model:
        try:
            graph, header = codec.import_model(proto)
        except Exception as error:  # graphsurgeon raises whatever its parser stumbles over
            raise InputError(f"{path or 'the model'}: cannot be read as a graph: {one_line(error)}") from error
        return cls(graph, header, path)

    def proto(self) -> onnx.ModelProto:
        """The model as it stands now, as a new protobuf message with its weights in it."""
        return codec.export_model(self._graph, self._header)

    def serialize(self) -> bytes:
        """The bytes of the file that ``save`` writes.

        Raises:
            InputError: the model is over the 2 GB that one protobuf message can hold.
        """
        try:
            data: bytes = self.proto().SerializeToString(deterministic=True)
        except (EncodeError, ValueError):
            data = b""
        if not 0 < len(data) <= _PROTOBUF_LIMIT:
            raise InputError(
                f"{self.path or 'the model'}: is over the 2 GB that one ONNX file can hold; "
                "models this large are not supported yet"
            )
        return data

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model to ``path`` whole or not at all; returns its size in bytes.

        Raises:
            InputError: the folder is missing or may not be written, or the disk is full.
        """
        data = self.serialize()
        write_atomic(path, data)
        return len(data)

    def checkpoint(self) -> GraphState:
        """The state of the graph; its ``restore()`` undoes every edit made since, in place."""
        return GraphState(self._graph)

    @property
    def graph(self) -> gs.Graph:
        """The graph to edit, in place: it is the same object for the model's whole life."""
        return self._graph

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        return int(self._graph.opset)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata properties."""
        return {entry.key: entry.value for entry in self._header.metadata_props}


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of an .onnx model") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the path of an .onnx model") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; check its permissions") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except DecodeError:
        raise InputError(f"{path}: is not an ONNX model, or is truncated; export or copy it again") from None


def _read_external_data(proto: onnx.ModelProto, path: Path) -> None:
    """Read weights that are in other files of the model's folder; paths that leave it are refused."""
    for tensor in _external_tensors(proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = external_file(path, entries.get("location", ""), tensor.name)
        expected = byte_size(tensor, f"{path}: tensor {tensor.name!r}")
        span = entries.get("offset"), entries.get("length")
        try:
            with place.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                start, length = external_range(path, tensor.name, size, *span, expected)
                stream.seek(start)
                tensor.raw_data = stream.read(length)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(f"{path}: external data of {tensor.name!r} cannot be read: {reason}") from None
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


def _external_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for root in (proto.graph, *proto.functions):
        for graph in proto_graphs(root):
            tensors = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
            if isinstance(graph, onnx.GraphProto):
                tensors += graph.initializer
            yield from (tensor for tensor in tensors if uses_external_data(tensor))


def one_line(error: BaseException) -> str:
    """An exception's message as part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
