"""Files to write: found unfit before anything is computed, and never one that the user needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnxcomp.errors import InputError, UsageError
from onnxcomp.files import can_create, same_file
from onnxcomp.model import Model

__all__ = ["check_spared", "check_weights_spared", "check_writable", "files_named"]


def check_writable(path: Path) -> None:
    """Whether a file may be written there.

    Raises:
        InputError: it is a folder, or its folder is missing or may not be written.
    """
    try:
        _check_place(path, path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; name another file") from None


def check_spared(path: Path, what: str, needed: Iterable[tuple[str, Path]]) -> None:
    """That writing ``path`` would replace none of these.

    Args:
        path: the file to write.
        what: it is, as in ``the report``.
        needed: what they are, as in ``the model``, and their paths.

    Raises:
        UsageError: it is one of them, perhaps by another name.
    """
    for name, other in needed:
        if same_file(path, other):
            raise UsageError(f"{path}: is {name}, which {what} would replace; name another file")


def check_weights_spared(path: Path, what: str, model: Model) -> None:
    """That writing ``path`` would replace none of the files that a model's external data are in.

    Raises:
        UsageError: it is one of them, perhaps by another name.
    """
    check_spared(path, what, [("the model's external data", other) for other in model.files[1:]])


def files_named(text: str) -> list[Path]:
    """The files that are read where a user gives this: a file, a folder of arrays, or ``file.py:function``."""
    path = Path(text)
    if text and path.is_dir():
        return [found for found in path.iterdir() if found.suffix in (".npz", ".npy")]
    module = Path(text.rpartition(":")[0])
    return [found for found in (path, module) if found.is_file()]


def _check_place(path: Path, folder: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write")
    if not folder.exists():
        raise InputError(f"{path}: its folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise InputError(f"{path}: {folder} is no folder; name another place")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise InputError(f"{path}: may not be written; name another file")
        if not path.is_file():  # a device or a pipe is written to as it is
            return
    if not can_create(Path(os.path.realpath(path)).parent):
        raise InputError(f"{path}: its folder {folder} may not be written; name another place")
