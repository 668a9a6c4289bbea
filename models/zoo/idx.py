"""Reader of the IDX format, in which MNIST and Fashion-MNIST are distributed."""

import gzip
from pathlib import Path

import numpy as np


def read_idx(path: Path) -> np.ndarray:
    """Return the unsigned-byte array stored in an IDX file, gzipped or not."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    rank = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape([int(size) for size in shape])


def read_images(path: Path) -> np.ndarray:
    """Return the images as float32 [count, 1, height, width] with values in [0, 1]."""
    return read_idx(path)[:, None].astype(np.float32) / np.float32(255)


def read_labels(path: Path) -> np.ndarray:
    """Return the class indices as int64 [count]."""
    return read_idx(path).astype(np.int64)
