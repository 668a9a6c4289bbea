"""A model: a graph to edit, and everything else its file held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxcomp import codec
from onnxcomp.container.aside import RestoredAside
from onnxcomp.container.format import has_suffix, is_packed
from onnxcomp.container.packing import pack_model
from onnxcomp.errors import InputError
from onnxcomp.graph.state import GraphState
from onnxcomp.storage.mapped import Table
from onnxcomp.storage.payload import InFile
from onnxcomp.storage.reader import external_tensors, read, split
from onnxcomp.storage.skeleton import Skeleton
from onnxcomp.storage.validation import check_structure
from onnxcomp.storage.wire import LIMIT
from onnxcomp.storage.writer import save

__all__ = ["Model", "one_line"]

_WORTH_A_FILE = 2**20


class Model:
    """An ONNX model that passes edit through ``graph``.

    Whatever graphsurgeon does not hold (metadata, documentation, functions, versions …) is carried along and is
    there again in ``proto()`` and in the saved file.

    Example::

        model = Model.load("net.onnx")
        model.graph.nodes[0].name = "stem"
        model.save("renamed.onnx")
    """

    def __init__(self, graph: gs.Graph, header: onnx.ModelProto, table: Table, external: Sequence[Path] = ()) -> None:
        self.path: Path | None = None
        self._graph = graph
        self._header = header
        self._table = table
        self._external = tuple(external)
        self._restored: RestoredAside | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Open a model. Its larger weights stay in the file, or the files, until something asks for them.

        A packed model (``.onnxz``) is restored into temporary files, which go with the model and its copies.

        Raises:
            InputError: the file is missing, is not an ONNX model, or its external data cannot be used; or it is a
                packed model that is damaged.
        """
        path = Path(path)
        if is_packed(path):
            restored = RestoredAside(path)
            with restored.named():
                model = cls._load(restored.path, restored)
            model.path, model._restored = path, restored
            return model
        return cls._load(path)

    @classmethod
    def _load(cls, path: Path, restored: RestoredAside | None = None) -> Model:
        skeleton, external = read(path)
        for payload in skeleton.payloads:
            if isinstance(payload, InFile):
                payload.source.keeps = restored  # copies of the model read from the same files
        if not skeleton.proto.graph.node and not skeleton.proto.graph.output:
            raise InputError(f"{path}: is not an ONNX model (it holds no graph); export or copy it again")
        check_structure(skeleton.proto, path)
        return cls._adopt(skeleton, path, external)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto) -> Model:
        """A model of a copy of ``proto``.

        Raises:
            InputError: its weights are in other files, or it is no graph that can be read.
        """
        if any(external_tensors(proto)):
            raise InputError("the model's weights are in other files; read it with Model.load(path)")
        check_structure(proto)
        return cls._adopt(split(proto), None)

    @classmethod
    def _adopt(cls, skeleton: Skeleton, path: Path | None, external: Sequence[Path] = ()) -> Model:
        table = Table(skeleton.payloads)
        try:
            graph, header = codec.import_model(skeleton.proto, table)
        except InputError as error:
            raise InputError(f"{path or 'the model'}: {error}") from None
        except Exception as error:  # graphsurgeon raises whatever its parser stumbles over
            raise InputError(f"{path or 'the model'}: cannot be read as a graph: {one_line(error)}") from error
        model = cls(graph, header, table, external)
        model.path = path
        return model

    def copy(self) -> Model:
        """A model of its own, as this one stands now; weights that neither replaces are shared.

        It has no path: it is not what the file holds.
        """
        return self._adopt(self.skeleton(), None, self._external)

    def become(self, skeleton: Skeleton) -> None:
        """Replace all that the graph holds, in place, by an edited copy of this model's own ``skeleton()``.

        A checkpoint that was taken before undoes it.

        Raises:
            InputError: it is no graph that can be read.
        """
        check_structure(skeleton.proto)
        edited = self._adopt(skeleton, None, self._external)
        live = vars(self._graph)
        live.clear()
        live.update(vars(edited._graph))
        self._table = edited._table  # it begins with what the graph's earlier states refer to

    def skeleton(self) -> Skeleton:
        """The model as it stands now: a new protobuf message, with its larger weights beside it."""
        return codec.export_model(self._graph, self._header, self._table)

    def proto(self) -> onnx.ModelProto:
        """The model as it stands now, as a new protobuf message with its weights in it."""
        return self.skeleton().whole()

    def serialize(self) -> bytes:
        """The bytes of the model in one file.

        Raises:
            InputError: the model is over the 2 GB that one protobuf message can hold.
        """
        skeleton = self.skeleton()
        if skeleton.size > LIMIT:
            raise InputError(f"{self.path or 'the model'}: is over the 2 GB that one ONNX file can hold; use save")
        return skeleton.serialize()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model to ``path`` whole or not at all; returns the bytes written.

        A path that ends in ``.onnxz`` is written as a packed model (see ``pack``). Of a plain one, the larger weights
        are written to a file beside it, ``<name>.<hash of the weights>.data``, where the model came with such a
        file or is over the 2 GB that one file can hold.

        Raises:
            InputError: the folder is missing or may not be written, or the disk is full.
        """
        path = Path(path)
        return pack_model(self, path) if has_suffix(path) else save(self.skeleton(), path, bool(self._external))

    @property
    def files(self) -> list[Path]:
        """What it was loaded from: its file, and those with external data by name; none for one made in memory.

        Of a packed model, the plain files that it was restored to.
        """
        if self.path is None:
            return []
        return [self.path if self._restored is None else self._restored.path, *self._external]

    @property
    def is_large(self) -> bool:
        """Whether the weights are worth keeping out of memory."""
        return self.skeleton().is_large

    def put_weights_aside(self) -> None:
        """Move large weights that are new out of memory, into temporary files, if the model is large as a whole."""
        if self.is_large:
            self._table.put_aside(list(codec.constants(self._graph)), _WORTH_A_FILE)

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


def one_line(error: BaseException) -> str:
    """An exception's message as part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
