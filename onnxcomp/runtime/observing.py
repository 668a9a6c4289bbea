"""A model whose tensors can be asked for wherever they are, in the main graph or inside bodies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxcomp.errors import SessionError
from onnxcomp.graph.bodies import Address
from onnxcomp.runtime.raising import Raised, crosses_scan, obstacle, raise_tensors, unpack
from onnxcomp.runtime.session import Feeds, create, run, with_outputs
from onnxcomp.storage.skeleton import Skeleton

__all__ = ["Key", "View"]

Array = np.ndarray[Any, Any]
Key: TypeAlias = str | Address  # a tensor of the main graph by its name, one of a body by its address


class View:
    """A session that shows some tensors of a model.

    Where a Scan computes one of them, a run may fail only because it is looked at (see ``raising``). So tensors
    are sorted beforehand: ``split``.
    """

    def __init__(self, model: Skeleton, keys: Sequence[Key], optimize: bool = True) -> None:
        inner = [key for key in keys if isinstance(key, Address)]
        self._keys = keys
        self._raised: dict[Address, Raised] = {}
        self._fragile = any(crosses_scan(model.proto, address.steps) for address in inner)
        if inner:
            raised = model.copied()
            self._raised = raise_tensors(raised, inner)
            model = Skeleton(raised, model.payloads)
        self._names: list[str] = []
        for key in keys:
            raised_key = self._raised[key] if isinstance(key, Address) else None
            self._names += [str(key)] if raised_key is None else [raised_key.values, raised_key.records]
        self._session = create(with_outputs(model, self._names), optimize=optimize)

    def run(self, feeds: Feeds) -> Iterator[tuple[Key, Array]]:
        """Each tensor with its value, those of bodies once for every time that they were computed.

        Nothing when the run failed because a Scan changes the shape of a tensor.

        Raises:
            SessionError: the run failed.
        """
        try:
            values = run(self._session, feeds, self._names)
        except SessionError:
            if self._fragile:
                return
            raise
        for key in self._keys:
            if isinstance(key, Address):
                raised = self._raised[key]
                for array in unpack(values[raised.values], values[raised.records]):
                    yield key, array
            else:
                yield key, values[key]

    @staticmethod
    def split(model: Skeleton, keys: Iterable[Key]) -> list[list[Key]]:
        """The tensors that can be shown, in groups that do not fail together; each keeps its order."""
        sound: list[Key] = []
        fragile: list[Key] = []
        for key in keys:
            if isinstance(key, str):
                sound.append(key)
            elif not obstacle(model.proto, key.steps):
                (fragile if crosses_scan(model.proto, key.steps) else sound).append(key)
        return [group for group in (sound, fragile) if group]
