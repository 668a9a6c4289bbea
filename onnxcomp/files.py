"""Files that are written whole or not at all, and temporaries that no dead process leaves for good.

Every temporary is locked by the process that writes it. The system gives up the lock when that process ends,
however it ends, so a temporary that can be locked belongs to nobody: the next write into its folder removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from onnxcomp.errors import InputError

try:
    import fcntl
except ImportError:  # Windows removes no file that is open, so a lock is not needed there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "can_create",
    "held",
    "open_atomic",
    "remove_strays",
    "remove_unheld",
    "same_file",
    "scratch_folder",
    "write_atomic",
]

_PREFIX = ".onnxcomp-"  # not the file's own name: with more characters it may be too long
_SUFFIX = ".tmp"
_SCRATCH_PREFIX = "onnxcomp-"
_HELD_OPEN = ".held"


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary stream whose bytes become the file when the block ends: ``path`` is old or new and never half.

    They are written to a temporary file in the same folder, forced to the disk, and renamed. When the block raises,
    the old file stays. A replaced file's permissions stay, and so does a symbolic link: what it points to is
    replaced. A device or pipe is written to as it is. Temporaries that dead processes left in the folder go.

    Example::

        with open_atomic("small.onnx") as stream:
            stream.write(header)
            stream.writelines(chunks)

    Raises:
        InputError: the folder is missing or may not be written, or the disk is full. Any OSError of the block is
            taken for one of the file's.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file to write")
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                yield stream
        else:
            with _replacing(Path(os.path.realpath(path))) as stream:
                yield stream
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise InputError(f"{path}: its folder {path.parent} does not exist; create it first") from None
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write all of a file as ``open_atomic`` does.

    Raises:
        InputError: the folder is missing or may not be written, or the disk is full.
    """
    with open_atomic(path) as stream:
        stream.write(data)


def can_create(folder: Path) -> bool:
    """Whether files can be made there, found out by making one: permissions alone do not tell."""
    try:
        with _temporary(folder):
            return True
    except OSError:
        return False


def same_file(first: Path, second: Path) -> bool:
    """Whether both are names of one file, which need not exist."""
    try:
        return first.samefile(second)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(first) == os.path.realpath(second)


def remove_strays(folder: Path) -> None:
    """Remove the temporaries of processes that have died from a folder; those of living ones stay."""
    _remove_unlocked(folder, _PREFIX, _SUFFIX)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the system's place for temporary files, gone when the block ends; and with it those that dead
    processes left there. A fork that ends the block leaves the folder to its parent."""
    place = Path(tempfile.gettempdir())
    _remove_unlocked(place, _SCRATCH_PREFIX, _SUFFIX)
    with _scratch_locked(place) if fcntl is not None else _scratch_held_open(place) as folder:
        yield folder


@contextmanager
def _scratch_locked(place: Path) -> Iterator[Path]:
    owner = os.getpid()
    while True:
        folder = Path(tempfile.mkdtemp(_SUFFIX, _SCRATCH_PREFIX, place))
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # before it was locked, another process took it for one of a dead process
            continue
        try:
            if _claim(descriptor, folder):
                yield folder
                return
        finally:
            if os.getpid() == owner:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def _scratch_held_open(place: Path) -> Iterator[Path]:
    """On Windows: as no file that is open can be removed, one beside the folder tells that its process lives."""
    descriptor, name = tempfile.mkstemp(_HELD_OPEN, _SCRATCH_PREFIX, place)
    folder = Path(name).with_suffix(_SUFFIX)
    try:
        folder.mkdir(0o700)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)  # what a session still maps stays, until another process comes by
        with contextlib.suppress(OSError):
            os.unlink(name)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Keep a file from ``remove_unheld`` of other processes while the block runs; false when it is gone already."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with stream:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # where nothing can be locked, nobody removes anything either
                fcntl.flock(stream, fcntl.LOCK_SH)
        yield _is_named(stream.fileno(), path)


def remove_unheld(path: Path, is_needed: Callable[[], bool]) -> None:
    """Remove a file unless a process holds it or, asked while none can, it is needed after all."""
    with contextlib.suppress(OSError):
        _remove_stray(str(path), is_needed)


# -- one temporary -------------------------------------------------------------------------------------------


@contextmanager
def _replacing(place: Path) -> Iterator[IO[bytes]]:
    remove_strays(place.parent)
    with _temporary(place.parent) as (stream, temporary):
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        os.chmod(temporary, _permissions(place))
        if fcntl is None:
            stream.close()  # Windows renames no file that is open
        os.replace(temporary, place)


@contextmanager
def _temporary(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """A new locked file and its name; it is gone afterwards unless it was renamed."""
    while True:
        descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                if _claim(stream.fileno(), name):
                    yield stream, name
                    return
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _claim(descriptor: int, name: str | os.PathLike[str]) -> bool:
    """Lock what this process has just made; false when another took it for a stray before it was locked."""
    if fcntl is None:
        return True
    with contextlib.suppress(OSError):  # where nothing can be locked, nobody removes anything either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return _is_named(descriptor, name)


def _is_named(descriptor: int, name: str | os.PathLike[str]) -> bool:
    """Whether what is open still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(name))
    except FileNotFoundError:
        return False


def _remove_unlocked(folder: Path, prefix: str, suffix: str) -> None:
    with contextlib.suppress(OSError):  # the folder is missing or may not be read; whoever writes will say so
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if entry.name.startswith(prefix) and entry.name.endswith(suffix)]
        for path in found:
            with contextlib.suppress(OSError):  # it is locked, another's, or gone
                _remove_stray(path)


def _remove_stray(path: str, is_needed: Callable[[], bool] = lambda: False) -> None:
    if fcntl is None:
        if os.path.basename(path).startswith(_SCRATCH_PREFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.removesuffix(_SUFFIX) + _HELD_OPEN)  # fails while its process lives
        if not is_needed():
            _remove(path)
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not keep us waiting
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(descriptor, path) and not is_needed():
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _permissions(path: Path) -> int:
    """Those of the file that is replaced, else what the process gives new files (mkstemp gives 0600)."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
