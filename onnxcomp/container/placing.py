"""Where a container's external data go: below the model's folder, in the place of no other file."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from onnxcomp.container.format import StoredFile
from onnxcomp.errors import InputError
from onnxcomp.files import open_atomic

__all__ = ["Placed"]

_ELSEWHERE = "restore it into another folder"
_PIECE = 2**20


class Placed:
    """The files beside a model that is restored. When the block fails, those that were made in it go, and folders.

    Args:
        source: the container, for messages.
        destination: the model's own file.
    """

    def __init__(self, source: Path, destination: Path) -> None:
        self._source = source
        self._destination = destination
        self._folder = destination.parent
        self._there: set[str] = set()
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for path in reversed(self._made):
                with suppress(OSError):  # another may have put something into a new folder
                    (os.rmdir if path.is_dir() else os.unlink)(path)

    def check(self, files: Sequence[StoredFile]) -> None:
        """That each has a place of its own, or is there already.

        Raises:
            InputError: another file is in one's place, or a link would lead it out of the folder.
        """
        own = Path(os.path.realpath(self._destination))
        for file in files:
            place = Path(os.path.realpath(self._folder / file.name))
            if own in (place, *place.parents):
                raise InputError(f"{self._destination}: is the name of the model's external data; name another file")
            try:
                if self._is_there(file):
                    self._there.add(file.name)
            except OSError as error:
                raise self._refused(
                    file, f"cannot be written to {self._folder / file.name}: {error.strerror}"
                ) from None

    @contextmanager
    def opened(self, file: StoredFile) -> Iterator[IO[bytes]]:
        """A stream that becomes the file when the block ends; of one that is there already, a stream to nowhere.

        Raises:
            InputError: it cannot be written.
        """
        if file.name in self._there:
            yield _Nowhere()
            return
        place = self._folder / file.name
        self._make_folders(file)
        if os.path.lexists(place):  # it has come meanwhile, or its name is another's but for upper and lower case
            raise self._refused(file, f"would replace {place}")
        with open_atomic(place) as stream:
            yield stream
        self._made.append(place)

    def _is_there(self, file: StoredFile) -> bool:
        place = self._folder / file.name
        root = Path(os.path.realpath(self._folder))
        if not Path(os.path.realpath(place.parent)).is_relative_to(root):
            raise self._refused(file, f"would leave {root} through a link at {place.parent}")
        try:
            found = place.lstat()
        except FileNotFoundError:
            return False
        if stat.S_ISREG(found.st_mode) and found.st_size == file.size and _digest(place) == file.digest:
            return True
        raise self._refused(file, f"would replace {root / file.name}")

    def _make_folders(self, file: StoredFile) -> None:
        place = self._folder / file.name
        for folder in reversed(place.parents[: len(Path(file.name).parents) - 1]):
            try:
                folder.mkdir()
            except FileExistsError:  # if it is no folder, the file in it cannot be written
                continue
            except OSError as error:
                raise self._refused(file, f"cannot be written to {place}: {error.strerror}") from None
            self._made.append(folder)

    def _refused(self, file: StoredFile, problem: str) -> InputError:
        return InputError(f"{self._source}: its external data {file.name} {problem}; {_ELSEWHERE}")


class _Nowhere(io.BytesIO):
    """Takes bytes and forgets them."""

    def write(self, data: object) -> int:
        return len(memoryview(data))  # type: ignore[arg-type]


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.digest()
