"""Where samples come from one feed at a time: lists, folders of .npz files, functions.

A source is a list of units. A unit is the least that the model can be fed: one sample, or as many as the
model's fixed first dimension says. Units are read on demand, so memory does not grow with their number.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcomp.arrays import read_npz
from onnxcomp.errors import InputError
from onnxcomp.model import one_line
from onnxcomp.runtime.inputs import Array, ModelInput, check_names, conform

__all__ = ["LABELS", "FeedSource", "FolderSource", "FunctionSource", "Source", "load_function"]

LABELS = "labels"

Feeds = dict[str, Array]


class Source(Protocol):
    """Units of feeds.

    Attributes:
        name: for messages and reports.
        rows: samples in a unit.
        inputs: what the model takes, or None where no model was given (then nothing is checked).
    """

    name: str
    rows: int
    inputs: list[ModelInput] | None

    def count(self) -> int:
        """How many units there are."""

    def labels(self) -> list[Array] | None:
        """The labels of every unit, one entry for each of its rows."""

    def batches(self, units: Sequence[int], batch: int) -> int:
        """How many feeds ``feeds`` yields."""

    def feeds(self, units: Sequence[int], batch: int) -> Iterator[Feeds]:
        """The feeds of these ascending units, up to ``batch`` samples at a time."""


class FeedSource:
    """Feeds held in memory, each a unit of its own."""

    rows = 1

    def __init__(self, name: str, feeds: Sequence[Mapping[str, Array]], labels: Sequence[Any] | None) -> None:
        self.name = name
        self.inputs: list[ModelInput] | None = None
        self._feeds = feeds
        self._labels = labels

    def count(self) -> int:
        return len(self._feeds)

    def labels(self) -> list[Array] | None:
        return None if self._labels is None else [np.atleast_1d(label) for label in self._labels]

    def batches(self, units: Sequence[int], batch: int) -> int:  # noqa: ARG002
        return len(units)

    def feeds(self, units: Sequence[int], batch: int) -> Iterator[Feeds]:  # noqa: ARG002
        for unit in units:
            yield dict(self._feeds[unit])


class FolderSource:
    """A folder of .npz files in the order of their names, each one feed."""

    rows = 1

    def __init__(self, folder: Path, inputs: list[ModelInput]) -> None:
        self.name = str(folder)
        self.inputs: list[ModelInput] | None = inputs
        self._folder = folder
        self._files = sorted(path for path in folder.glob("*.npz") if path.name != "labels.npz")
        if not self._files:
            raise InputError(f"{folder}: holds no .npz files; give a folder with one of them for each feed")

    def count(self) -> int:
        return len(self._files)

    def labels(self) -> list[Array] | None:
        for name in ("labels.npy", "labels.npz"):
            if (self._folder / name).is_file():
                labels = _labels_of_file(self._folder / name, len(self._files))
                return [labels[index : index + 1] for index in range(len(labels))]
        found = [read_npz(path).get(LABELS) for path in self._files]
        present = [np.atleast_1d(column[()]) for column in found if column is not None]
        if present and len(present) != len(found):
            missing = self._files[[column is None for column in found].index(True)]
            raise InputError(f"{missing}: has no array 'labels' though other files of the folder do; add it")
        return present or None

    def batches(self, units: Sequence[int], batch: int) -> int:  # noqa: ARG002
        return len(units)

    def feeds(self, units: Sequence[int], batch: int) -> Iterator[Feeds]:  # noqa: ARG002
        for unit in units:
            path = self._files[unit]
            feed = {key: np.asarray(column[()]) for key, column in read_npz(path).items() if key != LABELS}
            yield _checked(feed, self.inputs, str(path))


class FunctionSource:
    """``module:function`` or ``path/to/file.py:function``; called anew for every iteration.

    It yields feeds, or pairs of feeds and label.
    """

    rows = 1

    def __init__(self, text: str, inputs: list[ModelInput]) -> None:
        self.name = text
        self.inputs: list[ModelInput] | None = inputs
        self._function = load_function(text)
        self._found: tuple[int, list[Array] | None] | None = None

    def count(self) -> int:
        return self._scan()[0]

    def labels(self) -> list[Array] | None:
        return self._scan()[1]

    def batches(self, units: Sequence[int], batch: int) -> int:  # noqa: ARG002
        return len(units)

    def feeds(self, units: Sequence[int], batch: int) -> Iterator[Feeds]:  # noqa: ARG002
        wanted = set(units)
        for index, (feed, _) in enumerate(itertools.islice(self._items(), max(wanted, default=-1) + 1)):
            if index in wanted:
                yield _checked(feed, self.inputs, f"{self.name}: feed {index}")

    def _scan(self) -> tuple[int, list[Array] | None]:
        """Number of feeds and their labels: known only after a first iteration."""
        if self._found is None:
            found = [label for _, label in self._items()]
            labels = [np.atleast_1d(label) for label in found if label is not None]
            if labels and len(labels) != len(found):
                raise InputError(f"{self.name}: yields labels with some feeds only; yield one with each, or none")
            self._found = len(found), labels or None
        return self._found

    def _items(self) -> Iterator[tuple[Feeds, Any]]:
        try:
            for item in self._function():
                feeds, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
                if not isinstance(feeds, Mapping):
                    raise InputError(
                        f"{self.name}: yields {type(feeds).__name__}; "
                        "yield a dict from input names to arrays, or a pair of that and a label"
                    )
                yield {str(key): np.asarray(value) for key, value in feeds.items()}, label
        except (InputError, GeneratorExit):
            raise
        except (Exception, SystemExit) as error:  # it is the user's code: anything may come
            raise InputError(
                f"{self.name}: failed with {type(error).__name__}: {one_line(error)}; correct the function"
            ) from error


def load_function(text: str) -> Callable[..., Any]:
    """The function that ``module:function`` or ``path/to/file.py:function`` names.

    Raises:
        InputError: there is no such module, file or function.
    """
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise InputError(f"{text}: names no function; give module:function or file.py:function")
    if place.endswith(".py") and not Path(place).is_file():
        raise InputError(f"{text}: there is no file {place}; give module:function or file.py:function")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{text}: cannot import {place} ({cause}); give module:function") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"{text}: {place} has no function {attribute!r}; name one of its functions")
    loaded: Callable[..., Any] = function
    return loaded


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # as python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _load_module(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as python -m does; an installed command starts without it
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def _labels_of_file(path: Path, count: int) -> Array:
    if path.suffix == ".npz":
        columns = read_npz(path)
        if LABELS not in columns:
            raise InputError(f"{path}: holds no array 'labels'; save the labels under that name")
        labels = np.asarray(columns[LABELS][()])
    else:
        try:
            labels = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); write it with numpy.save") from None
    if labels.ndim == 0 or len(labels) != count:
        raise InputError(
            f"{path}: holds labels of shape {labels.shape} for {count} files; "
            "give one entry for each file, in the order of their names"
        )
    return labels


def _checked(feed: Feeds, inputs: list[ModelInput] | None, where: str) -> Feeds:
    if inputs is None:
        return feed
    check_names(feed, inputs, where)
    return {entry.name: conform(feed[entry.name], entry, where) for entry in inputs}
