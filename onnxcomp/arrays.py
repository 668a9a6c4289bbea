"""Samples stacked in arrays, and the .npz files that hold them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcomp.errors import InputError
from onnxcomp.model import one_line
from onnxcomp.runtime.inputs import Array, ModelInput, check_kind, check_names, conform

__all__ = ["ArraySource", "Column", "StoredColumn", "read_npz"]

MAX_BATCH_BYTES = 4 * 2**20  # of inputs: the activations behind them are an order of magnitude larger


class Column(Protocol):
    """An array whose rows are read when they are needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class StoredColumn:
    """An uncompressed member of an .npz file: mapped for each read, so that its pages do not pile up."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> None:
        self.shape = shape
        self.dtype = dtype
        self._path = path
        self._offset = offset
        self._fortran = fortran

    def __getitem__(self, rows: Any) -> Array:
        order = "F" if self._fortran else "C"
        mapped = np.memmap(self._path, self.dtype, "r", self._offset, self.shape, order)  # type: ignore[call-overload]
        return np.array(mapped[rows])


class ArraySource:
    """One array for each input, its first axis the samples.

    An array of the input's rank is cut along that axis (a unit holds as many rows as the model's fixed first
    dimension); with one axis more, each entry is a whole feed; a 0-d array for a 0-d input goes into every
    feed.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Column],
        labels: Array | None = None,
        inputs: list[ModelInput] | None = None,
    ) -> None:
        self.name = name
        self.inputs = inputs
        self._columns = dict(columns)
        wanted = {entry.name: entry for entry in inputs or ()}
        if inputs is not None:
            check_names(self._columns, inputs, name)
        self._stacked = {
            key
            for key, column in self._columns.items()
            if key in wanted and _holds_whole_feeds(column, wanted[key], name)
        }
        self._constant = {key for key, column in self._columns.items() if not column.shape}
        self._samples = self._common_length()
        cut = [entry for entry in wanted.values() if entry.name not in self._constant | self._stacked]
        fixed = _fixed_batch(cut, name)
        self.rows = fixed or 1
        self._one_by_one = bool(self._stacked or fixed)
        self._labels = labels
        self._check_samples()

    def count(self) -> int:
        return self._samples // self.rows

    def labels(self) -> list[Array] | None:
        if self._labels is None:
            return None
        return [self._labels[start : start + self.rows] for start in range(0, self._samples, self.rows)]

    def batches(self, units: Sequence[int], batch: int) -> int:
        return -(-len(units) // self._units_at_once(batch))

    def feeds(self, units: Sequence[int], batch: int) -> Iterator[dict[str, Array]]:
        step = self._units_at_once(batch)
        for start in range(0, len(units), step):
            some = np.asarray(units[start : start + step])
            try:
                feeds = self._feed(some)
            except InputError:
                for unit in some:  # says which one it is
                    self._feed(np.array([unit]))
                raise
            yield feeds

    def _feed(self, units: Array) -> dict[str, Array]:
        feeds = {key: self._slice(key, units) for key in self._columns}
        if self.inputs is None:
            return feeds
        where = f"{self.name}: sample {units[0] * self.rows}"
        return {entry.name: conform(feeds[entry.name], entry, where) for entry in self.inputs}

    def _check_samples(self) -> None:
        if self._stacked and self.rows > 1:
            raise InputError(
                f"{self.name}: the model takes {self.rows} samples at a time; "
                "stack whole feeds for every input, or for none"
            )
        if self._samples % self.rows:
            raise InputError(
                f"{self.name}: holds {self._samples} samples but the model takes {self.rows} at a time; "
                "give a multiple of that"
            )
        if self._labels is not None and (self._labels.ndim == 0 or len(self._labels) != self._samples):
            raise InputError(
                f"{self.name}: labels have shape {self._labels.shape} but there are {self._samples} samples; "
                "give one label for each sample"
            )

    def _common_length(self) -> int:
        lengths = {key: column.shape[0] for key, column in self._columns.items() if key not in self._constant}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
            raise InputError(f"{self.name}: its arrays differ in samples ({counts}); give each the same first axis")
        return next(iter(lengths.values()), 1)

    def _units_at_once(self, batch: int) -> int:
        if self._one_by_one:
            return 1
        size = sum(
            int(np.prod(column.shape[1:], dtype=np.int64)) * column.dtype.itemsize
            for key, column in self._columns.items()
            if key not in self._constant
        )
        return max(1, min(batch, MAX_BATCH_BYTES // max(1, size)))

    def _slice(self, key: str, units: Array) -> Array:
        column = self._columns[key]
        if key in self._constant:
            return np.asarray(column[()])
        if key in self._stacked:
            return np.asarray(column[int(units[0])])
        rows = (units[:, None] * self.rows + np.arange(self.rows)).reshape(-1)
        return np.asarray(column[rows])


def _holds_whole_feeds(column: Column, wanted: ModelInput, where: str) -> bool:
    """Whether each entry of the array is a whole feed.

    Raises:
        InputError: neither the array nor its entries have the input's rank and fixed dimensions.
    """
    check_kind(column.dtype, wanted, where)
    if wanted.shape is None:
        return False
    found, rank = column.shape, len(wanted.shape)
    if len(found) == rank + 1:
        feed, dims = found[1:], wanted.shape
    elif len(found) == rank:
        feed, dims = found[1:], wanted.shape[1:]
    else:
        raise InputError(
            f"{where}: array {wanted.name!r} has shape {found} where the model takes {wanted}; "
            f"give it {rank} axes, the first one the samples, or {rank + 1} with one whole feed in each entry"
        )
    if any(isinstance(dim, int) and dim != size for dim, size in zip(dims, feed, strict=True)):
        raise InputError(
            f"{where}: array {wanted.name!r} has shape {found} where the model takes {wanted}; "
            "give it those dimensions after the samples"
        )
    return len(found) == rank + 1


def _fixed_batch(inputs: Iterable[ModelInput], where: str) -> int | None:
    """The first dimension that the model fixes, or None when it leaves it open."""
    fixed = {entry.name: entry.shape[0] for entry in inputs if entry.shape and isinstance(entry.shape[0], int)}
    if len(set(fixed.values())) > 1:
        dims = ", ".join(f"{name} {dim}" for name, dim in fixed.items())
        raise InputError(
            f"{where}: the model's inputs differ in their first dimension ({dims}), so samples cannot be "
            "cut along it; give every array one axis more, with one whole feed in each entry"
        )
    return next(iter(fixed.values()), None)


def read_npz(path: Path) -> dict[str, Column]:
    """The arrays of an .npz file; those stored uncompressed stay on disk.

    Raises:
        InputError: not an .npz file, or one with pickled objects.
    """
    columns: dict[str, Column] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                columns[member.filename.removesuffix(".npy")] = _open_member(path, archive, member)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz file, a folder of them, or module:function") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError) as error:
        raise InputError(f"{path}: is not an .npz file ({one_line(error)}); write it with numpy.savez") from None
    if not columns:
        raise InputError(f"{path}: holds no arrays; give one for each model input")
    return columns


def _open_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Column:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise InputError(f"{path}: {member.filename} holds pickled Python objects; save plain arrays")
    if member.compress_type != zipfile.ZIP_STORED or 0 in shape or not shape:
        with archive.open(member) as stream:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
            return array
    with path.open("rb") as raw:  # how long the local header is, the archive's index does not tell
        raw.seek(member.header_offset + 26)
        lengths = raw.read(4)
    local = 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    return StoredColumn(path, member.header_offset + local + header, shape, dtype, fortran)
