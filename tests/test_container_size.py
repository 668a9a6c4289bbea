"""Packed models take the entropy of their weights, and a little more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from scipy.stats import norm

from onnxcomp.container import decoding, encoding, segments
from tests import models
from tests.packing import codes, holding, there_and_back

Array = np.ndarray[Any, Any]


def coded(array: Array) -> int:
    """Bytes of an array's block."""
    data = array.tobytes()
    element = helper.np_dtype_to_tensor_dtype(array.dtype)
    shape = segments.shape_of(encoding_span(array, element))
    body = encoding.encode(data, [segments.Segment(0, len(data), element, shape)])
    assert decoding.decode(body, len(data)) == data
    return len(body)


def encoding_span(array: Array, element: int) -> Any:
    from onnxcomp.container.spans import Span

    return Span(0, array.nbytes, element, array.shape)


def entropy(array: Array) -> float:
    """Bytes that independent symbols of this distribution take."""
    _, counts = np.unique(array, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("spread", [0.3, 2.0, 30.0])
def test_codes_take_their_entropy(spread: float) -> None:
    array = np.rint(np.random.default_rng(0).laplace(0, spread, (300, 700)))
    array = np.clip(array, -127, 127).astype(np.int8)
    assert coded(array) <= 1.01 * entropy(array) + 300


def test_rows_of_other_scales_take_less_than_the_entropy_of_all() -> None:
    generator = np.random.default_rng(0)
    scale = 16 * np.exp2(generator.uniform(-2, 1, 256))
    array = np.clip(np.rint(generator.normal(0, scale[:, None], (256, 1024))), -127, 127).astype(np.int8)
    edges = norm.cdf((np.arange(-127, 127) + 0.5) / scale[:, None])
    shares = np.diff(edges, axis=1, prepend=0.0, append=1.0)
    by_row = -(shares * np.log2(np.maximum(shares, 1e-300))).sum() * 1024 / 8
    assert coded(array) <= 1.01 * by_row + 300 < 0.97 * entropy(array)


def test_neighbours_in_kernels_are_predicted() -> None:
    generator = np.random.default_rng(0)
    smooth = generator.normal(0, 20, (96, 64, 1, 1)) + generator.normal(0, 10, (96, 64, 3, 3))
    array = np.clip(np.rint(smooth), -127, 127).astype(np.int8)
    # By the chain rule: each tap given those before it is normal, of a variance that is known.
    after = [10**2 * (1 + 400 / (100 + 400 * tap)) for tap in range(9)]
    bits = sum(0.5 * np.log2(2 * np.pi * np.e * variance) for variance in after) * 96 * 64
    assert coded(array) <= 1.02 * bits / 8 + 300 < 0.97 * entropy(array)


def test_zeros_in_groups_take_the_entropy_of_their_places() -> None:
    generator = np.random.default_rng(0)
    array = generator.integers(1, 128, (256, 256)).astype(np.int8)
    keep = np.argsort(generator.random((256, 64, 4)), axis=2) < 2
    array[~keep.reshape(256, 256)] = 0
    places = 256 * 64 * np.log2(6) / 8
    assert coded(array) <= 1.02 * (places + 256 * 128 * np.log2(127) / 8) + 300


def test_blocks_of_zeros_take_next_to_nothing() -> None:
    generator = np.random.default_rng(0)
    array = codes(256, 256)
    keep = np.kron(generator.random((16, 16)) < 0.5, np.ones((16, 16), bool))
    array = np.where(keep, np.where(array == 0, 1, array), 0).astype(np.int8)
    assert coded(array) <= 1.02 * entropy(array[keep]) + 500


def test_nibbles_take_their_entropy() -> None:
    generator = np.random.default_rng(0)
    array = np.clip(np.rint(generator.normal(0, 2, (300, 400))), -8, 7).astype(np.int64)
    data = ((array[:, ::2] & 15) | (array[:, 1::2] & 15) << 4).astype(np.uint8)
    segment = segments.Segment(0, data.size, TensorProto.INT4, (300, 200, 1))
    body = encoding.encode(data.tobytes(), [segment])
    assert decoding.decode(body, data.size) == data.tobytes()
    assert len(body) <= 1.02 * entropy(array) + 300


def test_exponents_of_floats_take_their_entropy() -> None:
    array = np.random.default_rng(0).normal(0, 0.02, (200, 500)).astype(np.float32)
    exponents = (array.view(np.uint32) >> 23) & 255
    assert coded(array) <= entropy(exponents) + 1.003 * 3 * array.size + 300


def test_a_multiple_of_another_array_takes_nothing(tmp_path: Path) -> None:
    scales = np.random.default_rng(0).random(1000).astype(np.float32)
    alone = there_and_back(holding(scales), tmp_path)
    both = models.initializers_of({"a": scales, "b": scales * np.float32(0.0123), "c": scales})
    assert there_and_back(both, tmp_path) < alone + 100


def test_noise_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    assert there_and_back(holding(noise), tmp_path) < noise.nbytes + 400
