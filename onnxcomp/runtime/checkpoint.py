"""The state of a long computation in a file, to go on from after an interruption."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnxcomp.errors import PassError
from onnxcomp.files import write_atomic
from onnxcomp.model import one_line

__all__ = ["Checkpoint"]

Array = np.ndarray[Any, Any]
_IDENTITY = "identity"


class Checkpoint:
    """Arrays in an .npz file that belongs to one computation.

    Args:
        path: of the file; it need not exist.
        identity: a digest of all that the computation depends on.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._identity = identity

    def load(self) -> dict[str, Array] | None:
        """What was stored last; None where there is no such file.

        Raises:
            PassError: it cannot be read, or belongs to another computation.
        """
        if not self._path.exists():
            return None
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except Exception as error:  # numpy and zipfile raise a dozen classes on damaged files
            raise PassError(f"{self._path}: is no checkpoint ({one_line(error)}); remove it to start anew") from None
        if str(found.pop(_IDENTITY, "")) != self._identity:
            raise PassError(
                f"{self._path}: is the checkpoint of another model, other data or other options; "
                "remove it, or name another file"
            )
        return found

    def store(self, state: Mapping[str, Array]) -> None:
        """Replace what was stored.

        Raises:
            InputError: the file cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, **{_IDENTITY: np.array(self._identity)}, **state)  # type: ignore[arg-type]
        write_atomic(self._path, buffer.getvalue())

    def remove(self) -> None:
        """The computation is finished."""
        self._path.unlink(missing_ok=True)
