"""Models as files: in one, or with the weights in another beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from onnxcomp.errors import InputError
from onnxcomp.files import held, open_atomic, remove_unheld
from onnxcomp.storage.payload import Payload
from onnxcomp.storage.reader import locations
from onnxcomp.storage.skeleton import Skeleton, is_reference, tensors_of
from onnxcomp.storage.wire import LIMIT, Buffer

__all__ = ["save"]

# Weights of this size start where memory pages do, so that a runtime can map them; the others as vectors want it.
_PAGED, _PAGE, _VECTOR = 2**16, 4096, 64


def save(skeleton: Skeleton, path: Path, external: bool) -> int:
    """Write a model, whole or not at all; returns the bytes written.

    Args:
        skeleton: the model.
        path: its file.
        external: put the larger weights into a file of their own beside it, named after their content: so the
            model's file, which is replaced last, refers to the weights it belongs to at every moment. A model
            over 2 GB is written like this in any case.

    Raises:
        InputError: the folder is missing or may not be written, or the disk is full.
    """
    layout = _layout(skeleton) if external or skeleton.size > LIMIT else []
    if not layout:
        size = _write(path, skeleton.chunks())
        _remove_earlier(path)
        return size
    weights = path.with_name(f"{path.name}.{_digest(layout)}.data")
    offsets = {id(payload): offset for offset, payload in layout}
    message = skeleton.placed(lambda payload: (weights.name, offsets[id(payload)])).SerializeToString()
    while True:
        size = _write(weights, _laid_out(layout))
        with held(weights) as there:
            if there:  # else another process has just removed them: nothing referred to them yet
                size += _write(path, [message])
                _remove_earlier(path)
                return size


Layout = list[tuple[int, Payload]]


def _layout(skeleton: Skeleton) -> Layout:
    """Where in their file the weights are to start; what several tensors have is there once."""
    found: dict[int, tuple[int, Payload]] = {}
    position = 0
    for tensor in tensors_of(skeleton.proto):
        if not is_reference(tensor):
            continue
        payload = skeleton.payload(tensor)
        if id(payload) not in found:
            position = _aligned(position, payload.nbytes)
            found[id(payload)] = position, payload
            position += payload.nbytes
    return list(found.values())


def _aligned(position: int, nbytes: int) -> int:
    step = _PAGE if nbytes >= _PAGED else _VECTOR
    return -(-position // step) * step


def _laid_out(layout: Layout) -> Iterator[Buffer]:
    position = 0
    for offset, payload in layout:
        yield bytes(offset - position)
        yield from payload.chunks()
        position = offset + payload.nbytes


def _digest(layout: Layout) -> str:
    digest = hashlib.sha256()
    for chunk in _laid_out(layout):
        digest.update(chunk)
    return digest.hexdigest()[:16]


def _write(path: Path, chunks: Iterable[Buffer]) -> int:
    size = 0
    with open_atomic(path) as stream:
        for chunk in chunks:
            size += stream.write(chunk)
    return size


def _remove_earlier(path: Path) -> None:
    """Remove weights of models that were here before, or were never finished.

    Models that were moved or copied within the folder go on using theirs.
    """
    ours = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    with suppress(OSError):
        for found in path.parent.iterdir():
            if ours.fullmatch(found.name) and found.is_file():
                remove_unheld(found, partial(_is_needed, found.name, path))


def _is_needed(weights: str, path: Path) -> bool:
    """Whether this model or another one in the folder refers to the file, or cannot be asked."""
    try:
        return any(weights in locations(model) for model in (path, *path.parent.glob("*.onnx")))
    except InputError:
        return True
