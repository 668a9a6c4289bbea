"""Temporary copies of models. What goes wrong with them is said of the file that the user named."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from onnxcomp.container.restoring import header_of, restore
from onnxcomp.errors import InputError
from onnxcomp.files import scratch_folder
from onnxcomp.storage.payload import process_folder

__all__ = ["RestoredAside", "aside", "restore_into"]


class RestoredAside:
    """A packed model restored into temporary files, which go with this object or with the process.

    Args:
        source: the container.

    Attributes:
        path: the model's own file.

    Raises:
        InputError: the container is damaged, truncated or none; or there is no room for its files.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        try:
            self._folder = Path(tempfile.mkdtemp(dir=process_folder()))
        except OSError as error:
            raise _no_room(source, f"cannot be written: {error.strerror}") from None
        weakref.finalize(self, _remove, self._folder, os.getpid())
        with self.named():
            self.path = restore_into(source, self._folder)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the block name the container instead of its temporary files."""
        with _said_of(self._source, self._folder):
            yield


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A folder for temporary files while the block runs, whose errors name ``path`` instead of them.

    Raises:
        InputError: there is no room for the folder.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder())
        except OSError as error:
            raise _no_room(path, f"cannot be written: {error.strerror}") from None
        with _said_of(path, folder):
            yield folder


def restore_into(source: Path, folder: Path) -> Path:
    """Restore a packed model into an empty folder; returns its own file, which has the name of no other.

    Raises:
        InputError: the container is damaged, truncated or none; or a file cannot be written.
    """
    taken = {PurePosixPath(file.name).parts[0].casefold() for file in header_of(source).files[1:]}
    names = (f"model{number or ''}.onnx" for number in itertools.count())
    plain = folder / next(name for name in names if name not in taken)
    restore(source, plain)
    return plain


@contextmanager
def _said_of(path: Path, folder: Path) -> Iterator[None]:
    """Errors of files in ``folder`` are raised as errors of ``path``."""
    try:
        yield
    except InputError as error:
        for name in (str(folder), os.path.realpath(folder)):
            if match := re.fullmatch(rf"{re.escape(name)}.*?: (.*)", str(error), re.DOTALL):
                problem = match[1]
                is_full = problem.startswith("cannot be written")
                raise (_no_room(path, problem) if is_full else InputError(f"{path}: {problem}")) from None
        raise


def _no_room(path: Path, problem: str) -> InputError:
    place = tempfile.tempdir or "the folder of temporary files"
    return InputError(f"{path}: its temporary copy in {place} {problem}; set TMPDIR")


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # what a fork has no use for, its parent may have
        shutil.rmtree(folder, ignore_errors=True)
