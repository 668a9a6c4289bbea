"""External data that is not what it should be, and files that are damaged byte by byte."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from fuzzing.seeds import external_weights
from fuzzing.structure import pick

__all__ = ["BYTEWISE", "EXTERNAL", "boundaries"]

_NUMBERS = (
    "-1", "", "ten", "1e3", "0x10", " 4", "1_0", "\u0663", "0", "3", "9" * 18, "9" * 30, str(2**63 - 1), str(2**64),
    "-" + "9" * 30,
)  # fmt: skip


def _set(tensor: onnx.TensorProto, key: str, text: str) -> None:
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = text


def place(rng: np.random.Generator, proto: onnx.ModelProto, folder: Path) -> None:
    """A location out of the folder, or of something that is no plain file."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "away").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("..")
    (folder / "zeros").symlink_to("/dev/zero")
    (folder / "round").symlink_to("round")
    places = (
        "../weights.bin", "folder/../../weights.bin", "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/environ",
        "pipe", "folder", "away", "up/weights.bin", "zeros", "round", "", ".", "..", "gone.bin", "a\x00b", "w" * 5000,
        "//etc/passwd", "folder/./../weights.bin", "C:\\weights.bin", "..\\weights.bin", "weights.bin\n", "model.onnx",
        str(folder / "weights.bin"), "folder/weights.bin", "~/weights.bin", "file:///etc/passwd", "weights.bin/",
    )  # fmt: skip
    tensor = pick(rng, proto.graph.initializer)
    _set(tensor, "location", pick(rng, places))
    if rng.random() < 0.4:
        for index in reversed(range(len(tensor.external_data))):
            if tensor.external_data[index].key != "location":
                del tensor.external_data[index]


def span(rng: np.random.Generator, proto: onnx.ModelProto, _: Path) -> None:
    """An offset or length that is no number, or lies outside of the file."""
    _set(pick(rng, proto.graph.initializer), pick(rng, ("offset", "length")), pick(rng, _NUMBERS))


def entries(rng: np.random.Generator, proto: onnx.ModelProto, _: Path) -> None:
    """Entries that are missing, repeated or unknown; data here and there at once."""
    tensor, how = pick(rng, proto.graph.initializer), int(rng.integers(5))
    if how == 0:
        del tensor.external_data[int(rng.integers(3))]
    elif how == 1:
        tensor.external_data.append(pick(rng, tensor.external_data))
    elif how == 2:
        key = pick(rng, ("checksum", "basepath", "", "__class__", "name", "raw_data"))
        tensor.external_data.add(key=key, value="x")
    elif how == 3:
        tensor.raw_data = b"1234"
    else:
        tensor.dims[:] = [2**40]


def data(rng: np.random.Generator, _: onnx.ModelProto, folder: Path) -> None:
    """A file of weights that is cut, empty, or gone."""
    path = folder / "weights.bin"
    how = int(rng.integers(3))
    if how == 2:
        path.unlink()
    else:
        os.truncate(path, 0 if how else path.stat().st_size // 2)


EXTERNAL = (place, span, entries, data)


def with_external_data(
    rng: np.random.Generator, proto: onnx.ModelProto, folder: Path, mutation: Callable[..., None]
) -> None:
    """Move the weights to a file of the folder, and break something about that."""
    (folder / "weights.bin").write_bytes(external_weights(proto))
    mutation(rng, proto, folder)


# -- bytes -----------------------------------------------------------------------------------------------------


def boundaries(data: bytes, start: int = 0, depth: int = 6) -> list[int]:
    """Where fields begin and end in a message and, as far as they can be told, in the messages that it holds."""
    found, at = [], 0
    while at < len(data):
        found.append(start + at)
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            size, at = _varint(data, at)
            if 0 < size <= len(data) - at and depth and size < 20_000:
                found += boundaries(data[at : at + size], start + at, depth - 1)
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            break
    return sorted(position for position in found if position <= start + len(data))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data):
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            break
    return number, at


def flip(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    out = bytearray(whole)
    for _ in range(int(pick(rng, (1, 1, 2, 8, 64)))):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def flip_structure(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    """Damage to tags and lengths, of which a file of weights has few."""
    out, at = bytearray(whole), pick(rng, boundaries(whole))
    at = min(at + int(rng.integers(3)), len(out) - 1)
    out[at] = int(rng.integers(256))
    return bytes(out)


def truncate(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    return whole[: pick(rng, boundaries(whole)) + int(rng.integers(2))]


def insert(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    at = pick(rng, boundaries(whole)) if rng.random() < 0.5 else int(rng.integers(len(whole)))
    return whole[:at] + rng.bytes(int(pick(rng, (1, 2, 8, 100)))) + whole[at:]


def delete(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    at = pick(rng, boundaries(whole)) if rng.random() < 0.5 else int(rng.integers(len(whole)))
    return whole[:at] + whole[at + int(pick(rng, (1, 2, 8, 100))) :]


def splice(rng: np.random.Generator, whole: bytes, other: bytes) -> bytes:
    """The beginning of one model and the end of another; parsers merge what they meet twice."""
    if rng.random() < 0.3:
        return whole + other
    return whole[: pick(rng, boundaries(whole))] + other[pick(rng, boundaries(other)) :]


def overlong(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    """A number of more than 64 bits, or a length beyond the end."""
    at = pick(rng, boundaries(whole)) + int(rng.integers(2))
    number = pick(rng, (b"\xff" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 30, b"\xff\xff\xff\xff\x07"))
    return whole[:at] + number + whole[at:]


def move(rng: np.random.Generator, whole: bytes, _: bytes) -> bytes:
    """A piece that stands somewhere else as well."""
    places = boundaries(whole)
    first, second = sorted((pick(rng, places), pick(rng, places)))
    at = pick(rng, places)
    return whole[:at] + whole[first:second] + whole[at:]


BYTEWISE = (flip, flip_structure, truncate, insert, delete, splice, overlong, move)
